"""Outputs that are no logits, or that tell nothing."""

import torch

from lightning_paf.evaluation.checks.base import Finding, Symptom, percent, share
from lightning_paf.evaluation.checks.context import STEPS, Patient
from lightning_paf.evaluation.statistics import exact_accuracy
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.functional.predictions import NO_PREDICTION, predicted, undefined


class FiniteOutputs(Symptom):
    """Logits must be numbers."""

    name = "finite-outputs"
    decisive = True
    why = "NaN and infinite logits count as errors or as correct by accident, and no gradient passes them."
    remedy = "Evaluate in single precision, and look for a division by zero or an overflow on the images concerned."

    def examine(self, patient: Patient) -> Finding:
        """Count the images with a NaN or an infinity, clean and within the threat model."""
        broken, attack = undefined(patient.clean_logits), patient.pgd(cross_entropy, STEPS, 1 / 4)
        parts = zip(*(torch.split(whole, patient.batch_size) for whole in (patient.x, patient.y)), strict=True)
        attacked = torch.cat([undefined(patient.logits(attack(patient.model, *part))) for part in parts])
        evidence = f"{percent(share(broken))} of the samples have a NaN or infinite logit"
        if attacked.any():
            evidence += f", {percent(share(attacked))} after PGD-{STEPS}"
        healthy = not bool((broken | attacked).any())
        return self.finding(healthy, evidence, share=share(broken), share_attacked=share(attacked))


class SoftmaxOutputs(Symptom):
    """Logits, not probabilities: cross-entropy and DLR apply to logits."""

    name = "softmax-outputs"
    why = "A second softmax in the loss flattens its gradient to nothing for confident samples, and DLR is undefined."
    remedy = "Return logits: remove the final softmax from the model."

    def examine(self, patient: Patient) -> Finding:
        """Look whether all rows are distributions."""
        sums = patient.clean_logits.sum(dim=1)
        low, off = patient.clean_logits.min().item(), (sums - 1).abs().max().item()
        evidence = f"smallest output {low:.3g}, sums of the rows from {sums.min():.3g} to {sums.max():.3g}"
        return self.finding(not (low >= 0 and off < 1e-3), evidence, smallest=low, largest_distance_from_one=off)


class CleanAccuracy(Symptom):
    """The model must know something of the labels."""

    name = "clean-accuracy"
    decisive = True
    why = "Robustness of a model at chance cannot be judged; labels, class order or preprocessing are probably wrong."
    remedy = (
        "Check the checkpoint, the order of the classes, the labels and the preprocessing (see the other findings)."
    )

    def examine(self, patient: Patient) -> Finding:
        """Compare with the agreement that the same predictions would have with shuffled labels (Cohen 1960)."""
        accuracy = exact_accuracy(int(patient.correct.sum()), len(patient.y))
        classes = patient.clean_logits.shape[1]
        guesses = predicted(patient.clean_logits)
        frequencies = torch.bincount(guesses[guesses != NO_PREDICTION], minlength=classes) / len(patient.y)
        chance = float(frequencies @ (torch.bincount(patient.y, minlength=classes) / len(patient.y)))
        evidence = f"clean accuracy {accuracy}, chance {percent(chance)}"
        return self.finding(accuracy.low > chance, evidence, accuracy=accuracy.value, low=accuracy.low, chance=chance)
