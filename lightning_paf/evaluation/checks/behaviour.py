"""Checks of images, outputs and modes, without an evaluation of robustness."""

import torch
from torch import Tensor

from lightning_paf.attacks.probe import VISIBLE, are_probabilities, relative_change, with_other_images
from lightning_paf.evaluation.checks.context import CheckResult, Context, fraction, is_large_gain, percent
from lightning_paf.evaluation.statistics import exact_accuracy
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.functional.predictions import NO_PREDICTION, misclassified, predicted, undefined

_PIXEL_TOLERANCE = 1e-4  # rounding errors of interpolation
_GREY_LEVEL = 1 / 255
_REPETITIONS = 3


def pixel_range(context: Context) -> CheckResult:
    """Check that images are in [0, 1] and span more than one grey level."""
    finite = bool(context.x.isfinite().all())
    low, high = (limit.item() for limit in context.x.nan_to_num().aminmax())
    passed = finite and low >= -_PIXEL_TOLERANCE and _GREY_LEVEL + _PIXEL_TOLERANCE < high <= 1 + _PIXEL_TOLERANCE
    measured = f"pixels lie in [{low:.4g}, {high:.4g}]" + ("" if finite else ", some are NaN or infinite")
    hint = "Eps is in units of [0, 1]. Divide grey levels by 255, once; normalise in the model, as `Classifier` does."
    return CheckResult("pixel-range", passed, measured, hint, {"low": low, "high": high, "finite": finite})


def train_mode(context: Context) -> CheckResult:
    """Check that no module is in train mode, or that the outputs do not depend on it."""
    training = [name or "the model" for name, module in context.model.named_modules() if module.training]
    x = context.x[: context.batch_size]
    with torch.no_grad(), context.isolated("mode"):
        found: Tensor = context.model(x)
    with context.isolated("mode"):
        expected = context.logits(x)
    change, flipped = relative_change(found, expected), _flipped(found, expected)
    measured = "no module in train mode"
    if training:
        names = ", ".join(training[:3]) + (f" and {len(training) - 3} more" if len(training) > 3 else "")
        measured = f"in train mode: {names}; it changes the logits by {change:.2g} of their spread"
        measured += f" and {percent(flipped)} of the predictions"
    hint = "Results are random or depend on the batch. Call model.eval(), also for submodules that a wrapper hides."
    values = {"modules": training, "change": change, "predictions_changed": flipped}
    return CheckResult("train-mode", not training or change <= VISIBLE, measured, hint, values)


def finite_outputs(context: Context) -> CheckResult:
    """Check that logits are finite, on clean images and within the threat model."""
    clean, attack = undefined(context.clean_logits), context.pgd(cross_entropy)
    parts = zip(*(torch.split(column, context.batch_size) for column in (context.x, context.y)), strict=True)
    attacked = torch.cat([undefined(context.logits(attack(context.model, *part))) for part in parts])
    measured = f"{percent(clean)} of the samples have a NaN or infinite logit"
    if attacked.any():
        measured += f", {percent(attacked)} after PGD-{attack.steps}"
    hint = "Such logits count as errors. Evaluate in single precision; look for divisions by zero and overflows."
    values = {"fraction": fraction(clean), "fraction_attacked": fraction(attacked)}
    return CheckResult("finite-outputs", not (clean | attacked).any(), measured, hint, values)


def random_outputs(context: Context) -> CheckResult:
    """Check that the same images get the same logits in eval mode."""
    repeated = [context.logits(context.x) for _ in range(_REPETITIONS)]
    change = max(relative_change(logits, context.clean_logits) for logits in repeated)
    flipped = max(_flipped(logits, context.clean_logits) for logits in repeated)
    measured = f"{_REPETITIONS} repetitions change the logits by {change:.2g} of their spread"
    if flipped:
        measured += f", and up to {percent(flipped)} of the predictions"
    hint = (
        "A failed attack on a random model proves nothing. Switch randomness off, or, if it is the defence, attack the "
        "mean over many draws (`ReferenceAutoAttack` with version=rand), and report the mean of several runs."
    )
    values = {"change": change, "predictions_changed": flipped}
    return CheckResult("random-outputs", change <= VISIBLE, measured, hint, values)


def batch_dependence(context: Context) -> CheckResult:
    """Check that logits do not depend on the other images of the batch."""
    x = context.x[: context.batch_size]
    with context.isolated("batch"):
        expected = context.logits(x)[::2]
    with context.isolated("batch"):
        change = relative_change(context.logits(with_other_images(x))[::2], expected)
    measured = f"other images in the batch change the logits by {change:.2g} of their spread"
    hint = "An attack changes all images at once. Use running statistics in BatchNorm, or a norm over one image."
    return CheckResult("batch-dependence", change <= VISIBLE, measured, hint, {"change": change})


def softmax_outputs(context: Context) -> CheckResult:
    """Check that outputs are logits, not probabilities."""
    sums = context.clean_logits.sum(dim=1)
    low, off = context.clean_logits.min().item(), (sums - 1).abs().max().item()
    measured = f"smallest output {low:.3g}, row sums from {sums.min():.3g} to {sums.max():.3g}"
    hint = "A second softmax, in the loss, flattens gradients of confident samples. Remove that of the model."
    values = {"smallest": low, "largest_distance_from_one": off}
    return CheckResult("softmax-outputs", not are_probabilities(context.clean_logits), measured, hint, values)


def normalisation(context: Context) -> CheckResult:
    """Check that no usual normalisation of the images improves clean accuracy."""
    scales: dict[str, tuple[float | tuple[float, ...], float | tuple[float, ...]]]
    scales = {"[-1, 1]": (0.5, 0.5), "[0, 255]": (0.0, _GREY_LEVEL)}
    if context.spec is not None:
        scales = {"mean and std of the dataset": (context.spec.mean, context.spec.std), **scales}
    correct = {}
    for name, scale in scales.items():
        mean, std = (torch.tensor(value).to(context.x).view(1, -1, 1, 1) for value in scale)
        correct[name] = ~misclassified(context.logits((context.x - mean) / std), context.y)
    best = max(correct, key=lambda name: int(correct[name].sum()))
    measured = f"clean accuracy {percent(context.correct)}, {percent(correct[best])} with {best}"
    hint = (
        "The model was trained on normalised images. Put the normalisation into it (`--model.normalize true`, or mean "
        "and std of the network); attacks then still work in [0, 1]."
    )
    values = {"raw": fraction(context.correct)} | {name: fraction(flags) for name, flags in correct.items()}
    return CheckResult("normalisation", not is_large_gain(correct[best], context.correct), measured, hint, values)


def clean_accuracy(context: Context) -> CheckResult:
    """Check that accuracy exceeds agreement by chance (Cohen 1960)."""
    accuracy = exact_accuracy(int(context.correct.sum()), len(context.y))
    classes, guesses = context.clean_logits.shape[1], predicted(context.clean_logits)
    counts = (torch.bincount(labels, minlength=classes) for labels in (guesses[guesses != NO_PREDICTION], context.y))
    chance = float(torch.stack([count / len(context.y) for count in counts]).prod(dim=0).sum())
    measured = f"clean accuracy {accuracy}, chance {percent(chance)}"
    hint = "Robustness at chance level is meaningless. Check the checkpoint, class order, labels and preprocessing."
    values = {"accuracy": accuracy.value, "low": accuracy.low, "chance": chance}
    return CheckResult("clean-accuracy", accuracy.low > chance, measured, hint, values)


def _flipped(first: Tensor, second: Tensor) -> float:
    """Fraction of the images with two predictions."""
    return fraction(predicted(first) != predicted(second))
