"""Binary images: the digits that come with scikit-learn, and MNIST."""

import dataclasses
import gzip
import itertools
import math
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from . import ProblemError

MNIST_FILE = "binarized_mnist.npz"
_MNIST_PIXELS = 784
# Of the splits, shuffles and binarized pixels: the same images for every run, whatever its seed.
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of 0s and 1s, uint8, one per row.

    Attributes:
      name: of the data.
      train: to be trained with.
      test: to be judged by.
      source: where they are from, and how they became 0s and 1s.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    source: str = ""


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


# ---- MNIST ---------------------------------------------------------------------------------

_IDX = {"train": "train-images", "test": "t10k-images"}
_IDX_ENDINGS = [f"{dot}idx3-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
_IDX_FOLDERS = ("", "raw", "MNIST/raw")
_GREY_FILE = "mnist.npz"
_GREY_ARRAYS = {"train": ("x_train", "train_images"), "test": ("x_test", "test_images")}

WHERE_FROM = (
    "mnist.npz as keras writes it (~/.keras/datasets), train-images-idx3-ubyte and "
    "t10k-images-idx3-ubyte, with or without .gz, as torchvision writes them (DIR/MNIST/raw), or "
    f"{MNIST_FILE} (train and test, bits packed by numpy.packbits)"
)


def load_mnist(where: str | pathlib.Path | None) -> Images:
    """MNIST from a file, or from a directory that holds one, in any of the common formats.

    Binarized images are taken before grey ones. Of those, each pixel becomes 1 with its grey level
    as the probability, once and for all, as those of the fixed-binarized MNIST did.

    Returns:
      The images, in an order that does not depend on their class: any first part of a split is
      a fair subset.

    Raises:
      ProblemError: if there is no file, or it cannot be read, or holds something else.
    """
    if where is None:
        raise ProblemError(
            f"--data: expected a directory that holds {WHERE_FROM}, got nothing. Name it with "
            "--data or the environment variable GRADEST_DATA."
        )
    path = pathlib.Path(where).expanduser()
    directory = path.parent if path.is_file() else path
    is_wanted = lambda name: path.is_dir() or path.name == name
    if is_wanted(MNIST_FILE) and (directory / MNIST_FILE).is_file():
        return load_binarized_mnist(directory)
    archives = [path] if path.suffix == ".npz" else [path / _GREY_FILE, path / "grey_mnist.npz"]
    for archive in archives:
        if archive.is_file():
            return _binarized(_grey_arrays(archive), archive)
    folders = [directory / folder for folder in _IDX_FOLDERS]
    for folder, ending in itertools.product(folders, _IDX_ENDINGS):
        files = {split: folder / (stem + ending) for split, stem in _IDX.items()}
        missing = [str(file) for file in files.values() if not file.is_file()]
        if not missing:
            return _binarized({split: _read_idx(file) for split, file in files.items()}, folder)
        if len(missing) < len(files):
            raise ProblemError(f"--data: expected {missing[0]} beside the other file.")
    raise ProblemError(
        f"--data: expected a directory that holds {WHERE_FROM}, got {str(where)!r}, which does "
        "not. Name the right one with --data or the environment variable GRADEST_DATA."
    )


def load_binarized_mnist(directory: str | pathlib.Path) -> Images:
    """Fixed-binarized MNIST from `binarized_mnist.npz`, each split shuffled.

    Args:
      directory: holds the file, whose arrays `train`, `valid` and `test` are rows of 784 bits
        packed by `numpy.packbits` along axis 1. The validation split is not used.

    Raises:
      ProblemError: if the file is missing, cannot be read, or holds something else.
    """
    path = pathlib.Path(directory) / MNIST_FILE
    packed = _arrays(path, {"train": ("train",), "test": ("test",)})
    unpacked = {split: _unpack(path, split, bits) for split, bits in packed.items()}
    return _shuffled(unpacked, np.random.default_rng(_SEED), "Images: binarized, as in the file.")


def _binarized(grey: Mapping[str, np.ndarray], path: pathlib.Path) -> Images:
    rng, images = np.random.default_rng(_SEED), {}
    for split, rows in grey.items():
        flat = rows.reshape(len(rows), -1) if rows.ndim > 1 else rows
        if flat.dtype != np.uint8 or flat.shape[1:] != (_MNIST_PIXELS,) or not len(flat):
            raise ProblemError(
                f"{path}: expected the {split} images to be uint8 of shape (images, 28, 28) or "
                f"(images, {_MNIST_PIXELS}), got {rows.dtype} of shape {rows.shape}."
            )
        # 255 is always lit, and 0 never.
        images[split] = (rng.integers(255, size=flat.shape, dtype=np.uint8) < flat).astype(np.uint8)
    source = "Images: each pixel lit with its grey level as the probability, once and for all."
    return _shuffled(images, rng, source)


def _shuffled(images: Mapping[str, np.ndarray], rng: np.random.Generator, source: str) -> Images:
    shuffled = {split: rows[rng.permutation(len(rows))] for split, rows in images.items()}
    return Images("mnist", shuffled["train"], shuffled["test"], source)


def _grey_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    return _arrays(path, _GREY_ARRAYS)


def _arrays(path: pathlib.Path, names: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """The arrays of an archive, each by the first of its names that is there."""
    if not path.is_file():
        raise ProblemError(
            f"--data: expected a directory that holds {path.name}, got {str(path.parent)!r}, which "
            "does not. Name the right one with --data or the environment variable GRADEST_DATA."
        )
    if not zipfile.is_zipfile(path):
        raise ProblemError(
            f"{path}: expected a file written by numpy.savez, got something else, or a part of "
            "one. Fetch or write it anew."
        )
    try:
        with np.load(path) as file:
            found = {split: [n for n in of if n in file] for split, of in names.items()}
            if not all(found.values()):
                expected = " and ".join(" or ".join(of) for of in names.values())
                raise ProblemError(
                    f"{path}: expected the arrays {expected}, got {', '.join(file) or 'none'}."
                )
            return {split: file[of[0]] for split, of in found.items()}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ProblemError(
            f"{path}: expected a file written by numpy.savez, got one that is damaged "
            f"({type(error).__name__}). Fetch or write it anew."
        ) from None


def _read_idx(path: pathlib.Path) -> np.ndarray:
    """Images of an idx file: zero, zero, the type, the rank, the sizes, and the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ProblemError(
            f"{path}: expected a gzip file, got one that is damaged ({type(error).__name__}). "
            "Fetch it anew."
        ) from None
    magic, header = b"\0\0\x08\x03", 16
    sizes = (
        [int(size) for size in np.frombuffer(raw[4:header], ">u4")] if len(raw) >= header else []
    )
    if raw[:4] != magic or len(raw) - header != math.prod(sizes):
        raise ProblemError(
            f"{path}: expected an idx file of images, bytes in three dimensions, got something "
            "else, or a part of one. Fetch it anew."
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(sizes)


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
