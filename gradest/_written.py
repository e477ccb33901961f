"""Who wrote an equation of a program, and where: told by the files of its traceback.

A user's code, gradest, JAX and other libraries write into one program, and a function that was
called in it has equations of its own.
"""

import itertools
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

JAX = os.path.dirname(jax.__file__) + os.sep
_OWN = os.path.dirname(__file__) + os.sep
_LIBRARIES = (JAX, _OWN)
# Where Python keeps what is installed: in Debian's, and Colab's, under a name of its own.
_INSTALLED = ("site-packages", "dist-packages", sysconfig.get_paths()["stdlib"] + os.sep)
_STAGING = os.path.join(_OWN, "_transform", "expectation.py")
_SAMPLER = os.path.join(_OWN, "_sampler.py")
# Where it is drawn from a distribution, whoever asks for it.
_SAMPLING = tuple(
    os.path.join(_OWN, part)
    for part in ("distributions" + os.sep, "_derivatives" + os.sep, "_random.py", "_calls.py")
)
# Where a distribution of anybody's is asked for a draw.
_DRAWING = {os.path.join(_OWN, "distributions", f"{name}.py") for name in ("base", "_joint")}
# Whose equations stand in a loss as if it had them: `_jaxpr.stop_equation`.
_FOR_THE_LOSS = os.path.join(_OWN, "_jaxpr.py")

# ---- Of a function that was staged ---------------------------------------------------------


def file_of(jaxpr: Any) -> str:
    """Of the function that was staged; empty if it is not known."""
    info = getattr(getattr(jaxpr, "jaxpr", jaxpr), "debug_info", None)
    return getattr(info, "func_filename", None) or ""


def is_of_jax_or_gradest(jaxpr: Any) -> bool:
    """Whether a function of JAX's or gradest's was staged, and not a user's of the same name."""
    return is_jax_or_own_file(file_of(jaxpr))


def is_jax_or_own_file(file: str) -> bool:
    """Whether a file is one of JAX's or gradest's."""
    return file.startswith(_LIBRARIES)


def is_library_file(file: str) -> bool:
    """Whether a file is none of the user's own."""
    return is_jax_or_own_file(file) or any(place in file for place in _INSTALLED)


# ---- Of an equation ------------------------------------------------------------------------


def frames(eqn: Any) -> Iterable[Any]:
    """Of its traceback, from the innermost function out."""
    return getattr(getattr(eqn.source_info, "traceback", None), "frames", None) or ()


def files_of(eqn: Any) -> Iterator[str]:
    """The files from which `eqn` was written, from the innermost function out to what is staged."""
    # Older versions of JAX add who had it staged, which may have been for another call.
    is_within = lambda frame: not frame.function_name.startswith("trace_to_jaxpr")
    return (frame.file_name for frame in itertools.takewhile(is_within, frames(eqn)))


def line_of(eqn: Any, is_skipped: Callable[[str], bool] = is_jax_or_own_file) -> str:
    """Where in the user's code `eqn` was written, as ' (at file:line)', or nothing."""
    for frame in frames(eqn):
        if not is_skipped(frame.file_name):
            return f" (at {frame.file_name}:{frame.line_num})"
    return ""


def is_own(eqn: Any) -> bool:
    """Whether `eqn` was written by gradest or in drawing from a distribution, of anybody's."""
    files = [file for file in _up_to_the_loss([eqn]) if not file.startswith(JAX)]
    by_gradest = bool(files) and files[0].startswith(_OWN) and files[0] != _FOR_THE_LOSS
    return by_gradest or not _DRAWING.isdisjoint(files)


def is_estimators(eqns: Iterable[Any]) -> bool:
    """Whether an equation was written by an estimator, gradest's or a user's, not in the loss.

    Where a user draws from a distribution it stands in the loss.

    Args:
      eqns: the equation, and the calls, branches and loops that it is in, from the innermost out.
    """
    of_user = False
    for file in _up_to_the_loss(eqns):
        if not is_library_file(file):
            of_user = True
        elif file.startswith(_OWN) and not file.startswith(_SAMPLING):
            return not of_user or file == _SAMPLER  # which calls a user's estimator, but no cost
    return False


def _up_to_the_loss(eqns: Iterable[Any]) -> Iterator[str]:
    """The files from which an equation was written, but for who staged the loss that it is in."""
    in_loss = lambda eqn: itertools.takewhile(lambda file: file != _STAGING, files_of(eqn))
    return itertools.chain.from_iterable(map(in_loss, eqns))


# ---- Of what runs now ----------------------------------------------------------------------


def user_line() -> str:
    """Where in the user's code we are, as ' (at file:line)', or nothing."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not is_jax_or_own_file(file):
            return f" (at {file}:{frame.f_lineno})"
        frame = frame.f_back
    return ""
