"""Writer of evidence files."""

import hashlib
import json
import math
import platform
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_paf import __version__
from lightning_paf.evaluation.evidence.read import KEY, TENSORS, VERSION, Evidence, read
from lightning_paf.evaluation.judgement import Judgement
from lightning_paf.evaluation.result import Verdict
from lightning_paf.evaluation.samples import Samples
from lightning_paf.utils.files import explained, write_whole
from lightning_paf.utils.hashing import sample_fingerprints


def write(result: Judgement, path: Path, samples: Samples, *, dataset: str, config: str | None = None) -> Evidence:
    """Write the evidence of an evaluation atomically. Images are in memory a block at a time.

    Args:
        result: Of one sample at least, with its adversarial images.
        path: File to write; its folder is made if it is missing.
        samples: The samples of the evaluation, or more.
        dataset: Name of the data.
        config: Text of the run's configuration; its hash becomes part of the file.

    Returns:
        The evidence, read from the file.

    Raises:
        ValueError: There is no evaluated sample, an adversarial image is missing, or the file cannot be written.
    """
    if len(result.ids) == 0:
        raise ValueError("Evidence must have at least one evaluated sample, got 0. Evaluate some samples first.")
    identity, outcomes = result.header, result.verdicts
    inputs, image = _hash_inputs(result.ids, samples, identity.block_size)
    fooled = result.ids[outcomes == Verdict.BROKEN]
    columns: dict[str, NDArray[Any]] = {
        "adversarial": result.adversarial,
        "ids": result.ids,
        "labels": result.labels,
        "fooled_by": result.broken_by,
        "inputs": inputs,
        "outcomes": outcomes,
    }
    metadata = {
        "version": VERSION,
        "attack": identity.content()["attack"],
        "seed": identity.seed,
        "block_size": identity.block_size,
        "precision": identity.precision,
        "dataset": dataset,
        "sub_attacks": [sub_attack.label for sub_attack in result.stages],
        "weights": identity.model,
        "network": identity.network,
        "code": identity.code,
        "config": text_hash(config),
        "versions": library_versions(),
        "total": result.total,
    }
    shapes = {name: column.shape for name, column in columns.items()} | {
        "x_adv": (len(fooled), *image),
        "sha256": (32,),
    }
    parts = {name: [column] for name, column in columns.items()} | {"x_adv": _images(result, fooled), "sha256": []}
    with explained(path, "evidence"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _sealed_parts(metadata, shapes, parts))
    return read(path)


def text_hash(text: str | None) -> str:
    """SHA-256 of a text in hexadecimal digits; empty for None."""
    return "" if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions that the numbers may depend on besides the code."""
    return {
        "lightning_paf": __version__,
        "torch": str(torch.__version__),
        "lightning": version("lightning"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _hash_inputs(ids: NDArray[np.int64], samples: Samples, block: int) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Hashes (n, 32) of the clean images with their labels, and the shape (C, H, W) of the images."""
    parts = []
    for first in range(0, len(ids), block):
        x, y = samples.fetch(ids[first : first + block])
        parts.append(sample_fingerprints(x, y))
    return np.concatenate(parts), tuple(x.shape[1:])


def _images(result: Judgement, fooled: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Adversarial images of the fooled samples, block by block."""
    done = 0
    for ids, x_adv in chain(result.examples(), [(fooled[:0], torch.empty(0))]):
        done += len(ids)
        if not np.array_equal(ids, fooled[done - len(ids) : done]):
            break
        yield x_adv.float().cpu().numpy()
    if done != len(fooled):
        raise ValueError("Every fooled sample must have an adversarial image. Evaluate again with the same options.")


def _sealed_parts(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], parts: Mapping[str, Iterable[NDArray[Any]]]
) -> Iterator[bytes]:
    """Bytes of a safetensors file. The library writes only files whose tensors are all in memory."""
    header: dict[str, Any] = {"__metadata__": {KEY: json.dumps(metadata, sort_keys=True)}}
    end = 0
    for name, (dtype, kind) in TENSORS.items():
        begin, end = end, end + math.prod(shapes[name]) * np.dtype(kind).itemsize
        header[name] = {"dtype": dtype, "shape": shapes[name], "data_offsets": [begin, end]}
    head = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    content = (np.asarray(part, kind).tobytes() for name, (_, kind) in TENSORS.items() for part in parts[name])
    digest = hashlib.sha256()
    for chunk in chain([len(head).to_bytes(8, "little"), head], content):
        digest.update(chunk)
        yield chunk
    yield digest.digest()
