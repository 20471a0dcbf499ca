"""The identity of an evaluation: everything that its records depend on."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf.speed.search_model import Precision
from lightning_paf.utils.hashing import sample_fingerprints, tensor_bytes

_FORMAT = 2


@dataclass(frozen=True)
class Identity:
    """Everything that the records of an evaluation depend on.

    Attributes:
        model: Fingerprint of weights and buffers.
        network: Fingerprint of the printed modules and of the buffers that checkpoints do not hold.
        data: Fingerprint of all ids, images and labels, in order.
        samples: Number of samples.
        attack: `Attack.describe()`: class, norm, eps, ...
        sub_attacks: `describe()` of each sub-attack, with its label.
        block_size: Samples per block.
        seed: Seed of the evaluation.
        precision: Precision of the search.
        code: Fingerprint of the evaluation code.
        format: Version of the files of the state.
    """

    model: str
    network: str
    data: str
    samples: int
    attack: Mapping[str, Any]
    sub_attacks: Sequence[Mapping[str, Any]]
    block_size: int
    seed: int
    precision: Precision
    code: str
    format: int = _FORMAT

    def content(self) -> dict[str, Any]:
        """Return the identity as plain values, those of its JSON file."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return content

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, in hexadecimal digits."""
        return content_fingerprint(self.content())

    def of_result(self, stop: str | None) -> str:
        """Return the fingerprint of the result: with stop rule, without code version."""
        return content_fingerprint({**self.content(), "code": None, "format": None, "stop": stop})


def content_fingerprint(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values, independent of the order of their names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_same(here: Mapping[str, Any], there: Mapping[str, Any], name: str) -> None:
    """Refuse to resume another evaluation.

    Args:
        here: Content of this evaluation's identity.
        there: Content of the state's identity.
        name: Description of the state.

    Raises:
        ValueError: They differ; every difference is named.
    """
    if found := differences(here, there):
        listed = "; ".join(f"{field} is {a} here, {b} in the state" for field, a, b in found)
        raise ValueError(
            f"{name} must belong to the same evaluation, got: {listed}. Pass another folder for the "
            "state (--autoattack.state_dir), or use the same checkpoint, data, attack, settings and code version."
        )


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """List the differences of two contents: name, such as `attack.steps`, and values."""
    flat = _flat(first), _flat(second)
    pairs = {field: [values.get(field, "missing") for values in flat] for field in sorted({*flat[0], *flat[1]})}
    return [(field, a, b) for field, (a, b) in pairs.items() if a != b]


def network_fingerprint(model: nn.Module) -> str:
    """Return the fingerprint of a model apart from its state dict.

    The same weights give another classifier with another activation function, or with another normalisation of the
    images, which checkpoints do not hold.
    """
    printed = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # a function prints its address
    digest = hashlib.sha256(printed.encode())
    kept = model.state_dict()
    for name, buffer in sorted(model.named_buffers(remove_duplicate=False)):
        if name not in kept:
            digest.update(name.encode() + b"\n" + tensor_bytes(buffer))
    return digest.hexdigest()


def data_fingerprint(ids: NDArray[np.int64], batches: Iterable[tuple[Tensor, Tensor]]) -> str:
    """Return the fingerprint of all samples.

    Args:
        ids: Indices of all samples, in order.
        batches: Their images (N, C, H, W) and labels (N,).
    """
    digest = hashlib.sha256(ids.astype("<i8").tobytes())
    for batch in batches:
        digest.update(sample_fingerprints(*batch).tobytes())
    return digest.hexdigest()


def _flat(content: Any, name: str = "") -> dict[str, str]:
    """Nested values by names such as `sub_attacks.1.steps`."""
    if isinstance(content, list) and any(isinstance(part, dict) for part in content):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return {name: str(content)}
    return {key: v for part, value in content.items() for key, v in _flat(value, f"{name}.{part}".lstrip(".")).items()}
