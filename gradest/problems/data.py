"""Binary images: the digits that come with scikit-learn, and fixed-binarized MNIST."""

import dataclasses
import pathlib
import zipfile
import zlib

import numpy as np

from . import ProblemError

MNIST_FILE = "binarized_mnist.npz"
_MNIST_PIXELS = 784
# Of the splits and shuffles: the same images for every run, whatever its seed.
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of 0s and 1s, uint8, one per row."""

    name: str
    train: np.ndarray
    test: np.ndarray


def load_digits() -> Images:
    """The 1,797 digits of 8 x 8 pixels, a pixel being 1 from grey level 8 (of 16) on.

    One fifth, drawn once and for all, is the test split.
    """
    from sklearn import datasets

    grey = np.asarray(datasets.load_digits(return_X_y=True)[0])
    images = (grey >= 8).astype(np.uint8)
    images = images[np.random.default_rng(_SEED).permutation(len(images))]
    num_test = len(images) // 5
    return Images("digits", images[num_test:], images[:num_test])


def load_binarized_mnist(directory: str | pathlib.Path) -> Images:
    """Fixed-binarized MNIST from `binarized_mnist.npz`, each split shuffled.

    Args:
      directory: holds the file, whose arrays `train`, `valid` and `test` are rows of 784 bits
        packed by `numpy.packbits` along axis 1. The validation split is not used.

    Returns:
      The images, in an order that does not depend on their class: any first part of a split is
      a fair subset.

    Raises:
      ProblemError: if the file is missing, cannot be read, or holds something else.
    """
    path = pathlib.Path(directory) / MNIST_FILE
    if not path.is_file():
        raise ProblemError(
            f"--data: expected a directory that holds {MNIST_FILE}, got {str(directory)!r}, which "
            "does not. Name the right one with --data or the environment variable GRADEST_DATA."
        )
    if not zipfile.is_zipfile(path):
        raise ProblemError(
            f"{path}: expected a file written by numpy.savez, got something else, or a part of "
            "one. Fetch or write it anew."
        )
    try:
        with np.load(path) as file:
            packed = {split: file[split] for split in ("train", "test")}
    except KeyError as error:
        raise ProblemError(
            f"{path}: expected the arrays train, valid and test: {error.args[0]}."
        ) from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ProblemError(
            f"{path}: expected a file written by numpy.savez, got one that is damaged "
            f"({type(error).__name__}). Fetch or write it anew."
        ) from None
    rng = np.random.default_rng(_SEED)
    unpacked = {split: _unpack(path, split, bits) for split, bits in packed.items()}
    shuffled = {split: rows[rng.permutation(len(rows))] for split, rows in unpacked.items()}
    return Images("mnist", shuffled["train"], shuffled["test"])


def _unpack(path: pathlib.Path, split: str, packed: np.ndarray) -> np.ndarray:
    columns = _MNIST_PIXELS // 8
    if (
        packed.dtype != np.uint8
        or packed.ndim != 2
        or packed.shape[1] != columns
        or not len(packed)
    ):
        raise ProblemError(
            f"{path}: expected {split} to be uint8 of shape (images, {columns}), which is "
            f"{_MNIST_PIXELS} pixels through numpy.packbits along axis 1, got {packed.dtype} of "
            f"shape {packed.shape}."
        )
    return np.unpackbits(packed, axis=1)
