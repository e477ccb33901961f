"""The playground: a page that can be read and worked by anyone, with gradest's numbers."""

import contextlib
import html.parser
import io
import json
import math
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from support import browser

import gradest as ge
from gradest.distributions import OneHotCategorical, RelaxedOneHotCategorical

PATH = pathlib.Path(__file__).parents[1] / "docs" / "_extra" / "playground" / "index.html"
SOURCE = PATH.read_text(encoding="utf-8")

LOGITS = [0.7, -0.4, 0.2]
TEMPERATURE = 0.6
COSTS = ("square", "linear", "wave", "distance", "bump", "step")
SLOPED = ("gumbel_softmax", "st_gumbel_softmax", "straight_through")
ESTIMATORS = (*SLOPED, "score_function", "score_function_baseline")
NUM_DRAWS = 40_000
MAX_Z = 4.5  # standard errors; keys are fixed, so what passes once passes always

# ---- The file ------------------------------------------------------------------------------


class Reader(html.parser.HTMLParser):
    """What a page is made of.

    Attributes:
      tags: name and attributes of every element.
      labelled: the ids that a label is for.
      unlabelled: the controls that have neither a label nor a text of their own.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._texts: dict[int, str] = {}
        self._open: list[int] = []
        self.feed(source)
        self.labelled = {a["for"] for tag, a in self.tags if tag == "label"}
        self.unlabelled = [
            attributes.get("id", tag)
            for number, (tag, attributes) in enumerate(self.tags)
            if tag in ("input", "select", "textarea", "button")
            and attributes.get("id") not in self.labelled
            and not (tag == "button" and self._texts.get(number, "").strip())
        ]

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._open.append(len(self.tags))
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self.tags[self._open.pop()][0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self._texts[self._open[-1]] = self._texts.get(self._open[-1], "") + data


def outside(source: str) -> list[str]:
    """What the page would have a browser fetch, links that a reader follows excepted."""
    found = [
        value
        for tag, attributes in Reader(source).tags
        for name, value in attributes.items()
        if name in ("src", "srcset", "href", "data", "poster", "action") and tag != "a"
    ]
    styles = "".join(re.findall(r"<style>(.*?)</style>", source, re.DOTALL))
    found += re.findall(r"@import[^;]*|url\([^)]*\)", styles)
    scripts = "".join(re.findall(r"<script>(.*?)</script>", source, re.DOTALL))
    addresses = re.findall(r"""["'`]((?:https?:)?//[^"'`]*)""", scripts)
    found += [address for address in addresses if address != "http://www.w3.org/2000/svg"]
    return found + re.findall(r"\b(?:fetch|import|importScripts|XMLHttpRequest)\s*\(", scripts)


def dangling(source: str) -> list[str]:
    """Ids that are given twice, or referred to and not there."""
    tags = Reader(source).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    # The script makes those of the logits.
    told = [
        name
        for _, attributes in tags
        for attribute in ("for", "aria-labelledby", "aria-describedby")
        for name in attributes.get(attribute, "").split()
    ]
    return [name for name in ids if ids.count(name) > 1] + sorted(set(told) - set(ids))


def without(old: str, new: str = "") -> str:
    assert old in SOURCE
    return SOURCE.replace(old, new)


def test_nothing_is_fetched():
    assert outside(SOURCE) == []


@pytest.mark.parametrize(
    "addition",
    [
        '<script src="https://example.org/x.js"></script>',
        '<link rel="stylesheet" href="x.css">',
        "<style>@import 'x.css';</style>",
        "<style>@font-face { src: url(x.woff2) }</style>",
        '<img src="x.png" alt="">',
        "<script>fetch('x')</script>",
        "<script>const address = '//example.org/x'</script>",
    ],
)
def test_what_is_fetched_would_be_seen(addition):
    assert outside(SOURCE + addition)


def test_every_control_and_picture_has_a_label():
    assert Reader(SOURCE).unlabelled == []
    assert dangling(SOURCE) == []
    for tag, attributes in Reader(SOURCE).tags:
        if tag == "svg":
            assert attributes.get("role") == "img", attributes
            assert attributes.get("aria-labelledby"), attributes


def test_a_missing_label_would_be_seen():
    assert Reader(without('<label for="rate">')).unlabelled == ["rate"]
    assert Reader(without("New noise</button>", "</button>")).unlabelled == ["noise"]
    assert dangling(without('id="one-caption"')) == ["one-caption"]


def colours(dark: bool) -> dict[str, str]:
    blocks = re.findall(r":root \{(.*?)\}", SOURCE, re.DOTALL)
    assert len(blocks) == 2
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[dark]))


def contrast(one: str, other: str) -> float:
    """As the Web Content Accessibility Guidelines define it, between 1 and 21."""

    def luminance(colour: str) -> float:
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_what_is_drawn_stands_out(dark):
    """Text by 4.5 to 1, lines and marks by 3 to 1."""
    of = colours(dark)
    for name in ("ink", "soft", "a"):
        for ground in ("ground", "raised"):
            assert contrast(of[name], of[ground]) > 4.5, (name, ground)
    for name in ("b", "c", "d", "e", "bar", "focus"):
        assert contrast(of[name], of["ground"]) > 3, name
    assert contrast("#ffffff", "#000000") == pytest.approx(21)


# ---- The page in a browser -----------------------------------------------------------------

in_browser = [
    pytest.mark.slow,
    pytest.mark.skipif(not browser.CHROMIUM, reason="needs Chromium"),
]


class Playground:
    """The page, and its functions by name."""

    def __init__(self, page: browser.Page) -> None:
        self.page = page
        page.resize(1200, 900)
        self.reload()

    def reload(self) -> None:
        self.page.open(PATH.as_uri())
        self.wait("document.querySelector('#estimators td')")

    def evaluate(self, expression: str, **arguments: Any) -> Any:
        """Of the arguments, of P, the page's functions, and of $, its elements by their ids."""
        names = ", ".join(["P", "$", *arguments])
        find = "(id) => document.getElementById(id)"
        values = ", ".join(["playground", find, *map(json.dumps, arguments.values())])
        return self.page.evaluate(f"(({names}) => {expression})({values})")

    def wait(self, condition: str) -> None:
        waiting = f"const wait = () => {condition} ? done() : requestAnimationFrame(wait); wait()"
        self.page.evaluate(f"new Promise((done) => {{ {waiting} }})")

    def set(self, control: str, value: Any) -> None:
        """As a reader would: the control has the value, and says that it changed."""
        self.evaluate(
            "['input', 'change'].forEach((type) => { $(id).value = value;"
            " $(id).dispatchEvent(new Event(type, { bubbles: true })) })",
            id=control,
            value=value,
        )
        self.settle()

    def settle(self) -> None:
        """Lets the page draw, curves and tables as well."""
        drawn = "requestAnimationFrame(() => setTimeout(done, 0))"
        self.page.evaluate(f"new Promise((done) => setTimeout(() => {drawn}, 400))")

    def text(self, id: str) -> str:
        return self.evaluate("$(id).textContent", id=id)

    def table(self, id: str) -> dict[str, list[str]]:
        """The cells of each row, by the first."""
        cells = "(row) => [...row.cells].map((cell) => cell.textContent)"
        rows = self.evaluate(f"[...$(id).rows].map({cells})", id=id)
        minus = "\N{MINUS SIGN}"
        return {first: [cell.replace(minus, "-") for cell in rest] for first, *rest in rows}


@pytest.fixture(scope="module")
def playground():
    with browser.page() as page:
        yield Playground(page)


@pytest.fixture
def fresh(playground):
    """The page as it opens."""
    playground.reload()
    return playground


def named(python: str, **names: Any) -> Any:
    """The value of an expression that the page shows as Python."""
    return eval(python, {"ge": ge, "jnp": jnp, **names})


class TestPage:
    pytestmark = in_browser

    def test_asks_for_nothing_and_complains_of_nothing(self, fresh):
        page = fresh.page
        assert page.complaints == []
        assert set(page.requests) == {PATH.as_uri()}
        page.evaluate("new Promise((done) => setTimeout(() => { done(); throw Error('seen') }))")
        fresh.settle()
        assert "seen" in page.complaints.pop()

    @pytest.mark.parametrize(("width", "dark"), [(360, True), (800, False), (1400, True)])
    def test_fits(self, playground, width, dark):
        """Nothing has to be scrolled sideways but tables and code, which can be."""
        playground.page.resize(width, 800, dark=dark)
        playground.reload()
        playground.set("categories", 10)
        root = "document.documentElement"
        assert playground.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")
        out = "node.getBoundingClientRect().right > innerWidth + 1"
        sticking_out = playground.evaluate(
            "[...document.querySelectorAll('main *')]"
            f".filter((node) => !node.closest('.table, pre, .hidden') && {out})"
            ".map((node) => node.outerHTML)"
        )
        assert sticking_out == []
        ground = playground.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(21, 24, 28)" if dark else "rgb(255, 255, 255)")
        playground.page.resize(1200, 900)

    def test_every_control_is_labelled(self, fresh):
        """Those that the script makes, too."""
        controls = "[...document.querySelectorAll('input, select, button')]"
        assert len(fresh.evaluate(f"{controls}.map((c) => c.id)")) > 20
        name = "(c) => [...(c.labels ?? [])].map((l) => l.textContent).join('') || c.textContent"
        assert all(fresh.evaluate(f"{controls}.map({name})"))

    def test_works_with_the_keyboard(self, fresh):
        page = fresh.page
        page.evaluate("document.getElementById('temperature').focus()")
        before = float(fresh.evaluate("$('temperature-number').value"))
        page.press("ArrowRight", 39)
        fresh.settle()
        after = float(fresh.evaluate("$('temperature-number').value"))
        assert before < after < 1.2 * before
        # Once more, and not back: a value that was rounded does not hold the slider.
        page.press("ArrowRight", 39)
        fresh.settle()
        assert float(fresh.evaluate("$('temperature-number').value")) > after
        seen = []
        for _ in range(12):
            page.press("Tab", 9)
            seen.append(page.evaluate("document.activeElement.id"))
        assert seen[:2] == ["temperature-number", "play"]
        assert {"categories", "index", "noise", "logit-0", "logit-2"} <= set(seen)
        assert "logit-3" not in seen

    def test_anneals(self, fresh):
        """From hot to cold, in the time that it takes, until it is told to stop."""
        value = "Number($('temperature-number').value)"
        # Frame by frame, in the page: how many frames there are is the machine's business.
        seen = fresh.evaluate(
            "new Promise((done) => { const seen = []; $('play').click();"
            " const look = () => {"
            f"  seen.push([Number($('step').value), {value}]);"
            "  if (seen.at(-1)[0] <= 5000) return requestAnimationFrame(look);"
            "  $('play').click(); done(seen);"
            " }; requestAnimationFrame(look) })"
        )
        steps, temperatures = np.array(seen).T
        assert len(seen) > 3
        assert np.all(np.diff(steps) >= 0)
        # The slider of the step moves by hundreds.
        np.testing.assert_allclose(temperatures, 5 * 0.02 ** (steps / 20_000), rtol=0.03)
        assert temperatures[0] > 3
        fresh.settle()
        stopped = fresh.evaluate(value)
        fresh.settle()
        assert fresh.evaluate(value) == stopped

        fresh.set("schedule", "floor")
        fresh.set("step", 20_000)
        assert fresh.evaluate(value) == 0.5
        assert fresh.text("play") == "Anneal"

    def test_shows_one_draw(self, fresh):
        """Its numbers are those of its noise, and the choice does not move with the temperature."""
        fresh.set("categories", 5)
        fresh.set("logit-3", 1.7)
        choices = set()
        for t in (0.1, 0.7, 8.0):
            fresh.set("temperature-number", t)
            head, *rows = fresh.table("draw-table").values()
            assert head[0] == "logit l"
            l, g, z, x, y, p, share = np.array(rows, float).T
            assert l[3] == 1.7
            np.testing.assert_allclose(z, l + g, atol=2e-4)
            np.testing.assert_allclose(y, jax.nn.softmax(z / t), atol=1e-4 + 2e-4 / t)
            np.testing.assert_allclose(p, jax.nn.softmax(l), atol=1e-4)
            assert share.sum() == pytest.approx(1, abs=1e-3)
            assert x.argmax() == y.argmax() == z.argmax()
            assert sorted(x) == [0, 0, 0, 0, 1]
            choices.add("ABCDE"[x.argmax()])
            assert f"chooses {'ABCDE'[x.argmax()]}" in fresh.text("one-caption")
        assert len(choices) == 1

    @pytest.mark.parametrize("cost", ["wave", "step"])
    def test_shows_gradients(self, fresh, cost):
        """The tables have the page's moments, and the program beside them has their exact one."""
        fresh.set("cost", cost)
        head, *exact = fresh.table("means").values()
        assert head == ["A", "B", "C"]
        shown = fresh.table("estimators")
        assert len(shown) == 1 + len(ESTIMATORS)
        program = fresh.text("python")
        python = fresh.evaluate("P.COSTS.find((c) => c.id === id).python", id=cost)
        assert f"cost = lambda y: {python}\n" in program
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(program.replace("num_draws=2000", "num_draws=2"), {})
        printed = np.array(re.search(r"\[(.*?)\]", said.getvalue())[1].split(), float)
        np.testing.assert_allclose(np.array(exact[0], float), printed, atol=1e-4)
        length = np.linalg.norm(printed)
        assert float(fresh.text("exact-length")) == pytest.approx(length, abs=1e-4)
        if cost == "step":
            # No slope, no noise, and the whole gradient missing.
            for name in ("Gumbel-softmax", "straight-through"):
                assert shown[name][2:4] == ["100%", "0"]
            assert "gumbel_softmax" not in program
        else:
            assert float(shown["score function"][0]) < 4 * float(shown["score function"][1])
            assert float(shown["straight-through"][0]) > 4 * float(shown["straight-through"][1])


# ---- Its numbers, and gradest's ------------------------------------------------------------


class TestNumbers:
    pytestmark = in_browser

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("size", [3, 7])
    def test_density(self, playground, size):
        rng = np.random.default_rng(size)
        points = rng.dirichlet(np.full(size, 0.7), 40)
        logits = rng.normal(size=size)
        for t in (0.1, 0.5, 1.0, 4.0):
            got = playground.evaluate(
                "points.map((y) => P.concreteLogDensity(y, logits, t))",
                points=points.tolist(),
                logits=logits.tolist(),
                t=t,
            )
            want = RelaxedOneHotCategorical(t, jnp.array(logits)).log_prob(jnp.array(points))
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("logits", [LOGITS, [0.0, 0.0, 0.0], [2.5, 0.1, -1.5]])
    def test_modes(self, playground, logits):
        """The hills of gradest's density, on a lattice, and its powers at the boundary."""

        @jax.jit
        def log_prob(y, t):
            return RelaxedOneHotCategorical(t, jnp.array(logits)).log_prob(y)

        height_at = lambda u, t: log_prob(jax.nn.softmax(u), t)
        heights = jax.jit(jax.vmap(jax.vmap(height_at, (0, None)), (0, None)))
        slope_at = jax.jit(jax.grad(height_at))
        # Coordinates that reach far into the corners.
        num, u = 120, np.linspace(-4, 4, 120) + 0.013
        grid = np.stack([*np.meshgrid(u, u, indexing="ij"), np.zeros((num, num))], axis=-1)
        num_modes = []
        for t in (0.3, 0.5, 0.8, 1.5, 1.9, 3.0, 10.0):
            said = playground.evaluate("P.concreteModes(logits, t)", logits=logits, t=t)
            height = np.asarray(heights(grid, t))
            # Higher than the eight around it.
            shifts = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
            around = [height[i : i + num - 2, j : j + num - 2] for i, j in shifts]
            hills = grid[1:-1, 1:-1][height[1:-1, 1:-1] > np.max(around, axis=0)]
            for mode, hill in zip(said["modes"], hills, strict=True):
                at = np.log(mode) - np.log(mode[2])
                np.testing.assert_allclose(at, hill, atol=1.01 * (u[1] - u[0]))
                np.testing.assert_allclose(slope_at(jnp.array(at), t), 0, atol=1e-7)
            num_modes.append(len(said["modes"]))

            def power(towards, t=t):
                far, near = (float(log_prob(jnp.array(towards(d)), t)) for d in (1e-60, 1e-61))
                return (far - near) / math.log(10)

            assert said["edgePower"] == pytest.approx(power(lambda d: [0.4, 0.6, d]), abs=1e-6)
            assert said["cornerPower"] == pytest.approx(power(lambda d: [1.0, d, d]), abs=1e-6)
        assert num_modes[:3] == [0, 0, 0]
        assert num_modes[-2:] == [1, 1]

    @pytest.mark.usefixtures("x64")
    def test_draws_of_the_same_noise(self, playground):
        dist = OneHotCategorical(jnp.array([0.7, -0.4, 0.2, 1.1]))
        keys = jax.random.split(jax.random.key(0), 50)
        of = lambda sampler: np.asarray(jax.vmap(lambda key: sampler(key, dist))(keys))
        noise = self.noise_of(of(ge.gumbel_softmax(1.0)), dist)
        draw = lambda expression, **more: playground.evaluate(
            f"noise.map((g) => {expression})", noise=noise, logits=dist.logits.tolist(), **more
        )
        assert draw("P.gumbelMax(logits, g)") == of(ge.gumbel_max()).tolist()
        for t in (0.2, 0.9, 5.0):
            soft = np.array(draw("P.gumbelSoftmax(logits, g, t)", t=t))
            np.testing.assert_allclose(soft, of(ge.gumbel_softmax(t)), rtol=1e-9, atol=1e-12)
            assert (soft.argmax(axis=-1) == of(ge.gumbel_max()).argmax(axis=-1)).all()

    @staticmethod
    def noise_of(soft: np.ndarray, dist: OneHotCategorical) -> list[list[float]]:
        """Up to a constant of each row, which changes nothing: of draws at the temperature 1."""
        return (np.log(soft) - np.asarray(dist.logits)).tolist()

    @pytest.mark.usefixtures("x64")
    @pytest.mark.parametrize("cost", COSTS)
    def test_gradients_draw_by_draw(self, playground, cost):
        """Each of gradest's, from the page's function and the same noise or the same choice."""
        task = playground.evaluate("P.problem(id, logits)", id=cost, logits=LOGITS)
        f = named(f"lambda y: {task['cost']['python']}", c=jnp.linspace(0.0, 1.0, len(LOGITS)))
        dist = OneHotCategorical(jnp.array(LOGITS))
        keys = jax.random.split(jax.random.key(1), 12)
        pythons = playground.evaluate(
            "P.ESTIMATORS.map((e) => [e.id, e.python(t, mean)])", t=TEMPERATURE, mean=task["mean"]
        )
        assert tuple(name for name, _ in pythons) == ESTIMATORS
        samplers = {name: named(python) for name, python in pythons}

        def gradient(sampler):
            return lambda key: jax.grad(lambda d: sampler.expect(key, d, f))(dist).logits

        exact = gradient(ge.enumeration())(keys[0])
        np.testing.assert_allclose(task["exact"], exact, rtol=1e-9, atol=1e-12)
        if cost == "step":
            for name in SLOPED:
                with pytest.raises(ge.UnestimatedGradientError, match="jumps at a comparison"):
                    gradient(samplers.pop(name))(keys[0])

        @jax.jit
        def run(keys):
            soft = jax.vmap(lambda key: ge.gumbel_softmax(1.0)(key, dist))(keys)
            return soft, {name: jax.vmap(gradient(s))(keys) for name, s in samplers.items()}

        soft, gradients = run(keys)
        certain = (1e3 * np.eye(len(LOGITS))).tolist()
        for name, want in gradients.items():
            same = name in ("gumbel_softmax", "st_gumbel_softmax")
            got = playground.evaluate(
                "noise.map((g) => P.ESTIMATORS.find((e) => e.id === id)"
                ".gradient(P.problem(cost, logits), g, t))",
                noise=self.noise_of(np.asarray(soft), dist) if same else certain,
                id=name,
                cost=cost,
                logits=LOGITS,
                t=TEMPERATURE,
            )
            off = np.abs(np.asarray(want)[:, None] - np.array(got)[None]).max(axis=-1)
            # The others choose by noise of their own: theirs is the gradient of one of the choices.
            off = off.diagonal() if same else off.min(axis=1)
            assert off.max() < 1e-9, name

    @pytest.mark.statistical
    def test_moments(self, playground):
        """Bias and variance that the page finds by its draws are those of gradest's draws."""
        dist = OneHotCategorical(jnp.array(LOGITS))
        c = jnp.linspace(0.0, 1.0, len(LOGITS))
        task = playground.evaluate("P.problem('wave', logits)", logits=LOGITS)
        f = named(f"lambda y: {task['cost']['python']}", c=c)
        samplers = {
            "gumbel_softmax": ge.gumbel_softmax(TEMPERATURE),
            "st_gumbel_softmax": ge.st_gumbel_softmax(TEMPERATURE),
            "straight_through": ge.straight_through(),
            "score_function": ge.score_function(),
            "score_function_baseline": ge.score_function(baseline=task["mean"]),
        }

        @jax.jit
        def run(keys):
            gradient = lambda s, key: jax.grad(lambda d: s.expect(key, d, f))(dist).logits
            return {n: jax.vmap(lambda k, s=s: gradient(s, k))(keys) for n, s in samplers.items()}

        gradients = run(jax.random.split(jax.random.key(2), NUM_DRAWS))
        moments = playground.evaluate(
            "ids.map((id) =>"
            " P.moments(id, P.problem('wave', logits), t, P.gumbelNoise(7, num, 3)))",
            ids=list(samplers),
            logits=LOGITS,
            t=TEMPERATURE,
            num=NUM_DRAWS,
        )
        exact = np.array(task["exact"])
        for name, said in zip(samplers, moments, strict=True):
            sample = gradients[name]
            self.assert_moments(np.asarray(sample, float), said, exact)
            if name not in SLOPED:
                assert said["bias"] < MAX_Z * said["chance"]
            else:
                assert said["biasLow"] > 0
            # Wrong by 5%, or of 10% more variance.
            with pytest.raises(AssertionError):
                self.assert_moments(np.asarray(1.05 * sample, float), said, exact)

    @staticmethod
    def assert_moments(sample: np.ndarray, said: dict[str, Any], exact: np.ndarray) -> None:
        num = len(sample)
        mean = sample.mean(axis=0)
        squares = np.sum((sample - mean) ** 2, axis=-1)
        error = sample.std(axis=0) / math.sqrt(num)
        np.testing.assert_allclose(said["error"], error, rtol=0.1)
        assert np.all(np.abs(said["mean"] - mean) < MAX_Z * np.hypot(said["error"], error))
        variance, variance_error = squares.mean(), squares.std() / math.sqrt(num)
        assert said["varianceError"] == pytest.approx(variance_error, rel=0.2)
        # With the power to see 10% in a variance, which is 5% in an estimate.
        tolerance = 3 * math.hypot(said["varianceError"], variance_error)
        assert tolerance < 0.1 * variance
        assert abs(said["variance"] - variance) < tolerance
        bias = np.linalg.norm(mean - exact)
        assert abs(said["bias"] - bias) < MAX_Z * math.sqrt(2) * said["chance"]

    @pytest.mark.statistical
    def test_noise(self, playground):
        """It follows the Gumbel distribution, and more categories add to it."""
        rows = np.array(playground.evaluate("P.gumbelNoise(3, 4000, 10)"))
        assert scipy.stats.kstest(rows.ravel(), "gumbel_r").pvalue > 1e-3
        assert np.abs(np.corrcoef(rows.T) - np.eye(10)).max() < 5 / math.sqrt(4000)
        assert playground.evaluate("P.gumbelNoise(3, 4000, 3)") == rows[:, :3].tolist()
        assert playground.evaluate("P.gumbelNoise(4, 1, 3)") != rows[:1, :3].tolist()

    def test_schedule_with_a_floor(self, playground):
        """That of `gradest.anneal`'s example, without the stairs."""
        rate = 1e-4
        schedule = optax.exponential_decay(1.0, 1000, math.exp(-1000 * rate), end_value=0.5)
        for step in (0, 500, 6000, 15_000):
            got = playground.evaluate(
                "P.SCHEDULES.find((s) => s.id === 'floor').temperature(step, rate)",
                step=step,
                rate=rate,
            )
            with jax.numpy_dtype_promotion("standard"):
                assert got == pytest.approx(np.asarray(schedule(step)).item(), rel=1e-5)
