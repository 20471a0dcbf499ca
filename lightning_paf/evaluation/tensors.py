"""Evaluation of any model on tensors, without a training run."""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_paf.attacks import Attack, AutoAttack
from lightning_paf.evaluation.evaluate import Evaluation, Stop
from lightning_paf.evaluation.files import ResultFiles
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.samples import Samples
from lightning_paf.runs.weights_origin import WeightsOrigin
from lightning_paf.speed.search_precision import SearchPrecision, resolved


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack | None = None,
    out: str | Path | None = None,
    *,
    name: str | None = None,
    seed: int = 0,
    block_size: int = 500,
    precision: SearchPrecision = "fp32",
    stop: Stop | None = None,
    progress: Callable[[str], None] | None = None,
) -> EvaluationResult:
    """Evaluate the robust accuracy of a model.

    With `out`, the same call resumes an interrupted evaluation, several processes can share the work, and result
    (JSON), evidence and report (HTML) are written as by `lightning-paf test`.

    Args:
        model: Maps images (N, C, H, W) in [0, 1] to logits (N, classes), and includes its normalisation. It is
            evaluated in eval mode and restored afterwards.
        x: Images (n, C, H, W), floating point in [0, 1]; moved to the device of the model block by block.
        y: Labels (n,), int64.
        attack: The attack; by default AutoAttack with eps = 8/255 in linf.
        out: Folder of all files; None keeps the state in memory and writes nothing.
        name: Beginning of the file names; by default the label of the attack.
        seed: Seed of all random numbers.
        block_size: Samples per block; an interruption loses at most one sub-attack on one block.
        precision: Precision of the search; every success is confirmed in float32. `auto` is bf16 on hardware with such
            instructions, otherwise fp32; the result holds the one that was used.
        stop: A stop rule such as `HalfWidth`; the order of the samples must then be random.
        progress: Called with log lines, such as `print`.

    Returns:
        The result; `result.examples()` yields the adversarial images.

    Raises:
        ValueError: Images, labels or logits that cannot be evaluated; `out` cannot be written.

    Example:
        >>> result = evaluate(model, x, y, attack=AutoAttack(eps=8 / 255), out="runs/mine")
        >>> print(result.robust)
        61.5 % [58.4, 64.5]
    """
    attack = attack or AutoAttack()
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise ValueError(
            f"x and y must be tensors, got {type(x).__name__} and {type(y).__name__}. Pass torch.as_tensor(...)."
        )
    tensor = next(chain(model.parameters(), model.buffers()), x) if isinstance(model, nn.Module) else x
    _check_images(x, attack)
    if len(y) != len(x):
        raise ValueError(
            f"y must be class labels of shape ({len(x)},), int64, got {len(y)} labels. Pass one per image."
        )
    samples, used = Samples.of(x.float(), y, tensor.device), resolved(precision, tensor.device)
    evaluation, name = Evaluation(model, attack, samples, seed, block_size, used), name or attack.label
    files = None if out is None else ResultFiles.of(Path(out), name, attack)
    if files is not None and precision == "auto":
        files.check_precision(evaluation.identity, "precision=")
    state = None if files is None else files.state(evaluation.identity)
    result = evaluation.run(state, stop, progress)
    result = replace(result, name=name, weights=WeightsOrigin("weights in memory"))
    if files is not None:
        written = files.write(result)
        if progress is not None:
            progress(written.summary())
    return result


def _check_images(x: Tensor, attack: Attack) -> None:
    if not x.is_floating_point() or x.dim() != 4 or len(x) == 0:
        raise ValueError(
            f"x must be floating-point images of shape (n, C, H, W), n >= 1, got {x.dtype} of shape {tuple(x.shape)}. "
            "Pass x.float() / 255 for uint8 images."
        )
    low, high = (float(limit) for limit in x.aminmax())
    least, most = attack.bounds or (-torch.inf, torch.inf)
    if not (least <= low <= high <= most and bool(x.isfinite().all())):
        raise ValueError(
            f"x must be finite and within [{least:g}, {most:g}], got pixels from {low:g} to {high:g}. "
            "Pass unnormalised images, and put the normalisation into the model."
        )
