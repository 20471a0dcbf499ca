"""What an evaluation is about: everything that its records depend on."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from lightning_paf.attacks import Attack
from lightning_paf.evaluation.samples import Samples
from lightning_paf.speed.search_model import Precision
from lightning_paf.utils.hashing import (
    code_fingerprint,
    sample_fingerprints,
    tensor_bytes,
    weights_fingerprint,
)

_FORMAT = 1
_ABSENT = "nothing"


@dataclass(frozen=True)
class Header:
    """What an evaluation is about. Two evaluations with equal headers find the same, so they may share a ledger.

    Attributes:
        model: Fingerprint of weights and buffers.
        network: Fingerprint of what the weights do not show: the modules as printed, the buffers outside checkpoints.
        data: Fingerprint of every image and label, with its id, in order.
        samples: Number of samples.
        attack: What the attack says of itself: class, norm, eps, ...
        stages: The same of each of its stages, with their labels.
        block_size: Samples a block.
        seed: Seed of the evaluation.
        precision: Of the search.
        code: Fingerprint of the judging code.
        format: Version of the ledger's files.
    """

    model: str
    network: str
    data: str
    samples: int
    attack: Mapping[str, Any]
    stages: Sequence[Mapping[str, Any]]
    block_size: int
    seed: int
    precision: Precision
    code: str
    format: int = _FORMAT

    @classmethod
    def of(
        cls, model: nn.Module, attack: Attack, samples: Samples, *, seed: int, block_size: int, precision: Precision
    ) -> "Header":
        """The header of an evaluation; reads every sample once.

        Args:
            model: Images to logits.
            attack: With all its settings.
            samples: What is judged.
            seed: Of the evaluation.
            block_size: Samples a block.
            precision: Of the search.
        """
        return cls(
            model=weights_fingerprint(model),
            network=network_fingerprint(model),
            data=_data_fingerprint(samples, block_size),
            samples=len(samples),
            attack=attack.describe(),
            stages=[{"label": stage.label, **stage.describe()} for stage in attack.sub_attacks()],
            block_size=block_size,
            seed=seed,
            precision=precision,
            code=code_fingerprint(),
        )

    def content(self) -> dict[str, Any]:
        """The header as JSON would give it back."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return content

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, in hexadecimal digits."""
        return content_fingerprint(self.content())

    def identity(self, **more: Any) -> str:
        """Fingerprint of the evaluation whatever the version of the code, in hexadecimal digits.

        Args:
            **more: Other settings that the result depends on, as plain values.
        """
        return content_fingerprint({**self.content(), "code": None, "format": None, **more})


def content_fingerprint(content: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_same(here: Mapping[str, Any], there: Mapping[str, Any], name: str) -> None:
    """Refuse to continue another evaluation.

    Args:
        here: Content of this evaluation's header.
        there: Content of the ledger's header.
        name: What to call the ledger.

    Raises:
        ValueError: They differ; it names every difference.
    """
    mine, its = _flat(here), _flat(there)
    differences = [
        f"{field}: here {mine.get(field, _ABSENT)}, ledger {its.get(field, _ABSENT)}"
        for field in sorted({*mine, *its})
        if mine.get(field, _ABSENT) != its.get(field, _ABSENT)
    ]
    if differences:
        raise ValueError(
            f"{name} belongs to another evaluation: {'; '.join(differences)}. Give another folder for the ledger, or "
            "the same checkpoint, data, attack, settings and version of the code as before."
        )


def network_fingerprint(model: nn.Module) -> str:
    """Fingerprint of what a model is apart from its state dict, in hexadecimal digits.

    The same weights give another classifier with another activation function, or with another normalisation of the
    images, which checkpoints do not hold.
    """
    printed = re.sub(r" at 0x[0-9a-f]+", "", repr(model))  # a function prints its address
    digest = hashlib.sha256(printed.encode())
    for name, buffer in sorted(model.named_buffers(remove_duplicate=False)):
        digest.update(name.encode() + b"\n" + tensor_bytes(buffer))
    return digest.hexdigest()


def _data_fingerprint(samples: Samples, at_once: int) -> str:
    digest = hashlib.sha256(samples.ids.astype("<i8").tobytes())
    for first in range(0, len(samples), at_once):
        digest.update(sample_fingerprints(*samples.fetch(samples.ids[first : first + at_once])).tobytes())
    return digest.hexdigest()


def _flat(content: Any, name: str = "") -> dict[str, str]:
    """Nested values under names such as `stages.1.steps`."""
    if isinstance(content, list) and any(isinstance(part, dict) for part in content):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return {name: str(content)}
    return {key: v for part, value in content.items() for key, v in _flat(value, f"{name}.{part}".lstrip(".")).items()}
