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
from numpy.typing import NDArray

from lightning_paf import __version__
from lightning_paf.evaluation.evaluate import Evaluation
from lightning_paf.evaluation.evidence.read import KEY, TENSORS, VERSION, Evidence, read
from lightning_paf.evaluation.outcomes import Outcome
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.samples import Samples
from lightning_paf.utils.files import explained, write_whole
from lightning_paf.utils.hashing import sample_fingerprints


def write(
    result: EvaluationResult, path: Path, samples: Samples, *, dataset: str, config: str | None = None
) -> Evidence:
    """Write the evidence of an evaluation atomically.

    One block of images is in memory at a time.

    Args:
        result: Result with at least one sample and all adversarial images.
        path: File to write; its folder is created if it is missing.
        samples: Samples that include those of the evaluation.
        dataset: Name of the data.
        config: Text of the run's configuration; its hash becomes part of the file.

    Returns:
        The evidence, read from the file.

    Raises:
        ValueError: There is no evaluated sample, an adversarial image is missing, or the file cannot be written.
    """
    if len(result.ids) == 0:
        raise ValueError("Evidence must have at least one evaluated sample, got 0. Evaluate some samples first.")
    evaluation = result.evaluation
    assert evaluation is not None
    block = evaluation.block_size
    inputs = [
        sample_fingerprints(*samples.fetch(result.ids[first : first + block]))
        for first in range(0, len(result.ids), block)
    ]
    image = samples.fetch(result.ids[:1])[0].shape[1:]
    fooled = result.ids[result.outcomes == Outcome.FOOLED]
    names = ("adversarial", "ids", "labels", "fooled_by", "outcomes")
    columns: dict[str, NDArray[Any]] = {name: getattr(result, name) for name in names}
    columns["inputs"] = np.concatenate(inputs)
    metadata = _metadata(result, evaluation, dataset, config)
    shapes = {"x_adv": (len(fooled), *image), "sha256": (32,)} | {name: array.shape for name, array in columns.items()}
    parts = {"x_adv": _images(result, fooled), "sha256": []} | {name: [array] for name, array in columns.items()}
    with explained(path, "evidence"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _sealed_parts(metadata, shapes, parts))
    return read(path)


def _metadata(result: EvaluationResult, evaluation: Evaluation, dataset: str, config: str | None) -> dict[str, Any]:
    identity = evaluation.identity.content()
    return {name: identity[name] for name in ("attack", "seed", "block_size", "precision", "network", "code")} | {
        "version": VERSION,
        "dataset": dataset,
        "sub_attacks": [sub_attack.label for sub_attack in result.sub_attacks],
        "weights": identity["model"],
        "config": text_hash(config),
        "versions": library_versions(),
        "total": result.total,
        "flags": dict(result.flags),
    }


def text_hash(text: str | None) -> str:
    """SHA-256 of a text in hexadecimal digits; empty for None."""
    return "" if text is None else hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that the numbers can depend on."""
    own = {"lightning_paf": __version__, "python": platform.python_version()}
    return own | {name: version(name) for name in ("lightning", "numpy", "torch")}


def _images(result: EvaluationResult, fooled: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Yield the adversarial images of the fooled samples, block by block."""
    remaining = fooled
    for ids, x_adv in result.examples():
        if not np.array_equal(ids, remaining[: len(ids)]):
            break
        remaining = remaining[len(ids) :]
        yield x_adv.float().cpu().numpy()
    if len(remaining):
        raise ValueError(
            f"Each of the {len(fooled)} fooled samples must have an adversarial image, got none for {len(remaining)}. "
            "Evaluate again with the same options."
        )


def _sealed_parts(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], parts: Mapping[str, Iterable[NDArray[Any]]]
) -> Iterator[bytes]:
    """Yield the bytes of a safetensors file, followed by their SHA-256.

    The safetensors library can only write tensors that are all in memory.
    """
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
