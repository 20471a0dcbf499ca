"""Checks of gradients, and of attacks whose results should agree."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from lightning_paf.attacks.smoothed_pgd import SmoothedPGD
from lightning_paf.attacks.square import Square
from lightning_paf.evaluation.checks.context import (
    MANY_STEPS,
    RESTARTS,
    STEPS,
    CheckResult,
    Context,
    fraction,
    is_frequent,
    is_large_gain,
    percent,
)
from lightning_paf.functional.losses import cross_entropy, margin
from lightning_paf.nn.modes import frozen

_MAX_FLAT_FRACTION = 0.5
"""Largest accepted fraction of pixels without a gradient.

Masked gradients concern most pixels, dead units and crops a few."""

_JITTER = 0.1
"""Fraction of uniform noise in the images on which derivatives are compared."""

_POINTS = 8
"""Number of gradients whose mean is compared with a central difference.

Mean and difference then include the same kinks of a long step."""

_GROWTH_STEPS = 20
_QUERIES = 300
_WIDTHS = (1.0, 2.0, 4.0)
_NO_WIDTH = 1e-6
_TILES = 8

_MASKED = (
    "Gradients hide the direction in which the model is weak: do not report the white-box number. Find the layer (see "
    "zero-gradients, finite-differences), attack it adaptively (Tramèr et al. 2020), and evaluate with AutoAttack."
)


def zero_gradients(context: Context) -> CheckResult:
    """Check that gradients of cross-entropy and margin exist and are finite."""
    x, y = context.x[context.correct], context.y[context.correct]
    passed, texts = True, list[str]()
    values: dict[str, dict[str, float]] = {}
    for name, loss in (("cross-entropy", cross_entropy), ("margin", margin)):
        flat = context.gradients(loss, context.model, x, y).flatten(1)
        zero, infinite = (flat == 0).all(dim=1), int((~flat.isfinite().all(dim=1)).sum())
        samples, without = len(flat), int(zero.sum())
        pixels = 1.0 if zero.all() else fraction(flat[~zero] == 0)
        passed &= not is_frequent(without, samples) and infinite == 0 and pixels <= _MAX_FLAT_FRACTION
        text = f"{without} of {samples} samples"
        text += f", {percent(pixels)} of the others' pixels" if without < samples else ""
        text += f", NaN or infinite in {infinite} samples" if infinite else ""
        texts.append(f"{text} ({name})")
        values[name] = {"samples": samples, "without": without, "not_finite": infinite, "flat_pixels": pixels}
    hint = (
        "Gradient attacks do not move. Look for rounding, detach(), thresholds or float16; attack a differentiable "
        "approximation (BPDA, Athalye et al. 2018), and evaluate with Square. If only cross-entropy fails, its softmax "
        "has saturated: attack the margin or DLR."
    )
    return CheckResult("zero-gradients", passed, "without a gradient: " + "; ".join(texts), hint, values)


def finite_differences(context: Context) -> CheckResult:
    """Compare directional derivatives of the margin with central differences."""
    model = _double(context)
    if model is not None:  # a step so short that it rarely contains a kink
        dtype, step, tolerance, precision = torch.float64, 1e-5, 0.01, "float64"
    else:  # a step so long that the difference exceeds rounding
        model, dtype, step, tolerance, precision = context.model, context.x.dtype, 0.05, 0.25, "single precision"
    x, y = context.x[context.correct].to(dtype), context.y[context.correct]
    # Avoid kinks: those of a clamp at the border of the pixel range, and those of max-pooling at ties in flat regions.
    x = 2 * step + (1 - 4 * step) * x.lerp(torch.rand_like(x), _JITTER)
    direction = torch.randn_like(x)
    direction /= direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    gradient = torch.zeros_like(x)
    for at in torch.linspace(-step, step, 2 * _POINTS + 1).tolist()[1::2]:
        with context.isolated("difference"):
            gradient += context.gradients(margin, model, x + at * direction, y) / _POINTS
    ends = []
    for at in (-step, step):
        with context.isolated("difference"):
            ends.append(margin(context.logits(x + at * direction, model), y))
    difference, derivative = (ends[1] - ends[0]) / (2 * step), (gradient * direction).flatten(1).sum(dim=1)
    usual = gradient.flatten(1).norm(dim=1) / x[0].numel() ** 0.5  # of a derivative in a random direction
    size = torch.stack([difference.abs(), derivative.abs(), usual]).amax(dim=0)
    rounding = 10 * torch.finfo(dtype).eps * torch.stack(ends).abs().amax(dim=0) / step
    differ = int((~((difference - derivative).abs() <= tolerance * size + rounding)).sum())  # NaN differs
    hint = (
        "A gradient attack follows another function. Look for detach(), no_grad, straight-through and custom backward "
        "functions. If intended, report it, and also evaluate without gradients (Square)."
    )
    measured = f"measured and computed derivative differ by more than {100 * tolerance:g} % for {differ} of {len(x)} "
    measured += f"samples ({precision})"
    values = {"samples": len(x), "disagree": differ, "precision": precision}
    return CheckResult("finite-differences", not is_frequent(differ, len(x)), measured, hint, values)


def _double(context: Context) -> nn.Module | None:
    """A copy of the model in double precision; None if a layer rounds."""
    try:
        model = copy.deepcopy(context.model).double()
        x = context.x[:1].double().clamp(0.25, 0.75)  # near zero, single precision resolves the change below too
        with torch.no_grad(), frozen(model):
            logits = model(x)
            fits = logits.dtype == x.dtype and not torch.equal(logits, model(x + 1e-11 * torch.randn_like(x)))
    except (RuntimeError, TypeError):  # a layer with a fixed precision, or a model that cannot be copied
        return None
    return model if fits else None


def logit_scale(context: Context) -> CheckResult:
    """Check that PGD on cross-entropy gains little from smaller logits.

    They are divided by powers of ten, down to margins around one.
    """
    size = margin(context.clean_logits, context.y)[context.correct].abs().median().item()
    before = context.robust_to(context.pgd(cross_entropy), context.correct)
    after, powers = before, max(1, math.ceil(math.log10(max(size, 1.0))))
    for power in range(1, powers + 1):
        attack = context.pgd(lambda z, y, by=10.0**power: cross_entropy(z / by, y))  # type: ignore[misc]
        after = context.robust_to(attack, after)
    divisors = "10" if powers == 1 else f"10 to 1e{powers}"
    hint = "Large logits saturate the softmax in cross-entropy. Attack the margin or DLR, as AutoAttack does."
    texts = (f"PGD-{STEPS} on cross-entropy", f"with logits over {divisors}")
    return _gain("logit-scale", texts, (before, after), hint, median_margin=size, powers_of_ten=powers)


def more_steps(context: Context) -> CheckResult:
    """Check that a hundred steps gain little over ten."""
    hint = "PGD has not converged. Evaluate with AutoAttack, and look for layers that make the loss rugged."
    texts = (f"PGD-{STEPS}", f"PGD-{MANY_STEPS}")
    return _gain("more-steps", texts, (context.robust_to_pgd, context.robust_to_many_steps), hint)


def more_starts(context: Context) -> CheckResult:
    """Check that further random starts gain little."""
    hint = "The loss has many local optima. Evaluate with AutoAttack; look for layers that make it rugged or random."
    texts = ("1 start", f"{1 + RESTARTS} starts")
    return _gain("more-starts", texts, (context.robust_to_pgd, context.robust_to_restarts), hint)


def growing_eps(context: Context) -> CheckResult:
    """Check that no sample is robust once the ball contains all images."""
    largest = 1.0 if context.norm == "linf" else min(math.sqrt(context.x[0].numel()), 50.0)
    robust, radius = context.robust_to_white_box, float(context.eps)
    curve = {radius: fraction(robust)}
    while radius < largest:
        radius = min(2 * radius, largest)
        robust = context.robust_to(context.pgd(steps=_GROWTH_STEPS, radius=radius), robust)
        curve[radius] = fraction(robust)
    measured = "accuracy " + ", ".join(f"{percent(value)} at {radius:.3g}" for radius, value in curve.items())
    hint = (
        "At the largest eps no image is robust: the attack has missed some. Attack a differentiable approximation of "
        "the layer that stops the gradient (BPDA), or evaluate without gradients (Square)."
    )
    values = {"accuracy_at": {f"{radius:g}": value for radius, value in curve.items()}}
    return CheckResult("growing-eps", not is_frequent(int(robust.sum()), len(robust)), measured, hint, values)


def smoothed_gradients(context: Context) -> CheckResult:
    """Check that gradients at moved points find little that exact ones miss."""
    settings = {"norm": context.norm, "steps": 40, "smoothed_steps": 25, "targets": 1, "batch_size": context.batch_size}
    exact, smoothed = (
        SmoothedPGD(context.eps, widths=widths, **settings)  # type: ignore[arg-type]
        for widths in ([_NO_WIDTH] * len(_WIDTHS), _WIDTHS)
    )
    before = context.robust_to(exact, context.robust_to_white_box)
    after = context.robust_to(smoothed, before)
    found, samples = int((before & ~after).sum()), len(before)
    measured = f"exact gradients leave {percent(before)} robust, smoothed ones {percent(after)}"
    hint = (
        "The loss is flat around images, and gradients within eps do not point to adversarial images that exist. The "
        f"robust accuracy from gradient attacks is too high, here by at least {100 * found / samples:.1f} points. "
        "Evaluate with --autoattack.attack.version strong."
    )
    values = {"before": fraction(before), "after": fraction(after), "found": found}
    return CheckResult("smoothed-gradients", not is_frequent(found, samples), measured, hint, values)


def black_box(context: Context) -> CheckResult:
    """Check that Square gains little over white-box attacks."""
    square = Square(context.eps, norm=context.norm, queries=_QUERIES, batch_size=context.batch_size)
    before = context.robust_to_white_box
    texts = ("white box", f"Square with {_QUERIES} queries")
    return _gain("black-box", texts, (before, context.robust_to(square, before)), _MASKED)


def transfer(context: Context) -> CheckResult:
    """Check that perturbations from another model gain little over white-box attacks.

    Without a surrogate the model itself with estimated gradients is attacked, which is far weaker on large images.
    """
    spread = float(context.eps) / 2 / (1 if context.norm == "linf" else math.sqrt(context.x[0].numel()))
    before, source = context.robust_to_white_box, context.surrogate or EstimatedGradient(context.model, spread)
    texts = ("white box", "PGD with " + ("the surrogate" if context.surrogate else "estimated gradients"))
    return _gain("transfer", texts, (before, context.robust_to(context.pgd(), before, source)), _MASKED)


def _gain(
    name: str, attacks: tuple[str, str], robust: tuple[Tensor, Tensor], hint: str, **values: float
) -> CheckResult:
    """Compare the robust samples (n,) before and after a second attack."""
    before, after = robust
    measured = f"{attacks[0]} leaves {percent(before)} robust, {attacks[1]} {percent(after)}"
    values = {"before": fraction(before), "after": fraction(after), **values}
    return CheckResult(name, not is_large_gain(before, after), measured, hint, values)


class EstimatedGradient(nn.Module):
    """A model with the derivative of its Gaussian smoothing, estimated from outputs.

    The derivative is the mean of `u (f(x + s u) - f(x - s u)) / 2 s` over Gaussian `u` (Nesterov & Spokoiny 2017). It
    passes layers without a useful gradient: rounding, detached parts, saturated or rugged ones. The noise is constant
    on 8 x 8 tiles, which are few dimensions: gradients of neighbouring pixels agree (Ilyas et al. 2019).

    Args:
        model: Model in eval mode at the call.
        spread: Standard deviation `s` of the noise in each pixel.
        pairs: Differences for one derivative, two forward passes each.
    """

    def __init__(self, model: nn.Module, spread: float, pairs: int = 10) -> None:
        super().__init__()
        self.model, self.spread, self.pairs = model, spread, pairs

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits."""
        fixed, tiles = x.detach(), [min(size, _TILES) for size in x.shape[2:]]
        with torch.no_grad():
            logits: Tensor = self.model(fixed)
        for _ in range(self.pairs):
            noise = interpolate(torch.randn(*x.shape[:2], *tiles, device=x.device, dtype=x.dtype), size=x.shape[2:])
            with torch.no_grad():
                change = self.model(fixed + self.spread * noise) - self.model(fixed - self.spread * noise)
            along = ((x - fixed) * noise).flatten(1).sum(dim=1, keepdim=True)  # zero, with the gradient `noise`
            logits = logits + change * along / (2 * self.spread * self.pairs)
        return logits
