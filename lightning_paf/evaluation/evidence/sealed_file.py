"""Arrays and a manifest in one safetensors file in which no byte can change unnoticed.

The layout is that of safetensors: eight bytes with the length of the header, the header (JSON: type, shape and place of
every tensor, and one entry of metadata, the manifest), the tensors without gaps. The manifest holds a SHA-256 of every
tensor and of itself. All the rest follows from the manifest: reading builds the header again and compares every byte.
Nothing in the file is executed, and nothing is allocated because the file says so.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from lightning_paf.utils.files import write_whole

_KEY = "manifest"
_CODES = {"I64": "<i8", "F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1"}
_TYPES: Mapping[str, np.dtype[Any]] = MappingProxyType({name: np.dtype(code) for name, code in _CODES.items()})
"""The types that occur, in the order in which safetensors sorts tensors (by type, then by name)."""

_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_MOST_HEADER, _MOST_BYTES = 2**26, 2**33
_LONGEST_NAME, _MOST_DIMENSIONS = 80, 4


def save_sealed(path: Path, tensors: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]) -> None:
    """Write a file, whole or not at all.

    Args:
        path: Its name; the folder is made.
        tensors: By name; int64, float32, float16, int8 or uint8.
        manifest: Plain values; the file's has two entries more, `tensors` and `sha256`.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    listed = {
        name: {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "sha256": hashlib.sha256(array.data).hexdigest(),
        }
        for name, array in arrays.items()
    }
    unsigned = dict(manifest) | {"tensors": listed}
    text = _canonical(unsigned | {"sha256": _digest(unsigned)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, b"".join([_header(text, listed), *(arrays[name].data for name in _in_order(listed))]))


def load_sealed(path: Path, dtypes: Mapping[str, str]) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `save_sealed` wrote, and refuse everything else.

    Args:
        path: The file.
        dtypes: Name and type of every tensor that it must hold, such as `I64` or `U8`.

    Returns:
        The tensors (read-only) and the manifest.

    Raises:
        ValueError: The message begins with the damaged or forged part: `header`, `manifest` or `tensor 'NAME'`.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if size > _MOST_BYTES:
            refuse("header", f"{size} bytes are more than the {_MOST_BYTES} that are read")
        if size < 8 or not 2 <= length <= min(_MOST_HEADER, size - 8):
            refuse("header", f"this is no safetensors file: one of {size} bytes has no header of {length}")
        head += file.read(length)
        header = _parse(head[8:], "header")
        text = _check_header(header, dtypes, size - len(head))
        manifest = _open_manifest(text, header)
        listed = manifest["tensors"]
        if _header(text, listed) != head:
            refuse("header", "its bytes are not those that its content gives")
        return {name: _read_tensor(file, name, listed[name]) for name in _in_order(listed)}, manifest


def refuse(where: str, why: str) -> NoReturn:
    """Raise the error of a file that is not as it must be."""
    raise ValueError(f"{where}: {why}")


def _header(text: str, listed: Mapping[str, Any]) -> bytes:
    """The first bytes of the file, up to the first tensor; safetensors pads them to a multiple of eight."""
    entries: dict[str, Any] = {"__metadata__": {_KEY: text}}
    end = 0
    for name in _in_order(listed):
        begin, end = end, end + _bytes_of(listed[name])
        entries[name] = {
            "dtype": listed[name]["dtype"],
            "shape": listed[name]["shape"],
            "data_offsets": [begin, end],
        }
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def _in_order(listed: Mapping[str, Any]) -> list[str]:
    return sorted(listed, key=lambda name: (list(_TYPES).index(listed[name]["dtype"]), name))


def _bytes_of(entry: Mapping[str, Any]) -> int:
    return int(math.prod(entry["shape"]) * _TYPES[entry["dtype"]].itemsize)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _digest(unsigned: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(unsigned).encode()).hexdigest()


def _parse(raw: bytes | str, where: str) -> dict[str, Any]:
    """JSON of an object, without what only some parsers accept: repeated keys, NaN, infinity."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key occurs twice")
        return found

    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
        found = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        refuse(where, f"no valid JSON ({str(error)[:_LONGEST_NAME]})")
    if not isinstance(found, dict):
        refuse(where, "no JSON object")
    return found


def _check_header(header: dict[str, Any], dtypes: Mapping[str, str], available: int) -> str:
    """Check everything that the header declares against the bytes that are there; return the text of the manifest."""
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or list(metadata) != [_KEY] or not isinstance(metadata[_KEY], str):
        refuse("header", f"the metadata must be one text, named {_KEY}")
    for name in sorted(header.keys() ^ dtypes.keys()):
        what = "is missing" if name in dtypes else "does not belong here"
        refuse("header", f"tensor {name[:_LONGEST_NAME]!r} {what}")
    places = [(*_check_entry(name, header[name], dtypes[name], available), name) for name in dtypes]
    expected = 0
    for begin, end, name in sorted(places):
        if begin != expected:
            what = "overlaps with another" if begin < expected else "begins after a gap"
            refuse("header", f"tensor {name!r} {what}")
        expected = end
    if expected != available:
        refuse("header", f"{available - expected} bytes follow the last tensor")
    text: str = metadata[_KEY]
    return text


def _check_entry(name: str, entry: Any, dtype: str, available: int) -> tuple[int, int]:
    """Where a tensor begins and ends."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        refuse("header", f"tensor {name!r} must have dtype, shape and data_offsets")
    if entry["dtype"] != dtype:
        refuse("header", f"tensor {name!r} must be {dtype}, but is {str(entry['dtype'])[:_LONGEST_NAME]}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_sizes(shape) or len(shape) > _MOST_DIMENSIONS:
        refuse("header", f"tensor {name!r} has no valid shape")
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        refuse("header", f"tensor {name!r} has no valid offsets")
    if offsets[1] > available:
        refuse("header", f"tensor {name!r} reaches beyond the end of the file")
    if offsets[1] - offsets[0] != _bytes_of(entry):
        refuse("header", f"tensor {name!r} has a shape that does not fill its bytes")
    return offsets[0], offsets[1]


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _open_manifest(text: str, header: Mapping[str, Any]) -> dict[str, Any]:
    """Parse the manifest, and check it against its own hash and against the header."""
    manifest = _parse(text, "manifest")
    unsigned = {key: value for key, value in manifest.items() if key != "sha256"}
    try:
        intact = _digest(unsigned) == manifest.get("sha256")
        canonical = _canonical(manifest) == text
    except (ValueError, RecursionError):
        refuse("manifest", "it holds a number that is not finite, or is nested too deeply")
    if not intact:
        refuse("manifest", "its SHA-256 is not that of its content")
    if not canonical:
        refuse("manifest", "it is not written in the canonical form")
    listed = manifest.get("tensors")
    if not isinstance(listed, dict) or listed.keys() != header.keys():
        refuse("manifest", "it does not list the tensors of the file")
    for name, entry in listed.items():
        declared = {key: header[name][key] for key in ("dtype", "shape")}
        if not isinstance(entry, dict) or entry != declared | {"sha256": entry.get("sha256")}:
            refuse("manifest", f"tensor {name!r} is not described as in the header")
    return manifest


def _read_tensor(file: IO[bytes], name: str, entry: Mapping[str, Any]) -> NDArray[Any]:
    raw = file.read(_bytes_of(entry))
    if hashlib.sha256(raw).hexdigest() != entry["sha256"]:
        refuse(f"tensor {name!r}", "its SHA-256 is not the one in the manifest")
    return np.frombuffer(raw, _TYPES[entry["dtype"]]).reshape(entry["shape"])
