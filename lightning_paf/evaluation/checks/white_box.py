"""Gradient attacks that should agree, and do not."""

import math
from functools import partial

from torch import Tensor

from lightning_paf.evaluation.checks.base import (
    Finding,
    Symptom,
    gain,
    is_frequent,
    is_large,
    percent,
    share,
)
from lightning_paf.evaluation.checks.context import FURTHER_STARTS, MANY_STEPS, STEPS, Patient
from lightning_paf.functional.losses import cross_entropy, margin

_GROWTH_STEPS = 20


class LogitScale(Symptom):
    """PGD on cross-entropy must not gain where logits are divided by powers of ten."""

    name = "logit-scale"
    why = "Large logits saturate the softmax: cross-entropy has no usable gradient, and PGD on it reports too much."
    remedy = "Judge by attacks that do not depend on the scale: DLR or the margin (AutoAttack has DLR), not CE alone."

    def examine(self, patient: Patient) -> Finding:
        """Attack with cross-entropy; what stands, again with smaller and smaller logits, down to margins around one."""
        size = margin(patient.clean_logits, patient.y)[patient.correct].abs().median().item()
        before = patient.survivors(patient.pgd(cross_entropy, STEPS, 1 / 4), patient.correct)
        after, powers = before, max(1, math.ceil(math.log10(max(size, 1.0))))
        for power in range(1, powers + 1):
            after = patient.survivors(patient.pgd(partial(_scaled_entropy, 10.0**power), STEPS, 1 / 4), after)
        evidence = f"PGD-{STEPS} on cross-entropy leaves {percent(share(before))}, {percent(share(after))} with logits "
        evidence += "over 10" if powers == 1 else f"over 10 to 1e{powers}"
        values = {"before": share(before), "after": share(after), "median_margin": size, "powers_of_ten": powers}
        return self.finding(not is_large(gain(before, after)), evidence, **values)


def _scaled_entropy(divisor: float, logits: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(logits / divisor, y)


class MoreSteps(Symptom):
    """A hundred steps must gain little over ten."""

    name = "more-steps"
    why = "An attack that has not converged reports too much; gradients that point nowhere converge slowly or never."
    remedy = "Judge by an attack that has converged (AutoAttack), and look for layers that make the loss rugged."

    def examine(self, patient: Patient) -> Finding:
        """Compare."""
        before, after = patient.under_quick_attack, patient.under_more_steps
        evidence = f"PGD-{STEPS} leaves {percent(share(before))}, PGD-{MANY_STEPS} {percent(share(after))}"
        return self.finding(not is_large(gain(before, after)), evidence, before=share(before), after=share(after))


class MoreStarts(Symptom):
    """Further random starts must gain little."""

    name = "more-starts"
    why = "Where the start decides, the loss has many local optima around the image, and one run proves little."
    remedy = "Judge by an attack with restarts (AutoAttack), and look for layers that make the loss rugged or random."

    def examine(self, patient: Patient) -> Finding:
        """Compare."""
        before, after = patient.under_quick_attack, patient.under_more_starts
        evidence = f"1 start leaves {percent(share(before))}, {1 + FURTHER_STARTS} starts {percent(share(after))}"
        return self.finding(not is_large(gain(before, after)), evidence, before=share(before), after=share(after))


class GrowingEps(Symptom):
    """Where the ball holds all images, nothing can be robust."""

    name = "growing-eps"
    why = "At the largest eps every image can be turned into any other: what stands there, the attack has missed."
    remedy = "Attack with a stand-in for the layer that stops the gradient (BPDA), or without gradients (Square)."

    def examine(self, patient: Patient) -> Finding:
        """Double eps until the ball holds all images; what an attack broke at one eps is broken at the next."""
        standing = patient.under_white_box
        curve = {float(patient.eps): share(standing)}
        radius = float(patient.eps)
        while radius < patient.largest_radius:
            radius = min(2 * radius, patient.largest_radius)
            standing = patient.survivors(patient.pgd(margin, _GROWTH_STEPS, 1 / 4, radius), standing)
            curve[radius] = share(standing)
        evidence = "accuracy " + ", ".join(f"{percent(value)} at {radius:.3g}" for radius, value in curve.items())
        left = int(standing.sum())
        curve_values = {f"{radius:g}": value for radius, value in curve.items()}
        return self.finding(not is_frequent(left, len(standing)), evidence, accuracy_at=curve_values)
