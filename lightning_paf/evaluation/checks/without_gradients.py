"""Attacks that do not see the model's gradients, and must not be better for it."""

from lightning_paf.attacks.square import Square
from lightning_paf.evaluation.checks.base import Finding, Symptom, gain, is_large, percent, share
from lightning_paf.evaluation.checks.context import Patient
from lightning_paf.evaluation.checks.smoothing import MeasuredGradient, pixel_spread
from lightning_paf.functional.losses import margin

_QUERIES = 300
_TRANSFER_STEPS = 10

_WHY = "An attack that knows less must not find more: gradients hide the direction in which the model is weak."
_REMEDY = (
    "Do not report the white-box number. Judge by AutoAttack, find the layer that hides the gradient (see "
    "zero-gradients and finite-differences), and attack it adaptively (Tramèr et al. 2020)."
)


class BlackBox(Symptom):
    """Square, which sees scores only, must not break what white-box attacks leave."""

    name = "black-box"
    why = _WHY
    remedy = _REMEDY

    def examine(self, patient: Patient) -> Finding:
        """Attack what stands."""
        before = patient.under_white_box
        square = Square(patient.eps, norm=patient.norm, queries=_QUERIES, batch_size=patient.batch_size)
        after = patient.survivors(square, before)
        evidence = f"white box leaves {percent(share(before))}, Square with {_QUERIES} queries {percent(share(after))}"
        return self.finding(not is_large(gain(before, after)), evidence, before=share(before), after=share(after))


class Transfer(Symptom):
    """Examples made on another model must not break what white-box attacks leave."""

    name = "transfer"
    why = _WHY
    remedy = _REMEDY

    def examine(self, patient: Patient) -> Finding:
        """Attack a surrogate; without one, the model with measured derivatives (far weaker on large images)."""
        before, source, named = patient.under_white_box, patient.surrogate, "the surrogate"
        if source is None:
            spread = pixel_spread(float(patient.eps), patient.norm, patient.x[0].numel())
            source, named = MeasuredGradient(patient.model, spread), "measured gradients"
        after = patient.survivors(patient.pgd(margin, _TRANSFER_STEPS, 1 / 4), before, source)
        evidence = f"white box leaves {percent(share(before))}, PGD with {named} {percent(share(after))}"
        return self.finding(not is_large(gain(before, after)), evidence, before=share(before), after=share(after))
