"""Parquet files of encoded images, the format of datasets on Hugging Face."""

import importlib.util
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.data.readers.npy import CHUNK_BYTES, Archive, Column, choose_keys

KEYS = (("image", "label"), ("img", "label"), ("img", "fine_label"))  # the latter two: CIFAR-10, CIFAR-100
LABELS_AT_ONCE = 2**20
MODES = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB"}  # a palette holds colours


@contextmanager
def open_parquet(path: Path) -> Iterator[Archive]:
    """Open a parquet file of images and labels.

    Columns are `image` (binary, or a struct with `bytes`) and `label`, or those of CIFAR on Hugging Face. Images are
    decoded as they are read, some megabytes at a time. All must have the size and channels of the first.

    Raises:
        ValueError: pyarrow is not installed, or (also while the file is read) the file is damaged or has other content.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"{path}: parquet files need pyarrow, not installed here. Run pip install 'lightning-paf[parquet]'."
        )
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error
    with file:
        if file.metadata.num_rows == 0:
            raise ValueError(f"{path}: the file must hold at least one image, got none. Download or write it again.")
        image, label = choose_keys(path, "columns", file.schema_arrow.names, KEYS)
        first = next(_images(path, file, image, None))[0]
        label_type = np.dtype(file.schema_arrow.field(label).type.to_pandas_dtype())
        rows = file.metadata.num_rows
        yield Archive(
            Column((rows, *first.shape), first.dtype, lambda: _images(path, file, image, first)),
            Column((rows,), label_type, lambda: _labels(path, file, label)),
        )


def _images(path: Path, file: Any, column: str, like: NDArray[np.uint8] | None) -> Iterator[NDArray[np.uint8]]:
    """Decode images of the size of `like` in chunks (n, H, W, C); one by one if None."""
    at_once = 1 if like is None else max(1, CHUNK_BYTES // like.nbytes)
    row = 0
    for values in _batches(path, file, column, at_once):
        images = []
        for content in _bytes_of(path, values):
            images.append(_decode(content, like, f"{path}, row {row}"))
            row += 1
        yield np.stack(images)


def _labels(path: Path, file: Any, column: str) -> Iterator[NDArray[Any]]:
    for values in _batches(path, file, column, LABELS_AT_ONCE):
        if values.null_count:
            raise ValueError(f"{path}: every image must have a label, got {values.null_count} without. Remove them.")
        yield values.to_numpy(zero_copy_only=False)


def _batches(path: Path, file: Any, column: str, rows: int) -> Iterator[Any]:
    """Values of one column, `rows` at a time."""
    import pyarrow

    try:
        for batch in file.iter_batches(rows, columns=[column], use_threads=False):
            yield batch.column(0)
    except (pyarrow.ArrowException, OSError) as error:
        raise _damaged(path, error) from error


def _bytes_of(path: Path, values: Any) -> list[bytes | None]:
    import pyarrow

    kind = values.type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        values = values.field("bytes")
    if not (pyarrow.types.is_binary(values.type) or pyarrow.types.is_large_binary(values.type)):
        raise ValueError(
            f"{path}: images must be the bytes of image files, got {kind}. "
            "Store them as binary, or as a struct with the field `bytes`."
        )
    content: list[bytes | None] = values.to_pylist()
    return content


def _decode(content: bytes | None, like: NDArray[np.uint8] | None, where: str) -> NDArray[np.uint8]:
    """Decode an image to (H, W, C), grey ones to RGB if `like` is RGB."""
    from PIL import Image

    if content is None:
        raise ValueError(
            f"{where}: images must be stored as bytes, got none. Store the images in the file, not their paths."
        )
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{where}: not a readable image ({error}). Download the file again, or remove the row."
        ) from error
    mode = MODES.get(image.mode)
    if mode is None:
        raise ValueError(f"{where}: images must be grey or RGB with 8 bits, got {image.mode}. Convert it.")
    if like is not None and like.shape[-1] == 3:
        mode = "RGB"
    pixels = np.asarray(image.convert(mode), np.uint8)
    pixels = pixels[..., None] if mode == "L" else pixels
    if like is not None and pixels.shape != like.shape:
        raise ValueError(
            f"{where}: images must have (H, W, C) = {like.shape}, the shape of the first one, got {pixels.shape}. "
            "Resize or convert them."
        )
    return pixels


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: damaged, or not a parquet file ({error}). Download or write it again.")
