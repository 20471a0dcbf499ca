"""What is in a receipt, and what makes a valid one."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_paf.evaluation.evidence.encodings import ENCODINGS, NONE, Ball, Images
from lightning_paf.evaluation.evidence.sealed_file import refuse
from lightning_paf.evaluation.result import Outcome

FORMAT, FORMAT_VERSION = "lightning-paf receipt", 1

COLUMNS = {
    "ids": "I64",
    "labels": "I64",
    "inputs": "U8",
    "verdicts": "U8",
    "broken_by": "I8",
    "adversarial": "I64",
    "encoding": "U8",
}
TENSORS = {**COLUMNS, "signs": "U8", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True, eq=False)
class Receipt:
    """Verdicts with their evidence. All arrays are in the order of judging.

    Attributes:
        manifest: Everything that is no array: `norm`, `eps`, `attack`, `seed`, `block_size`, `precision`, `dataset`,
            `image` (C, H, W), `stages` (labels), `seeds` ([block, stage, seed] each), `weights`, `network`
            (what weights do not show) and `code` (fingerprints), `config` (SHA-256 and text), `versions`, `counts`.
        ids: Sample numbers in the dataset, (n,) int64.
        labels: (n,) int64.
        inputs: Fingerprints of the clean images with their labels, (n, 32) uint8.
        verdicts: `Outcome` codes, (n,) uint8.
        broken_by: Index into `stages` (0 is the clean pass), -1 for samples that no attack broke, (n,) int8.
        adversarial: Class of each sample on its decoded adversarial image, or on the clean one where there is none;
            -1 for logits that are not finite; (n,) int64.
        encoding: 0 for no adversarial image, else the place in `ENCODINGS` from 1: signs, float16, float32; (n,) uint8.
            A broken sample with 0 is without proof: no encoding was valid and misclassified.
        payloads: The encoded images of each of `ENCODINGS`, in the order of the samples.
    """

    manifest: Mapping[str, Any]
    ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    inputs: NDArray[np.uint8]
    verdicts: NDArray[np.uint8]
    broken_by: NDArray[np.int8]
    adversarial: NDArray[np.int64]
    encoding: NDArray[np.uint8]
    payloads: tuple[NDArray[Any], ...]

    @classmethod
    def of(cls, manifest: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> "Receipt":
        """A receipt from the tensors of its file."""
        ids, labels, inputs, verdicts, broken_by, adversarial, encoding = (tensors[name] for name in COLUMNS)
        payloads = tuple(tensors[kind.name] for kind in ENCODINGS)
        return cls(manifest, ids, labels, inputs, verdicts, broken_by, adversarial, encoding, payloads)

    @property
    def tensors(self) -> dict[str, NDArray[Any]]:
        """As in the file, by name."""
        payloads = {encoding.name: rows for encoding, rows in zip(ENCODINGS, self.payloads, strict=True)}
        return {name: getattr(self, name) for name in COLUMNS} | payloads

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ball(self) -> Ball:
        """The threat model."""
        return Ball(self.manifest["norm"], Fraction(self.manifest["eps"]))

    @property
    def image(self) -> tuple[int, ...]:
        """Shape (C, H, W) of the images."""
        return tuple(self.manifest["image"])

    def judged_images(self, places: NDArray[np.int64], x: Images) -> Images:
        """What the verdicts of some samples are about: the adversarial image, or the clean one where there is none.

        Args:
            places: Of the samples in the receipt's arrays, (N,).
            x: Their clean images, (N, C, H, W).
        """
        images = x.copy()
        for code, encoding in enumerate(ENCODINGS, start=1):
            mine = self.encoding[places] == code
            rows = self.payloads[code - 1][np.searchsorted(np.flatnonzero(self.encoding == code), places[mine])]
            images[mine] = encoding.decode(x[mine], rows, self.ball.eps)
        return images


def text_fingerprint(text: str) -> str:
    """SHA-256 of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_COUNTS = {"total", "judged", "robust", "broken", "clean_errors", "without_proof"}


def counts(verdicts: NDArray[np.uint8], encoding: NDArray[np.uint8]) -> dict[str, int]:
    """How many samples have which verdict, and how many broken ones have no image that proves it."""
    broken = verdicts == Outcome.FOOLED
    found = {
        "judged": np.ones_like(broken),
        "robust": verdicts == Outcome.ROBUST,
        "broken": broken,
        "clean_errors": verdicts == Outcome.MISCLASSIFIED,
        "without_proof": broken & (encoding == NONE),
    }
    return {name: int(np.count_nonzero(which)) for name, which in found.items()}


_HEX = re.compile("[0-9a-f]{64}")
_EPS = re.compile("[0-9]{1,400}(/[0-9]{1,400})?")
_LONGEST_TEXT, _LARGEST_EPS = 200, 10**6
_MOST_STAGES, _MOST_VERSIONS = 128, 50


def _is_text(value: Any) -> bool:
    """Something that can be printed on one line: what a forged receipt says must not control the terminal."""
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT and value.isprintable()


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HEX.fullmatch(value) is not None


def _is_int(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**64


def _is_eps(value: Any) -> bool:
    if not (isinstance(value, str) and _EPS.fullmatch(value)):
        return False
    numerator, _, denominator = value.partition("/")
    return 0 < int(numerator) <= _LARGEST_EPS * int(denominator or 1)


def _is_config(value: Any) -> bool:
    if value is None:
        return True
    known = isinstance(value, dict) and value.keys() == {"sha256", "text"} and isinstance(value["text"], str)
    return known and text_fingerprint(value["text"]) == value["sha256"]


def _are(test: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, list) and all(map(test, value))


_FIELDS: Mapping[str, Callable[[Any], bool]] = MappingProxyType(
    {
        "format": lambda value: value == FORMAT,
        "version": _is_int,
        "norm": lambda value: value in ("linf", "l2", "l1"),
        "eps": _is_eps,
        "attack": lambda value: isinstance(value, dict),
        "seed": _is_int,
        "block_size": _is_int,
        "precision": _is_text,
        "dataset": _is_text,
        "image": lambda value: (
            _are(_is_int, value) and 1 <= len(value) <= 3 and all(0 < size < 2**20 for size in value)
        ),
        "stages": lambda value: _are(_is_text, value) and len(value) <= _MOST_STAGES,
        "seeds": lambda value: _are(lambda row: _are(_is_int, row) and len(row) == 3, value),
        "weights": _is_hash,
        "network": _is_hash,
        "code": _is_hash,
        "config": _is_config,
        "versions": lambda value: (
            isinstance(value, dict) and len(value) <= _MOST_VERSIONS and all(map(_is_text, [*value, *value.values()]))
        ),
        "counts": lambda value: (
            isinstance(value, dict) and value.keys() == _COUNTS and all(map(_is_int, value.values()))
        ),
    }
)
"""What every field of a manifest must be."""


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    if manifest.get("format") != FORMAT:
        refuse("manifest", "this is no receipt")
    if manifest.get("version") != FORMAT_VERSION or not _is_int(manifest["version"]):
        known = f"version {FORMAT_VERSION} is known here"
        refuse("manifest", f"the receipt has version {str(manifest.get('version'))[:20]!r}, but {known}")
    for name in sorted({*_FIELDS} - manifest.keys()):
        refuse("manifest", f"{name} is missing")
    for name in sorted(manifest.keys() - {*_FIELDS, "tensors", "sha256"}):
        refuse("manifest", f"{name[:_LONGEST_TEXT]!r} does not belong here")
    for name, holds in _FIELDS.items():
        if not holds(manifest[name]):
            refuse("manifest", f"{name} has no valid value")


def check(receipt: Receipt) -> None:
    """Refuse what intact bytes can still be: something that `write_receipt` would never write.

    Raises:
        ValueError: The message begins with `manifest` or `tensor 'NAME'`.
    """
    _check_manifest(receipt.manifest)
    n = len(receipt)
    for name in COLUMNS:
        expected = (n, 32) if name == "inputs" else (n,)
        if getattr(receipt, name).shape != expected:
            refuse(f"tensor {name!r}", f"its shape must be {expected}, but is {getattr(receipt, name).shape}")
    for name, rule, holds in _rules(receipt):
        if not holds:
            refuse(f"tensor {name!r}", rule)
    for code, (encoding, rows) in enumerate(zip(ENCODINGS, receipt.payloads, strict=True), start=1):
        used = int(np.count_nonzero(receipt.encoding == code))
        if rows.shape != (used, *encoding.row(receipt.image)):
            refuse(f"tensor {encoding.name!r}", f"its shape {rows.shape} does not fit the {used} samples encoded so")
        if used and receipt.manifest["norm"] not in encoding.norms:
            refuse(f"tensor {encoding.name!r}", f"this encoding does not exist for {receipt.manifest['norm']}")
        if (fault := encoding.fault(rows, receipt.image)) is not None:
            refuse(f"tensor {encoding.name!r}", f"it {fault}")
    declared = receipt.manifest["counts"]
    for name, value in counts(receipt.verdicts, receipt.encoding).items():
        if declared[name] != value:
            refuse("manifest", f"counts.{name} is {declared[name]}, but the tensors give {value}")
    if declared["total"] < n:
        refuse("manifest", f"counts.total is less than the {n} judged samples")


def _rules(receipt: Receipt) -> list[tuple[str, str, bool]]:
    """Tensor, what holds for each of its values, and whether it does."""
    verdicts, broken_by, stages = receipt.verdicts, receipt.broken_by, len(receipt.manifest["stages"])
    broken, robust = verdicts == Outcome.FOOLED, verdicts == Outcome.ROBUST
    judged = np.isin(verdicts, [Outcome.ROBUST, Outcome.FOOLED, Outcome.MISCLASSIFIED])
    wrong = receipt.adversarial != receipt.labels
    return [
        ("ids", "there must be at least one", len(receipt) > 0),
        ("ids", "a number is negative", bool((receipt.ids >= 0).all())),
        ("ids", "a number occurs twice", len(np.unique(receipt.ids)) == len(receipt)),
        ("labels", "a label is negative", bool((receipt.labels >= 0).all())),
        ("verdicts", "a value is no verdict", bool(judged.all())),
        ("broken_by", "a value is no stage", bool(((broken_by >= -1) & (broken_by < stages)).all())),
        ("broken_by", "a broken sample has no stage", bool((broken_by[broken] >= 0).all())),
        ("broken_by", "a robust sample has a stage", bool((broken_by[robust] == -1).all())),
        ("adversarial", "a class contradicts the verdict", bool((wrong != robust).all())),
        ("adversarial", "a value is no class", bool((receipt.adversarial >= -1).all())),
        ("encoding", "a value is no encoding", bool((receipt.encoding <= len(ENCODINGS)).all())),
        ("encoding", "a sample that is not broken has an image", bool((receipt.encoding[~broken] == NONE).all())),
    ]
