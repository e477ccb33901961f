"""The command line: `gradest compare` and `gradest table`, or `python -m gradest`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import gradest as ge

from .problems import DURATION, LATENTS, PROBLEMS, ProblemError, methods

_COMMANDS = ("compare", "table")
#: Modules of the `examples` extra, by their import names.
_EXTRA = ("flax", "matplotlib", "rich", "sklearn")
_USAGE_ERROR, _INTERRUPTED = 2, 130
_SEEDS, _MAX_SEEDS = 3, 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command, and returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and not argv[0].startswith("-"):
            _one_of("command", _COMMANDS)(argv[0])
        parser, commands = _parsers()
        known, unknown = parser.parse_known_args(argv)
        options = vars(known)
        command = options.pop("command")
        if unknown:
            return _fail(_unrecognized(commands.get(command, parser), unknown))
        if command is None:
            parser.print_help()
            return 0
        if command == "table":
            from .problems import properties

            return properties.run()
        from .problems import compare

        return compare.run(**options)
    except ProblemError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        return _fail(f'{missing} is not installed: pip install "gradest[examples]"')
    except KeyboardInterrupt:
        print("gradest: interrupted.", file=sys.stderr)
        return _INTERRUPTED


def _fail(message: str) -> int:
    print(f"gradest: {message}", file=sys.stderr)
    return _USAGE_ERROR


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ProblemError(f"{message} (see {self.prog} --help)")


def _unrecognized(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    """What is said of arguments that a command does not have, with the nearest that it has."""
    options = [name for action in parser._actions for name in action.option_strings]
    close = methods.closest(unknown[0].partition("=")[0], options)
    hint = f" Did you mean {close}?" if close else ""
    return f"unrecognized arguments: {' '.join(unknown)}.{hint} (See {parser.prog} --help.)"


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Of the program, and of its commands by their names."""
    parser = _Parser(
        prog="gradest",
        description="Gradients through random draws, by every estimator.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gradest {ge.__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="command")
    compare = commands.add_parser(
        "compare",
        help="train a discrete autoencoder with every estimator and see which one to use",
        description="Trains one problem with every estimator that applies and prints what each "
        "reached, the variance of its gradient and its time. Writes the same as JSON, and "
        "pictures, to a new directory in --out. Two minutes on two cores.",
        epilog="estimators: " + "; ".join(f"{m.name} is {m.about}" for m in methods.METHODS) + ".",
        allow_abbrev=False,
    )
    compare.add_argument(
        "--problem",
        type=_one_of("--problem", PROBLEMS),
        default="digits",
        metavar="NAME",
        help="digits (the default; comes with scikit-learn), mnist (see --data), or toy "
        "(one bit, where the exact gradient is known)",
    )
    compare.add_argument(
        "--latent",
        type=_one_of("--latent", LATENTS),
        metavar="KIND",
        help="bernoulli (the default), or categorical variables of 10 classes",
    )
    compare.add_argument(
        "--latent-size",
        type=_integer("--latent-size", 1, 1000),
        metavar="N",
        help="how many such variables (20); enumeration takes part if they are few",
    )
    compare.add_argument(
        "--estimators",
        nargs="+",
        metavar="NAME",
        help="only these, apart by spaces or commas; all that apply by default",
    )
    compare.add_argument(
        "--steps", type=_integer("--steps", 1, 10**9), metavar="N", help="updates of each training"
    )
    compare.add_argument(
        "--seeds",
        type=_integer("--seeds", 1, _MAX_SEEDS),
        default=_SEEDS,
        metavar="N",
        help=f"how many trainings of each estimator, side by side ({_SEEDS}); from a single one "
        "no verdict is given",
    )
    compare.add_argument(
        "--seed",
        type=_integer("--seed", 0, 2**32 - 1 - _MAX_SEEDS),
        default=0,
        metavar="N",
        help="the first seed, of initial parameters, minibatches and draws (0)",
    )
    compare.add_argument(
        "--data",
        metavar="DIR",
        help="holds MNIST: mnist.npz as keras writes it (~/.keras/datasets), idx files as "
        "torchvision writes them (MNIST/raw), or binarized_mnist.npz; by default the environment "
        "variable GRADEST_DATA",
    )
    compare.add_argument(
        "--out",
        default="gradest-results",
        metavar="DIR",
        help="where a directory is made for the JSON and the pictures of this run "
        "(gradest-results)",
    )
    compare.add_argument(
        "--quick", action="store_true", help="a few dozen steps, to see that everything works"
    )
    table = commands.add_parser(
        "table",
        help="print the table of methods, every cell of it measured",
        description=f"Prints what every estimator is said to do, measured now ({DURATION}). "
        "The exit status is 1 if a measurement and the documentation disagree.",
        allow_abbrev=False,
    )
    return parser, {"compare": compare, "table": table}


def _one_of(option: str, names: Sequence[str]) -> Callable[[str], str]:
    def check(name: str) -> str:
        if name not in names:
            raise ProblemError(methods.unknown(option, name, names))
        return name

    return check


def _integer(option: str, lowest: int, highest: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = None
        if number is None or not lowest <= number <= highest:
            raise ProblemError(
                f"{option}: expected an integer from {lowest} to {highest}, got {text!r}."
            )
        return number

    return convert


if __name__ == "__main__":
    sys.exit(main())
