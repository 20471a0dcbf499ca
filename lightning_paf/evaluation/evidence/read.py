"""Format of an evidence file, and its reader."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lightning_paf.evaluation.outcomes import Outcome
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.utils.files import explained
from lightning_paf.utils.radius import radius_from_text

SUFFIX, KEY, VERSION = ".evidence.safetensors", "lightning_paf evidence", 1
_OLD_SUFFIX, _OLD_KEY = ".receipt.safetensors", "manifest"

TENSORS: Mapping[str, tuple[str, type[np.generic]]] = {
    "adversarial": ("I64", np.int64),
    "ids": ("I64", np.int64),
    "labels": ("I64", np.int64),
    "x_adv": ("F32", np.float32),
    "fooled_by": ("I8", np.int8),
    "inputs": ("U8", np.uint8),
    "outcomes": ("U8", np.uint8),
    "sha256": ("U8", np.uint8),
}
"""Types of the tensors, in the order of safetensors.

The last one is the SHA-256 of all bytes before it."""

_FIELDS: Mapping[str, type] = {
    **dict.fromkeys(("version", "seed", "block_size", "total"), int),
    **dict.fromkeys(("precision", "dataset", "config", "weights", "network", "code"), str),
    **dict.fromkeys(("attack", "versions"), dict),
    "sub_attacks": list,
}
_EPS = re.compile(r"[0-9.]{1,40}(e-?[0-9]{1,3})?(/[0-9]{1,40})?")
_MAX_BYTES, _MAX_SAMPLES, _MAX_CLASSES, _MAX_METADATA, _MAX_DEPTH = 2**36, 2**24, 2**15, 2**20, 32

_SLACK: Mapping[str, tuple[float, float]] = {"linf": (2**-24, 0.0), "l2": (0.0, 1e-6), "l1": (0.0, 1e-6)}
"""Tolerated excess over eps, absolute and relative.

float32 rounds a pixel near 1 by up to 2^-24, and a norm by more."""

Images = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Content of an evidence file. All arrays are in the order of the evaluation.

    Attributes:
        metadata: `attack` (description with `norm`, `eps` and `eps_value`), `seed`, `block_size`, `precision`,
            `dataset`, `sub_attacks` (labels, first `clean`), `weights`, `network` and `code` (fingerprints), `config`
            (SHA-256 of the text; empty if there was none), `versions` of libraries, `total` (samples requested),
            `flags` (signs of an unreliable result).
        ids: Indices in the dataset, (n,) int64.
        labels: (n,) int64.
        adversarial: Predicted class of the adversarial image if there is one, else of the clean image; -1 if the logits
            are not finite; (n,) int64.
        x_adv: Adversarial images of the fooled samples, in their order, float32 (k, C, H, W); read on slicing.
        fooled_by: Index into `sub_attacks`; -1 for samples that no attack fooled; (n,) int8.
        inputs: SHA-256 of each clean image with its label, (n, 32) uint8.
        outcomes: ROBUST, FOOLED or MISCLASSIFIED, (n,) uint8.
        sha256: SHA-256 of the file without its last 32 bytes, hexadecimal.
    """

    metadata: Mapping[str, Any]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    adversarial: NDArray[np.int64]
    x_adv: Any
    fooled_by: NDArray[np.int8]
    inputs: NDArray[np.uint8]
    outcomes: NDArray[np.uint8]
    sha256: str

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fooled(self) -> NDArray[np.bool_]:
        """Mask of the fooled samples, (n,)."""
        return np.equal(self.outcomes, Outcome.FOOLED)

    @property
    def threat(self) -> str:
        """Threat model, formatted as `linf, eps=8/255`."""
        return f"{self.metadata['attack']['norm']}, eps={self.metadata['attack']['eps']}"

    @property
    def limit(self) -> float:
        """Largest distance that counts as eps, with the rounding tolerance."""
        absolute, relative = _SLACK[self.metadata["attack"]["norm"]]
        return float(radius_from_text(self.metadata["attack"]["eps"])) * (1 + relative) + absolute

    def distances(self, x: Images, x_adv: Images) -> NDArray[np.float64]:
        """Norm of each perturbation, (N,), in double precision."""
        size = geometry_of(self.metadata["attack"]["norm"]).size
        return np.asarray(size(torch.from_numpy(x_adv.astype(np.float64) - x.astype(np.float64))))

    def evaluated_images(self, indices: NDArray[np.int64], x: Images) -> Images:
        """Return adversarial images of fooled samples, clean images of the others.

        Args:
            indices: Positions in the arrays, (N,).
            x: Clean images of these samples, (N, C, H, W).

        Raises:
            ValueError: The clean images have another shape than the adversarial ones.
        """
        image = tuple(self.x_adv.get_shape()[1:])
        if x.shape[1:] != image:
            raise ValueError(
                f"Images of the data must have the shape {image} of the evidence, got {x.shape[1:]}. Pass the --data "
                "options of the evaluation."
            )
        images, replaced = x.copy(), np.flatnonzero(self.fooled[indices])
        rows = np.searchsorted(np.flatnonzero(self.fooled), indices[replaced])
        for index, row in zip(replaced, rows.tolist(), strict=True):
            images[index] = self.x_adv[row : row + 1][0]
        return images


def read(path: Path) -> Evidence:
    """Read an evidence file; its adversarial images are read on demand.

    Raises:
        ValueError: There is no such file, an earlier version wrote it, or it is damaged or malformed.
    """
    if not path.is_file():
        raise ValueError(f"There is no evidence file {path}. Pass a NAME{SUFFIX} that `lightning-paf test` wrote.")
    with explained(path, "evidence"):
        try:
            return _read(path)
        except _OutdatedError:
            raise
        except (SafetensorError, ValueError, ArithmeticError) as error:
            # Messages of libraries can quote the file.
            reason = error if isinstance(error, _RefusedError) else "it is not a safetensors file with evidence"
            raise ValueError(
                f"{path} must be valid evidence, but {reason}. Pass another file, or run `lightning-paf test` again."
            ) from error


def evidence_files(folder: Path) -> list[Path]:
    """Return the evidence files in a folder, in the order of their names.

    Raises:
        ValueError: An earlier version wrote an evidence file that no file of this version replaces.
    """
    for path in sorted(folder.glob(f"*{_OLD_SUFFIX}")):
        if not path.with_name(path.name.removesuffix(_OLD_SUFFIX) + SUFFIX).is_file():
            raise ValueError(f"{path} {_OUTDATED}, or remove the file.")
    return sorted(folder.glob(f"*{SUFFIX}"))


_OUTDATED = "was written by an earlier version. Run `lightning-paf test` with the same options again"


class _OutdatedError(ValueError):
    """A file of an earlier version."""


class _RefusedError(ValueError):
    """Reason for refusing a file, without text from the file."""


def _read(path: Path) -> Evidence:
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise _RefusedError(f"its size must be at most {_MAX_BYTES:,} bytes, got {size:,}")
    file: Any = safe_open(path, "numpy")
    texts = file.metadata() or {}
    if _OLD_KEY in texts:
        raise _OutdatedError(f"{path} {_OUTDATED}.")
    if {*texts} != {KEY} or {*file.keys()} != {*TENSORS}:
        raise _RefusedError("it is a safetensors file with other content")
    sha256 = _checked_hash(path)
    slices = {name: file.get_slice(name) for name in TENSORS}
    x_adv, n = slices["x_adv"], slices["ids"].get_shape()[:1]
    if not [1] <= n <= [_MAX_SAMPLES]:
        raise _RefusedError(f"it must have from 1 to {_MAX_SAMPLES:,} samples, got ids of shape {n}")
    shapes = {**dict.fromkeys(TENSORS, n), "inputs": [*n, 32], "sha256": [32], "x_adv": x_adv.get_shape()}
    for name, (dtype, _) in TENSORS.items():
        found = slices[name].get_dtype(), slices[name].get_shape()
        if found != (dtype, shapes[name]):
            raise _RefusedError(f"{name} must be {dtype} of shape {shapes[name]}, got {found[0]} of shape {found[1]}")
    columns = {name: file.get_tensor(name) for name in TENSORS if name not in ("x_adv", "sha256")}
    evidence = Evidence(_metadata(texts[KEY]), x_adv=x_adv, sha256=sha256, **columns)
    for rule, holds in _rules(evidence):
        if not holds:
            raise _RefusedError(rule)
    return evidence


def _checked_hash(path: Path) -> str:
    """Verify the trailing SHA-256 of a file and return it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        end = path.stat().st_size - digest.digest_size
        while part := file.read(min(2**20, end - file.tell())):
            digest.update(part)
        if file.read() != digest.digest():
            raise _RefusedError("it is damaged: it does not end with the SHA-256 of its content")
    return digest.hexdigest()


def _metadata(text: str) -> dict[str, Any]:
    depth = max(accumulate((letter in "[{") - (letter in "]}") for letter in text[:_MAX_METADATA]), default=0)
    if len(text) > _MAX_METADATA or depth > _MAX_DEPTH:
        raise _RefusedError(f"its metadata must have at most {_MAX_METADATA:,} characters and {_MAX_DEPTH} levels")
    found = json.loads(text)
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise _RefusedError(f"its format version must be {VERSION}, got another one")
    for name, kind in _FIELDS.items():
        if type(found.get(name)) is not kind:
            raise _RefusedError(f"its metadata has no valid {name}")
    flags = found.setdefault("flags", {})  # older files have none
    if not isinstance(flags, dict) or not all(isinstance(text, str) for text in flags.values()):
        raise _RefusedError("its metadata has no valid flags")
    return found


def _rules(evidence: Evidence) -> Iterator[tuple[str, bool]]:
    """Yield each rule of the format and whether it holds; `verify` checks the claims."""
    yield from _threat_rules(evidence.metadata["attack"])
    yield from _sample_rules(evidence)


def _threat_rules(attack: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    norm, eps, value, bounds = (attack.get(name) for name in ("norm", "eps", "eps_value", "bounds"))
    are_numbers = [type(number) in (int, float) for number in bounds] if isinstance(bounds, list) else []
    yield "norm must be linf, l2 or l1", norm in [*_SLACK]
    yield "eps must be a fraction", isinstance(eps, str) and _EPS.fullmatch(eps) is not None
    yield "eps_value must be equal to eps", value == float(radius_from_text(str(eps)))
    yield "bounds must be two numbers", bounds is None or are_numbers == [True, True]


def _sample_rules(evidence: Evidence) -> Iterator[tuple[str, bool]]:
    count, fooled_count = len(evidence), int(np.count_nonzero(evidence.fooled))
    names, fooled_by, outcomes = evidence.metadata["sub_attacks"], evidence.fooled_by, evidence.outcomes
    classes = np.concatenate([evidence.labels, evidence.adversarial])
    yield "total must be at least the number of samples", evidence.metadata["total"] >= count
    yield "ids must be distinct", len(np.unique(evidence.ids)) == count
    yield f"classes must be less than {_MAX_CLASSES}", bool(((classes >= -1) & (classes < _MAX_CLASSES)).all())
    yield "outcomes must be 1, 2 or 3", bool(((outcomes >= 1) & (outcomes <= 3)).all())
    valid = ((fooled_by >= 0) == evidence.fooled) & (fooled_by >= -1) & (fooled_by < len(names))
    yield "fooled_by must be an index exactly where a sample is fooled", bool(valid.all())
    yield "x_adv must have one image for each fooled sample", evidence.x_adv.get_shape()[:1] == [fooled_count]
