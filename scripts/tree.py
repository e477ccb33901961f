"""Draws docs/_static/choose.svg, which estimator to begin with: `python -m scripts.tree`.

The questions of docs/choose.md, one below the other, so that the picture is no wider than a phone.
What it says of an estimator is the table's of all methods, from the estimators' records.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from gradest import records

from . import svg, write

PATH = pathlib.Path(__file__).parents[1] / "docs" / "_static" / "choose.svg"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What to begin with.

    Attributes:
      name: the estimator's.
      code: the sampler, in lines that fit.
      facts: what the way here asks of the estimator's record.
      serves: distributions for which the way here leads to it.
    """

    name: str
    code: Sequence[str]
    facts: Mapping[str, Any]
    serves: Sequence[str]


@dataclasses.dataclass(frozen=True)
class Question:
    """One to be answered by yes or no: no leads to the next.

    Attributes:
      text: in lines that fit.
      yes: where yes leads.
    """

    text: Sequence[str]
    yes: Answer


QUESTIONS = (
    Question(
        ["1. Is the draw continuous, and the", "cost differentiable in it?"],
        Answer(
            "reparameterize",
            ["ge.reparameterize()"],
            {"unbiased": "yes", "differentiable_cost": True, "evaluations": 1},
            ["Normal", "Gamma"],
        ),
    ),
    Question(
        ["2. Is it drawn in a loop, jax.lax.scan?"],
        Answer(
            "score_function",
            ["ge.score_function(baseline=b)"],
            {"unbiased": "yes", "differentiable_cost": False},
            ["Normal", "Bernoulli", "Categorical", "Poisson"],
        ),
    ),
    Question(
        ["3. Has it few outcomes in all, and is", "the cost cheap?"],
        Answer(
            "enumeration",
            ["ge.enumeration()"],
            {"unbiased": "exact", "differentiable_cost": False},
            ["Bernoulli", "Categorical", "OneHotCategorical"],
        ),
    ),
    Question(
        ["4. Is it discrete, a bias welcome, and the", "cost differentiable in the draw?"],
        Answer(
            "reinmax",
            ["ge.reinmax()"],
            {"draws": "exact", "differentiable_cost": True, "evaluations": 1},
            ["Bernoulli", "OneHotCategorical"],
        ),
    ),
    Question(
        ["5. Can you afford several evaluations of", "the cost for one gradient?"],
        Answer(
            "score_function",
            ["ge.score_function(num_samples=4,", '    baseline="leave_one_out")'],
            {"unbiased": "yes", "differentiable_cost": False},
            ["Normal", "Bernoulli", "Categorical", "Poisson"],
        ),
    ),
)
#: Where the last no leads.
ELSE = Answer(
    "score_function",
    ["ge.score_function(baseline=b)"],
    {"unbiased": "yes", "differentiable_cost": False},
    ["Normal", "Bernoulli", "Categorical", "Poisson"],
)
ANSWERS = (*(question.yes for question in QUESTIONS), ELSE)

#: In the picture, and in the text that stands for it.
TITLE = "Five questions, one after the other: yes leads to an estimator, no to the next question"

_WIDTH, _MARGIN, _INDENT, _GAP = 360, 8, 66, 26
_LINE, _PAD, _SPINE = 17, 9, 30

_STYLE = """
    .paper { fill: #ffffff }
    .question { fill: #eef2f7; stroke: #6b7f99 }
    .answer { fill: #ffffff; stroke: #1c6b52; stroke-width: 1.5 }
    text { font: 13.5px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1c2733 }
    .code { font: 600 12.5px ui-monospace, Menlo, "DejaVu Sans Mono", monospace; white-space: pre }
    .fact { font-size: 12.5px; fill: #3b4a5c }
    .word { font-weight: 600; fill: #3b4a5c }
    .line { fill: none; stroke: #6b7f99; stroke-width: 1.5; marker-end: url(#head) }
"""


def facts(answer: Answer) -> str:
    """As the table of methods says them."""
    cells = write.cells(records.ESTIMATORS[answer.name])
    unbiased = {"yes": "unbiased", "no": "biased", "exact": "exact"}
    words = unbiased.get(cells["unbiased"], f"unbiased {cells['unbiased']}")
    times = cells["cost evaluations"].strip("`")
    if times == "num_samples":
        given = re.search(r"num_samples=(\d+)", "".join(answer.code))
        times = given[1] if given else "1"
    return f"{words}; evaluations: {times}"


def picture() -> str:
    """The picture, as SVG."""
    body: list[str] = []
    y = _MARGIN
    for question in QUESTIONS:
        height = 2 * _PAD + _LINE * len(question.text)
        body += _box("question", _MARGIN, y, height, question.text)
        below = y + height
        y = below + 12
        tall = _height(question.yes)
        middle = y + tall // 2
        body.append(f'  <path class="line" d="M{_SPINE} {below} V{middle} H{_INDENT - 2}"/>')
        body.append(_text("word", _SPINE + 2, middle - 5, "yes"))
        body += _answer(question.yes, y)
        end = y + tall + _GAP
        body.append(f'  <path class="line" d="M{_SPINE - 12} {below} V{end - 2}"/>')
        body.append(_text("word", _SPINE - 6, end - 9, "no"))
        y = end
    body += _answer(ELSE, y, _MARGIN)
    y += _height(ELSE) + _MARGIN
    return svg.document(_WIDTH, y, TITLE, _STYLE, body)


def _height(answer: Answer) -> int:
    return 2 * _PAD + _LINE * (len(answer.code) + 1)


def _answer(answer: Answer, y: int, x: int = _INDENT) -> Iterator[str]:
    kinds = [*("code" for _ in answer.code), "fact"]
    return _box("answer", x, y, _height(answer), [*answer.code, facts(answer)], kinds)


def _box(
    kind: str, x: int, y: int, height: int, lines: Sequence[str], kinds: Sequence[str] = ()
) -> Iterator[str]:
    """From `x` to the right margin."""
    width = _WIDTH - _MARGIN - x
    yield f'  <rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
    for i, line in enumerate(lines):
        yield _text(kinds[i] if kinds else "says", x + 10, y + _PAD + 13 + _LINE * i, line)


def _text(kind: str, x: int, y: int, text: str) -> str:
    return f'  <text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


if __name__ == "__main__":
    PATH.write_text(picture(), encoding="utf-8")
