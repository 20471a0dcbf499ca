"""Is a robustness verdict about this model worth anything? A battery of checks for masked gradients and mistakes.

The checks follow what Carlini et al. 2019 ("On evaluating adversarial robustness", section 5) and Athalye et al. 2018
ask an evaluation to show. They look for signs only: a clean bill is no proof of robustness, and a network that is not
robust at all gets one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_paf.evaluation import checks
from lightning_paf.evaluation.checks import Finding, Patient, Symptom
from lightning_paf.nn.modes import frozen
from lightning_paf.specs import DatasetSpec
from lightning_paf.types import Norm, Radius

SYMPTOMS: tuple[type[Symptom], ...] = (
    checks.PixelRange,
    checks.TrainMode,
    checks.FiniteOutputs,
    checks.RandomOutputs,
    checks.BatchDependence,
    checks.SoftmaxOutputs,
    checks.Normalisation,
    checks.CleanAccuracy,
    checks.ZeroGradients,
    checks.FiniteDifferences,
    checks.LogitScale,
    checks.MoreSteps,
    checks.MoreStarts,
    checks.GrowingEps,
    checks.BlackBox,
    checks.Transfer,
)
"""In the order of the examination: from what makes the rest meaningless to what takes long."""

FEWEST_SAMPLES = 20


def examine(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: Radius,
    norm: Norm = "linf",
    seed: int = 0,
    surrogate: nn.Module | None = None,
    spec: DatasetSpec | None = None,
    batch_size: int = 128,
    progress: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Run all checks, up to the first after which none means anything.

    The model is left as it came: mode, buffers, `requires_grad`; so are torch's random generators.

    Args:
        model: Images (N, C, H, W) in [0, 1] to logits (N, num_classes), in the mode in which it is evaluated.
        x: Images (n, C, H, W), at least 20; 100 are usual.
        y: Their labels (n,), int64.
        eps: Radius of the threat model.
        norm: `linf` or `l2`.
        seed: Of everything random.
        surrogate: A model of the same task to transfer attacks from. Default: `model` with measured derivatives.
        spec: The dataset, whose mean and standard deviation are tried as a missing normalisation.
        batch_size: Images in a forward pass.
        progress: Called with the name of each check before it starts.

    Returns:
        One finding a check, in the order of `SYMPTOMS`; fewer where a finding is `final`.

    Raises:
        ValueError: Images, labels, outputs or threat model that no check can work on.
    """
    _refuse(x, y, norm)
    x = x if x.is_floating_point() else x.float()
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(seed)
        patient = Patient(_connected(model, x, y), x, y, eps, norm, seed, surrogate, spec, batch_size)
        findings: list[Finding] = []
        for number, symptom in enumerate(SYMPTOMS, 1):
            if progress:
                progress(symptom.name)
            torch.manual_seed(seed + number)  # other draws for each, whatever the ones before have used
            findings.append(symptom().examine(patient))
            if findings[-1].final:
                break
        return findings


def _refuse(x: Tensor, y: Tensor, norm: Norm) -> None:
    if norm not in ("linf", "l2"):
        raise ValueError(f"The doctor attacks in linf and l2, but norm is {norm!r}. Pass --norm linf or --norm l2.")
    if x.dim() != 4 or y.shape != x.shape[:1] or y.is_floating_point():
        raise ValueError(
            f"The doctor needs images (n, C, H, W) and labels (n,), but got {tuple(x.shape)} and {tuple(y.shape)} "
            f"{y.dtype}. Pass a batch of images with integer labels."
        )
    if len(x) < FEWEST_SAMPLES:
        raise ValueError(
            f"{len(x)} samples show nothing that chance does not. Pass --examples N with N >= {FEWEST_SAMPLES}."
        )


def _connected(model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
    """The model, with a gradient of zero where autograd knows none at all, so that attacks can run."""
    with torch.enable_grad(), frozen(model):
        logits = model(x[:1].detach().clone().requires_grad_())
    classes = logits.shape[1] if logits.dim() == 2 else 0
    if classes < 2 or not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"A classifier returns logits (N, num_classes) with num_classes > every label, but this one returned "
            f"{tuple(logits.shape)} for labels up to {int(y.max())}. Pass the model and the labels of the same dataset."
        )
    return model if logits.requires_grad else _Connected(model)


class _Connected(nn.Module):
    """Adds zero times the image; a wrapper, so that flags and buffers stay those of the model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits + 0 * x.flatten(1).sum(dim=1, keepdim=True)
