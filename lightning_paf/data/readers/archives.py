"""Open the files that image sets are published in, without loading them.

Layouts: `.npz` with `image` and `label` (DeepMind's DDPM sets, the EDM sets) or `X` and `Y` (cifar5m), the pickle of
TI-500K (Carmon et al. 2019) with `data` and `extrapolated_targets`, and parquet files with the bytes of encoded images.
"""

import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.readers.columns import Archive, Column
from lightning_paf.data.readers.npy import read_header, read_rows
from lightning_paf.data.readers.parquet import open_parquet

NPZ_KEYS = (("image", "label"), ("X", "Y"))
PICKLE_KEYS = ("data", "extrapolated_targets")


def open_archive(path: Path) -> AbstractContextManager[Archive]:
    """Open a `.npz`, `.pickle`, `.pkl` or `.parquet` file.

    Raises:
        ValueError: There is no such file, it is empty, or it is of another kind. Inside the context: it is damaged, or
            holds other keys.
    """
    if not path.is_file():
        raise ValueError(
            f"{path}: there is no such file. Check the path; relative ones start at the working directory."
        )
    if path.suffix not in OPENERS:
        raise ValueError(f"{path}: a {path.suffix or 'nameless'} file is not known. Known: {', '.join(OPENERS)}.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty (0 bytes). Download or write it again.")
    return OPENERS[path.suffix](path)


@contextmanager
def _open_npz(path: Path) -> Iterator[Archive]:
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name.removesuffix(".npy") for name in archive.namelist()]
            image, label = _choose_keys(path, found)
            yield Archive(_npz_column(path, archive, image), _npz_column(path, archive, label))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: damaged, or not an npz file ({error}). Download or write it again.") from error


def _choose_keys(path: Path, found: list[str]) -> tuple[str, str]:
    for keys in NPZ_KEYS:
        if set(keys) <= set(found):
            return keys
    accepted = " or ".join(f"{image} + {label}" for image, label in NPZ_KEYS)
    raise ValueError(f"{path}: needs the arrays {accepted}, but holds {', '.join(found) or 'none'}. Rename them.")


def _npz_column(path: Path, archive: zipfile.ZipFile, key: str) -> Column:
    member = f"{key}.npy"
    with archive.open(member) as stream:
        shape, fortran_order, dtype = read_header(stream)
    if fortran_order and len(shape) > 1:
        raise ValueError(f"{path}: {key} is stored in Fortran order. Save np.ascontiguousarray({key}) instead.")

    def chunks() -> Iterator[NDArray[Any]]:
        with archive.open(member) as stream:
            read_header(stream)
            yield from read_rows(stream, shape, dtype)

    return Column(shape, dtype, chunks)


@contextmanager
def _open_pickle(path: Path) -> Iterator[Archive]:
    warnings.warn(
        f"{path.name} is a pickle: reading one runs the code it contains. Only plain arrays are accepted here, and "
        "anything else in it is refused; still, use files from sources you trust, and prefer npz.",
        stacklevel=3,
    )
    with path.open("rb") as stream:
        try:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
        except Exception as error:  # a damaged pickle fails in any way it likes
            raise ValueError(f"{path}: not a readable pickle of arrays ({error}). Convert it to npz.") from error
    found = list(content) if isinstance(content, dict) else [type(content).__name__]
    if not set(PICKLE_KEYS) <= set(found):
        raise ValueError(
            f"{path}: needs a dict with {' + '.join(PICKLE_KEYS)}, but holds {', '.join(map(str, found))}."
        )
    image, label = (_array_column(np.asarray(content[key])) for key in PICKLE_KEYS)
    yield Archive(image, label)


def _array_column(array: NDArray[Any]) -> Column:
    return Column(array.shape, array.dtype, lambda: iter([array]))


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuild numpy arrays and scalars, and nothing else."""

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
        """Look a name up, in numpy 2's modules where the file was written by numpy 1."""
        module = module.replace("numpy.core.", "numpy._core.")
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


OPENERS: dict[str, Callable[[Path], AbstractContextManager[Archive]]] = {
    ".npz": _open_npz,
    ".pickle": _open_pickle,
    ".pkl": _open_pickle,
    ".parquet": open_parquet,
}
