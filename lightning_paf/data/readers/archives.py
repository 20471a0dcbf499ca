"""Open published files of images and labels without loading them.

Layouts: `.npz` with `image` and `label` (DeepMind's DDPM sets, the EDM sets) or `X` and `Y` (cifar5m), the pickle of
TI-500K (Carmon et al. 2019) with `data` and `extrapolated_targets`, and parquet files with the bytes of encoded images.
"""

import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.readers.npy import Archive, Column, choose_keys, read_header, read_rows, with_channels
from lightning_paf.data.readers.parquet import open_parquet

NPZ_KEYS = (("image", "label"), ("X", "Y"))
UNLABELLED = -1
"""Label of the images of an npz file with `image` only, for `predict`."""
_MOST_TIMES, _LARGEST_SMALL = 200, 2**28  # a few MB that unpack to GB would fill memory or disk
PICKLE_KEYS = (("data", "extrapolated_targets"),)


def open_archive(path: Path) -> AbstractContextManager[Archive]:
    """Open a `.npz`, `.pickle`, `.pkl` or `.parquet` file.

    Raises:
        ValueError: The file does not exist, is empty, or has another suffix. Inside the context: it is damaged, or
            holds other keys.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file. Check the path; relative paths start at the working folder.")
    if path.suffix not in OPENERS:
        raise ValueError(f"{path}: the suffix must be one of {', '.join(OPENERS)}, got {path.suffix or 'none'}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes). Download or write it again.")
    return OPENERS[path.suffix](path)


def open_part(root: Path, part: str) -> AbstractContextManager[Archive]:
    """Open one part of a dataset in npz files.

    This is `PART.npz` of a folder, or the arrays PART_images and PART_labels of one file, as those of MedMNIST.

    Raises:
        ValueError: As `open_archive`.
    """
    if root.is_file():
        return _open_npz(root, ((f"{part}_images", f"{part}_labels"),))
    return open_archive(root / f"{part}.npz")


def has_npz_part(root: Path, part: str) -> bool:
    """Check whether `open_part` finds a part; true for a damaged file."""
    try:
        with zipfile.ZipFile(root) as archive:
            return f"{part}_images.npy" in archive.namelist()
    except zipfile.BadZipFile:
        return True
    except OSError:
        return (root / f"{part}.npz").is_file()


@contextmanager
def _open_npz(path: Path, accepted: Sequence[tuple[str, str]] = NPZ_KEYS) -> Iterator[Archive]:
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name.removesuffix(".npy") for name in archive.namelist()]
            if "image" in found and "label" not in found:
                image = _npz_column(path, archive, "image")
                yield Archive(image, _unlabelled(image.shape[0]))
                return
            keys = choose_keys(path, "arrays", found, accepted)
            yield Archive(*(_npz_column(path, archive, key) for key in keys))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: damaged, or not an npz file ({error}). Download or write it again.") from error


def _npz_column(path: Path, archive: zipfile.ZipFile, key: str) -> Column:
    member = f"{key}.npy"
    info = archive.getinfo(member)
    if info.file_size > max(_MOST_TIMES * info.compress_size, _LARGEST_SMALL):
        raise ValueError(
            f"{path}: {key} must be compressed at most {_MOST_TIMES}-fold, as images are, got {info.file_size:,} bytes "
            f"in {info.compress_size:,}. Save it with np.savez, which does not compress."
        )
    with archive.open(member) as stream:
        shape, fortran_order, dtype = read_header(stream)
    if fortran_order and len(shape) > 1:
        raise ValueError(f"{path}: {key} must be in C order, got Fortran order. Save np.ascontiguousarray({key}).")
    shape = with_channels(shape)

    def chunks() -> Iterator[NDArray[Any]]:
        with archive.open(member) as stream:
            read_header(stream)
            yield from read_rows(stream, shape, dtype)

    return Column(shape, dtype, chunks)


def _unlabelled(count: int) -> Column:
    """Return `UNLABELLED` for each image."""
    return Column((count,), np.dtype(np.int64), lambda: iter([np.full(count, UNLABELLED, np.int64)]))


@contextmanager
def _open_pickle(path: Path) -> Iterator[Archive]:
    warnings.warn(
        f"{path.name} is a pickle, and pickles can run code when they are read. Only plain arrays are accepted here, "
        "and anything else is refused. Still, use files from trusted sources only, and prefer npz.",
        stacklevel=3,
    )
    with path.open("rb") as stream:
        try:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
        except Exception as error:  # a damaged pickle can raise any exception
            raise ValueError(f"{path}: not a readable pickle of arrays ({error}). Convert it to npz.") from error
    found = [str(key) for key in content] if isinstance(content, dict) else [type(content).__name__]
    image, label = (np.asarray(content[key]) for key in choose_keys(path, "dict entries", found, PICKLE_KEYS))
    yield Archive(
        Column(image.shape, image.dtype, lambda: iter([image])),
        Column(label.shape, label.dtype, lambda: iter([label])),
    )


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler of numpy arrays and scalars only."""

    allowed = frozenset(
        {
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # how protocol 2 writes the bytes of an array
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """Find an allowed name; numpy 1's modules are looked up in numpy 2."""
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it contains {module}.{name}")
        return super().find_class(module, name)


OPENERS: dict[str, Callable[[Path], AbstractContextManager[Archive]]] = {
    ".npz": _open_npz,
    ".pickle": _open_pickle,
    ".pkl": _open_pickle,
    ".parquet": open_parquet,
}
