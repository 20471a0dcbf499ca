"""The receipt of an evaluation: proof of an upper bound of robust accuracy that somebody else can check.

It holds for every judged sample a hash of the clean image and its label, the verdict, and, where an attack broke it,
the adversarial image in the smallest encoding that still fools the model. `verification.verify` checks all of it with
one forward pass. A receipt is one safetensors file without code; `sealed_file` says why no byte of it can change
unnoticed.
"""

import math
import platform
from collections.abc import Mapping
from fractions import Fraction
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_paf import __version__
from lightning_paf.attacks import Attack, radius_text
from lightning_paf.evaluation.evaluate import sub_attack_seed
from lightning_paf.evaluation.evidence.content import (
    FORMAT,
    FORMAT_VERSION,
    TENSORS,
    Receipt,
    check,
    counts,
    text_fingerprint,
)
from lightning_paf.evaluation.evidence.encodings import ENCODINGS, Ball, Images, encode_smallest
from lightning_paf.evaluation.evidence.sealed_file import load_sealed, save_sealed
from lightning_paf.evaluation.identity import network_fingerprint
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.samples import Samples
from lightning_paf.functional.losses import margin
from lightning_paf.functional.predictions import predicted
from lightning_paf.nn.modes import frozen, full_precision
from lightning_paf.types import Radius
from lightning_paf.utils.files import explained
from lightning_paf.utils.hashing import code_fingerprint, sample_fingerprints, weights_fingerprint

__all__ = ["Receipt", "read_receipt", "write_receipt"]


def write_receipt(
    path: Path,
    result: EvaluationResult,
    model: nn.Module,
    samples: Samples,
    *,
    attack: Attack,
    seed: int,
    block_size: int,
    precision: str,
    config_text: str | None,
    dataset: str,
    seeds: Mapping[tuple[int, int], int] | None = None,
) -> Receipt:
    """Encode the result of an evaluation, and write it. Images are in memory a block at a time, encoded ones all.

    Args:
        path: File to write, whole or not at all.
        result: Of `Evaluation.run`; one sample at least.
        model: What was judged.
        samples: What it was judged on.
        attack: Of the evaluation.
        seed: Of the evaluation.
        block_size: Samples a block, and a forward pass of this function.
        precision: Of the search; here everything is in float32.
        config_text: The configuration of the run, which becomes part of the receipt.
        dataset: Name of the data.
        seeds: For (block, index of the stage) the seed that was used; by default as the evaluation derives it.

    Returns:
        What was written.

    Raises:
        ValueError: Nothing was judged, or the file cannot be written.
    """
    if len(result.ids) == 0:
        raise ValueError("A receipt needs at least one judged sample, but there is none. Judge some samples first.")
    ball = Ball(attack.norm, Fraction(eps_text(attack.eps)))
    stages = [stage.label for stage in result.sub_attacks]
    seeds = seeds or _seeds(seed, math.ceil(len(result.ids) / block_size), stages)
    inputs, image = _hash_inputs(result.ids, samples, block_size)
    encoding, adversarial, payloads = _encode(result, model, samples, ball, image)
    manifest = _origin(model, attack, config_text) | {
        "seed": seed,
        "block_size": block_size,
        "precision": precision,
        "dataset": dataset,
        "image": list(image),
        "stages": stages,
        "seeds": [[*key, value] for key, value in sorted(seeds.items())],
        "counts": counts(result.outcomes, encoding) | {"total": result.total},
    }
    columns = (result.ids, result.labels, inputs, result.outcomes, result.fooled_by, adversarial, encoding)
    receipt = Receipt(manifest, *columns, payloads)
    check(receipt)
    with explained(path, "a receipt"):
        save_sealed(path, receipt.tensors, manifest)
    return read_receipt(path)


def read_receipt(path: Path) -> Receipt:
    """Read what `write_receipt` wrote.

    Raises:
        ValueError: There is no such file, or it is damaged or forged: the message names the part, `header`, `manifest`
            or a tensor, and what is wrong with it.
    """
    if not path.is_file():
        raise ValueError(f"There is no receipt {path}. Pass the path of a file that `test` wrote.")
    try:
        tensors, manifest = load_sealed(path, TENSORS)
        receipt = Receipt.of(manifest, tensors)
        check(receipt)
    except ValueError as error:
        raise ValueError(f"{path} is refused. {error}. Get an intact copy from whoever wrote it.") from error
    return receipt


def eps_text(eps: Radius) -> str:
    """A radius as an exact fraction: `8/255`, or `31/1000` for 0.031."""
    return radius_text(eps) if isinstance(eps, Fraction) else str(Fraction(repr(eps)))


def library_versions() -> dict[str, str]:
    """What the numbers may depend on besides the code."""
    return {
        "lightning_paf": __version__,
        "torch": str(torch.__version__),
        "lightning": version("lightning"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


@torch.no_grad()
def exact_logits(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, K) as a receipt means them: eval mode, float32 throughout."""
    with frozen(model), torch.autocast(x.device.type, enabled=False), full_precision():
        logits: Tensor = model(x.float())
    return logits.float()


def _origin(model: nn.Module, attack: Attack, config_text: str | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "norm": attack.norm,
        "eps": eps_text(attack.eps),
        "attack": attack.describe(),
        "weights": weights_fingerprint(model),
        "network": network_fingerprint(model),
        "code": code_fingerprint(),
        "config": None if config_text is None else {"sha256": text_fingerprint(config_text), "text": config_text},
        "versions": library_versions(),
    }


def _seeds(seed: int, blocks: int, stages: list[str]) -> dict[tuple[int, int], int]:
    return {
        (block, stage): sub_attack_seed(seed, block, stage, label)
        for block in range(blocks)
        for stage, label in enumerate(stages)
    }


def _hash_inputs(ids: NDArray[np.int64], samples: Samples, at_once: int) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Fingerprints (n, 32), and the shape (C, H, W) of the images."""
    parts = []
    for first in range(0, len(ids), at_once):
        x, y = samples.fetch(ids[first : first + at_once])
        parts.append(sample_fingerprints(x, y))
    return np.concatenate(parts), tuple(x.shape[1:])


def _encode(
    result: EvaluationResult, model: nn.Module, samples: Samples, ball: Ball, image: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[NDArray[Any], ...]]:
    """Codes (n,), classes on the decoded images (n,), and the encoded images of each encoding."""
    place_of = {int(sample): place for place, sample in enumerate(result.ids)}
    codes, adversarial = np.zeros(len(result.ids), np.uint8), result.adversarial.copy()
    rows: list[dict[int, NDArray[Any]]] = [{} for _ in ENCODINGS]
    for ids, x_adv in result.examples():
        x, y = samples.fetch(np.asarray(ids))
        clean, found = x.float().cpu().numpy(), torch.as_tensor(x_adv).float().cpu().numpy()
        encoded = encode_smallest(clean, found, y.cpu().numpy(), ball, partial(_judge, model, y))
        for sample, code, row, prediction in zip(ids, encoded.codes, encoded.rows, encoded.predictions, strict=True):
            if row is not None:
                place = place_of[int(sample)]
                codes[place], adversarial[place] = code, prediction
                rows[code - 1][place] = row
    payloads = tuple(
        np.array([row for _, row in sorted(mine.items())], encoding.dtype).reshape(-1, *encoding.row(image))
        for encoding, mine in zip(ENCODINGS, rows, strict=True)
    )
    return codes, adversarial, payloads


def _judge(
    model: nn.Module, y: Tensor, images: Images, places: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Predictions and gaps as `encode_smallest` asks for them."""
    logits = exact_logits(model, torch.from_numpy(images).to(y.device))
    scale = logits.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    gaps = margin(logits, y[torch.from_numpy(places).to(y.device)]) / scale
    return predicted(logits).cpu().numpy(), gaps.double().cpu().numpy()
