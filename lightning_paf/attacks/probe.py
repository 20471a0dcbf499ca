"""Check of model and samples before every evaluation."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lightning_paf.functional.losses import cross_entropy, hard_labels, margin
from lightning_paf.functional.predictions import check_labels, misclassified, undefined
from lightning_paf.nn.classifier import logits_of
from lightning_paf.nn.equivalence import generators_kept, summary
from lightning_paf.nn.modes import buffers_kept, frozen, full_precision

PROBES = 8
"""Number of images of the check."""

VISIBLE = 1e-3
"""Smallest relevant change of logits, as a fraction of their spread.

A hundred times the rounding error of non-deterministic kernels in single precision."""

Flags = Mapping[str, str]
"""Signs of an unreliable result: one sentence each, by the name of a sanity check."""


@dataclass(frozen=True)
class Probe:
    """Model that can be evaluated.

    Attributes:
        model: Images to a tensor of logits (N, classes) with a gradient: the model, or a module around it.
        classes: Number of logits.
        flags: Signs of an unreliable result.
    """

    model: nn.Module
    classes: int
    flags: Flags


def probe(model: nn.Module, x: Tensor, y: Tensor | None = None) -> Probe:
    """Check model and samples by a few passes in eval mode and float32.

    Model and random generators are restored.

    Args:
        model: Images (N, C, H, W) to logits (N, classes), or to an object with such `.logits`.
        x: Images (n, C, H, W), of which the first `PROBES` are used.
        y: Labels (n,), or distributions (n, classes); None skips the checks of labels and gradients.

    Raises:
        ValueError: The model is not a module, does not accept float32 images, or does not return logits of at least two
            classes; wrong labels.
    """
    with _isolated(model, x.device) as used:
        images = x[:PROBES].detach().float().clone().requires_grad_()
        output = _output(model, images)
        logits = logits_of(output)
        if logits.dim() != 2 or len(logits) != len(images) or logits.shape[1] < 2 or not logits.is_floating_point():
            raise ValueError(
                f"The model must return logits of shape ({len(images)}, classes), at least two, got {logits.dtype} of "
                f"shape {tuple(logits.shape)}. Return (0, z) for a single logit z."
            )
        if y is not None:
            check_labels(y, len(x), logits.shape[1])
        usable = model if output is logits and logits.requires_grad else _Adapted(model)
        flags: dict[str, str] = {}
        if len(images):
            flags |= _gradient_flags(usable, images, hard_labels(y[:PROBES].clone())) if y is not None else {}
            flags |= _output_flags(usable, images.detach(), logits.detach(), used)
        return Probe(usable, logits.shape[1], flags)


def warn_of(flags: Flags) -> None:
    """Show every flag as a warning."""
    for text in flags.values():
        warnings.warn(text, stacklevel=3)


def gradient_flag(count: int, total: int) -> dict[str, str]:
    """Flag gradients of `count` of `total` images that were not finite."""
    if not count:
        return {}
    return {
        "finite-gradients": f"Gradients of {count} of {total} images were not finite, and NaN was replaced by 0. The "
        "robust accuracy may be too high: look for a root, a logarithm or a division at 0 in the model."
    }


def masking_flag(robust_after: Mapping[str, int], total: int) -> dict[str, str]:
    """Flag images that only Square fools, after gradient attacks.

    Args:
        robust_after: Number of robust images after each attack that ran, first `clean`.
        total: Number of images.
    """
    counts = list(robust_after.items())
    fooled = next((before - after for (_, before), (name, after) in pairwise(counts[1:]) if name == "square"), 0)
    if fooled <= max(1, 0.002 * total):
        return {}
    return {
        "black-box": f"Of {total} images, {fooled} were fooled only by Square: gradients may be masked, and the "
        "reported robust accuracy may be too high. Use an adaptive attack."
    }


def relative_change(logits: Tensor, reference: Tensor) -> float:
    """Largest difference, as a fraction of the spread of the reference."""
    spread = (reference - reference.mean()).square().mean().sqrt()
    return float((logits - reference).abs().max() / spread.clamp_min(torch.finfo(spread.dtype).tiny))


def are_probabilities(outputs: Tensor) -> bool:
    """Whether all outputs (N, C) are non-negative with row sums of 1."""
    return bool((outputs >= 0).all() and ((outputs.sum(dim=1) - 1).abs() < 1e-3).all())


def with_other_images(x: Tensor) -> Tensor:
    """Images (N, C, H, W), every second one inverted."""
    others = x.clone()
    others[1::2] = 1 - x[1::2]
    return others


class _Adapted(nn.Module):
    """A model whose output is a tensor with a gradient, zero if it has none."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        logits = logits_of(self.model(x))
        return logits if logits.requires_grad else logits + 0 * x.flatten(1).sum(dim=1, keepdim=True)


@contextmanager
def _isolated(model: nn.Module, device: torch.device) -> Iterator[Callable[[], bool]]:
    """Set the mode of evaluations; restore modes, buffers and generators on exit."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        full_precision(),
        frozen(model),
        buffers_kept(model, alone=False),
        generators_kept(model, device) as used,
    ):
        yield used


def _output(model: nn.Module, images: Tensor) -> object:
    given = images.clone()  # no leaf, which autograd would not let the model change
    try:
        output: object = model(given)
    except Exception as error:  # a network can raise anything
        raise ValueError(
            f"The model must accept float32 images of shape {tuple(images.shape)}, got the error: {summary(error)}. "
            "Pass a model for these images, such as model.float()."
        ) from error
    if given._version:
        raise ValueError(
            "The model must not change its images in place. Return new tensors, as x - mean, not x.sub_(mean)."
        )
    return output


@torch.no_grad()
def _output_flags(model: nn.Module, x: Tensor, logits: Tensor, used: Callable[[], bool]) -> dict[str, str]:
    flags: dict[str, str] = {}
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        flags["train-mode"] = f"{training[0]} stays in train mode after model.eval(). Results can be random."
    if undefined(logits).any():
        flags["finite-outputs"] = "Some logits are not finite; these count as misclassified. Look for an overflow."
    elif are_probabilities(logits):
        flags["softmax-outputs"] = (
            "The outputs are probabilities, not logits: gradients are too small, and the robust accuracy may be too "
            "high. Remove the softmax from the model."
        )
    if used() or relative_change(model(x), logits) > VISIBLE:
        flags["random-outputs"] = (
            "The model is random: another evaluation can differ, and its evidence cannot be verified. Switch the "
            "randomness off, or use ReferenceAutoAttack with version=rand."
        )
    elif len(x) > 1 and relative_change(model(with_other_images(x))[::2], model(x)[::2]) > VISIBLE:
        flags["batch-dependence"] = (
            "The logits of an image depend on the other images of the batch: another batch size gives another result. "
            "Use running statistics in BatchNorm."
        )
    return flags


def _gradient_flags(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, str]:
    """Flag gradients of correctly classified images that are zero or not finite."""
    zero = infinite = 0
    for loss in (cross_entropy, margin):
        logits = model(x)
        (gradient,) = torch.autograd.grad(loss(logits, y).sum(), x)
        rows = gradient.flatten(1)[~misclassified(logits, y)]
        zero = max(zero, int((rows == 0).all(dim=1).sum()))
        infinite = max(infinite, int(undefined(rows).sum()))
        correct = len(rows)
    flags: dict[str, str] = {}
    if 2 * zero > correct:
        flags["zero-gradients"] = (
            f"The gradient is zero for {zero} of {correct} images: gradient attacks fail, and the robust accuracy may "
            "be too high. Look for rounding, detach() or saturated outputs, and use an adaptive attack."
        )
    return flags | gradient_flag(infinite, correct)
