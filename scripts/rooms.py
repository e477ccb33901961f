"""Draws docs/rooms.svg, the picture of the package's rooms: `python -m scripts.rooms`."""

import dataclasses
import pathlib
import textwrap
from collections.abc import Iterator, Sequence

from . import svg

PATH = pathlib.Path(__file__).parents[1] / "docs" / "rooms.svg"


@dataclasses.dataclass(frozen=True)
class Room:
    """A module or, with a slash, a package.

    Attributes:
      name: of it.
      says: what it is for, in lines that fit.
      share: of its floor's width.
      stands_on: the room below to which an arrow goes, one of those that it imports.
    """

    name: str
    says: Sequence[str]
    share: float = 1
    stands_on: str = ""


@dataclasses.dataclass(frozen=True)
class Floor:
    """Rooms side by side.

    Attributes:
      name: of it.
      says: what its rooms have in common.
      rooms: from the left, and from the top if they are in rows.
      rows: in how many.
    """

    name: str
    says: str
    rooms: Sequence[Room]
    rows: int = 1


#: From the top down: a module imports those of its own floor and of the floors below; only what is
#: on the floor `rooms`, side by side, does not know of each other.
FLOORS = (
    Floor(
        "programs",
        "use the package as a user does",
        [
            Room("problems/", ["trainings and tables of", "python -m gradest"], 1.35, "__init__"),
            Room("__main__", ["its command line"]),
            Room("nnx", ["flax.nnx modules"], 0.95),
            Room("numpyro", ["an ELBO for SVI"], 0.95),
            Room("_credit", ["latents and terms"]),
        ],
    ),
    Floor("front", "", [Room("__init__", ["the public names, a line each"])]),
    Floor(
        "above rooms",
        "",
        [
            Room("_explain/", ["each draw of a loss, in a table"], 0.37, "_transform/"),
            Room("records", ["what is known of all estimators"], 1, "estimators/"),
        ],
    ),
    Floor(
        "rooms",
        "side by side",
        [
            Room(
                "_transform/",
                [
                    "expectation: stages the loss",
                    "keys, numbering: two with one",
                    "reading: jaxpr into nodes, once",
                    "continuation: hands on the rest",
                    "ledger: running sums",
                    "downstream: what follows draws",
                    "spend: ge.cost",
                    "while_loop: ge.while_loop",
                    "complaints: what it says of them",
                ],
                2,
                "_draws",
            ),
            Room(
                "estimators/",
                [
                    "one module a family:",
                    "its equation, its options",
                    "_relaxation, _scores, …:",
                    "what families share",
                ],
                1.65,
                "_sampler",
            ),
            Room("_diagnostics/", ["bias, variance,", "time of gradients"], 1.2),
            Room("_monte_carlo", ["means over", "many keys"], 1.12),
            Room("_annealing", ["schedules of", "parameters"]),
        ],
    ),
    Floor(
        "contract",
        "what a draw is",
        [
            Room("_draws", ["the equations", "of draws"], 1.02),
            Room("_lockstep", ["several runs", "of a loss"], 0.95, "_derivatives/"),
            Room("_sampler", ["Sampler; Site,", "one of a loss"], 1, "distributions/"),
            Room("_control_variate", ["what is known", "beside a score"], 1.43),
            Room("_cost", ["what follows", "a draw"], 0.95),
            Room("_same_key", ["two draws", "with one"], 0.9),
            Room("_jumps", ["where a cost", "has no slope"], 1, "_downstream/"),
        ],
    ),
    Floor(
        "laws",
        "",
        [
            Room(
                "distributions/",
                ["parameters, samples, log-probabilities; the adapter for other libraries"],
                1,
                "_derivatives/",
            )
        ],
    ),
    Floor(
        "derivatives",
        "that are not JAX's",
        [
            Room(
                "_derivatives/",
                ["attach a gradient, refuse one,", "train by a variance; primitives"],
                1,
                "_check",
            ),
            Room(
                "_downstream/",
                ["what becomes of a draw: smooth,", "kinked, or a jump"],
                1,
                "_jaxpr",
            ),
        ],
    ),
    Floor(
        "ground",
        "JAX, numbers, checks",
        [
            Room("_check", ["arguments"], 0.9),
            Room("_numerics", ["types, limits"], 1.05),
            Room("_random", ["keys, noise"]),
            Room("_fixed_point", ["64 bits"], 1.1),
            Room("_jaxpr", ["JAX's versions"]),
            Room("_written", ["by whom"]),
            Room("_jax_random", ["draws of JAX's"], 1.05),
            Room("_transparent", ["stop_gradient"], 1.1),
            Room("_mesh", ["axes of a mesh"], 1.1),
            Room("_plates", ["lanes"], 0.8),
            Room("_calls", ["other words"]),
            Room("_typing", ["protocols"], 0.9),
            Room("_installation", ["a wrong jaxlib"], 1.2),
            Room("_version", ["its number"], 0.9),
        ],
        rows=2,
    ),
)

_WIDTH, _MARGIN, _LABELS, _BETWEEN = 940, 8, 132, 12
_HEAD, _LINE, _STAIRS = 34, 17, 22

_STYLE = """
    .paper { fill: #ffffff }
    .band { fill: #eef2f7 }
    .box { fill: #ffffff; stroke: #6b7f99 }
    text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #3b4a5c }
    .floor-name { font-size: 14px; font-weight: 600; fill: #1c2733 }
    .room-name { font: 600 13px ui-monospace, Menlo, "DejaVu Sans Mono", monospace; fill: #1c2733 }
    .arrow { fill: none; stroke: #6b7f99; stroke-width: 1.5; marker-end: url(#head) }
"""


@dataclasses.dataclass(frozen=True)
class _Box:
    x: int
    y: int
    width: int
    height: int


def picture() -> str:
    """The picture, as SVG."""
    boxes: dict[str, _Box] = {}
    bands, drawn = [], []
    y = 2 * _MARGIN
    for floor in FLOORS:
        height = _HEAD + _LINE * max(len(room.says) for room in floor.rooms)
        per_row = -(-len(floor.rooms) // floor.rows)
        for row in range(floor.rows):
            rooms = floor.rooms[row * per_row : (row + 1) * per_row]
            boxes.update(_placed(rooms, y + _MARGIN + row * (height + _BETWEEN), height))
        height = floor.rows * (height + _BETWEEN) - _BETWEEN + 2 * _MARGIN
        bands += _band(floor, y, height)
        drawn += _rooms(floor, boxes)
        y += height + _STAIRS
    arrows = [
        _arrow(boxes[room.name], boxes[room.name], boxes[room.stands_on])
        for floor in FLOORS
        for room in floor.rooms
        if room.stands_on
    ]
    (side_by_side,) = (floor for floor in FLOORS if floor.name == "rooms")
    arrows += [
        _arrow(boxes[room.name], boxes["__init__"], boxes[room.name]) for room in side_by_side.rooms
    ]
    title = (
        "The rooms of gradest, floor by floor: a module imports those of its own floor and of the "
        "floors below"
    )
    # An arrow passes behind what lies on its way.
    return svg.document(_WIDTH, y, title, _STYLE, [*bands, *arrows, *drawn])


def _placed(rooms: Sequence[Room], y: int, height: int) -> Iterator[tuple[str, _Box]]:
    """Where the rooms of a row are, their names first."""
    free = _WIDTH - _LABELS - 2 * _MARGIN - _BETWEEN * (len(rooms) - 1)
    x = _LABELS
    for room in rooms:
        width = round(free * room.share / sum(other.share for other in rooms))
        yield room.name, _Box(x, y, width, height)
        x += width + _BETWEEN


def _band(floor: Floor, y: int, height: int) -> Iterator[str]:
    left, right = 2 * _MARGIN + 4, _WIDTH - 2 * _MARGIN
    yield f'  <rect class="band" x="{_MARGIN}" y="{y}" width="{right}" height="{height}" rx="6"/>'
    yield _text("floor-name", left, y + 26, floor.name)
    for i, line in enumerate(textwrap.wrap(floor.says, 17)):
        yield _text("says", left, y + 42 + 14 * i, line)


def _rooms(floor: Floor, boxes: dict[str, _Box]) -> Iterator[str]:
    for room in floor.rooms:
        box = boxes[room.name]
        yield (
            f'  <rect class="box" x="{box.x}" y="{box.y}" width="{box.width}" '
            f'height="{box.height}" rx="4"/>'
        )
        yield _text("room-name", box.x + 12, box.y + 20, room.name)
        for i, line in enumerate(room.says):
            yield _text("says", box.x + 12, box.y + 38 + _LINE * i, line)


def _text(kind: str, x: int, y: int, text: str) -> str:
    return f'  <text class="{kind}" x="{x}" y="{y}">{text}</text>'


def _arrow(over: _Box, start: _Box, end: _Box) -> str:
    """Straight down from one room to another, in the middle of the narrower of them."""
    narrow = min(over, end, key=lambda box: box.width)
    x = narrow.x + narrow.width // 2
    if not all(box.x < x < box.x + box.width for box in (over, end)):
        raise ValueError(f"an arrow at {x} misses one of {over} and {end}: exchange rooms")
    return f'  <path class="arrow" d="M{x} {start.y + start.height} V{end.y - 2}"/>'


if __name__ == "__main__":
    PATH.write_text(picture(), encoding="utf-8")
