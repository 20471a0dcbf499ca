"""Models whose answer depends on more than the image."""

import torch
from torch import Tensor

from lightning_paf.evaluation.checks.base import VISIBLE, Finding, Symptom, percent, share
from lightning_paf.evaluation.checks.context import Patient
from lightning_paf.functional.predictions import predicted

_REPETITIONS = 3


class TrainMode(Symptom):
    """A model that was handed in in train mode, where that changes its outputs."""

    name = "train-mode"
    why = "Dropout and batch statistics make verdicts random and dependent on the batch, and BatchNorm keeps learning."
    remedy = "Call model.eval() before evaluating, also on parts that a wrapper keeps to itself."

    def examine(self, patient: Patient) -> Finding:
        """Compare the outputs as handed in with those in eval mode, on the same random numbers."""
        training = [name or "the model" for name, module in patient.model.named_modules() if module.training]
        x = patient.x[: patient.batch_size]
        patient.seeded()
        handed_in = patient.handed_in_logits(x)
        patient.seeded()
        evaluated = patient.logits(x)
        change, changed = _change(handed_in, evaluated), _disagreement(handed_in, evaluated)
        evidence = "no module came in train mode"
        if training:
            names = ", ".join(training[:3]) + (f" and {len(training) - 3} more" if len(training) > 3 else "")
            evidence = f"in train mode came {names}, which changes the logits by {change:.2g} of their spread"
            evidence += f" and {percent(changed)} of the predictions"
        healthy = not training or change <= VISIBLE
        return self.finding(healthy, evidence, modules=training, change=change, predictions_changed=changed)


class RandomOutputs(Symptom):
    """The same images must get the same logits, in eval mode."""

    name = "random-outputs"
    why = "An attack meets other numbers in each step, so that its failure proves nothing, and a verdict is a draw."
    remedy = (
        "Switch the randomness off for evaluation; where it is the defence, attack the expectation over many draws "
        "(`ReferenceAutoAttack` with version=rand) and report the mean of several runs."
    )

    def examine(self, patient: Patient) -> Finding:
        """Repeat the forward pass."""
        reference = patient.clean_logits
        repeated = [patient.logits(patient.x) for _ in range(_REPETITIONS)]
        change = max(_change(logits, reference) for logits in repeated)
        flipped = max(_disagreement(logits, reference) for logits in repeated)
        evidence = f"{_REPETITIONS} repetitions change the logits by {change:.2g} of their spread"
        if flipped:
            evidence += f", and up to {percent(flipped)} of the predictions"
        return self.finding(change <= VISIBLE, evidence, change=change, predictions_changed=flipped)


class BatchDependence(Symptom):
    """The answer for an image must not depend on the other images of its batch, in eval mode."""

    name = "batch-dependence"
    why = "The verdict for an image then depends on its neighbours, which the attack perturbs at the same time."
    remedy = "Use running statistics in evaluation (BatchNorm with track_running_stats=True), or a norm over one image."

    def examine(self, patient: Patient) -> Finding:
        """Replace every second image by its negative, on the same random numbers, and look at the others."""
        x = patient.x[: patient.batch_size]
        others = x.clone()
        others[1::2] = 1 - x[1::2]
        patient.seeded()
        alone = patient.logits(x)[::2]
        patient.seeded()
        change = _change(patient.logits(others)[::2], alone)
        evidence = f"other neighbours in the batch change the logits by {change:.2g} of their spread"
        return self.finding(change <= VISIBLE, evidence, change=change)


def _change(logits: Tensor, reference: Tensor) -> float:
    """Largest difference, as a share of the spread of the reference."""
    spread = (reference - reference.mean()).square().mean().sqrt()
    return float((logits - reference).abs().max() / spread.clamp_min(torch.finfo(spread.dtype).tiny))


def _disagreement(first: Tensor, second: Tensor) -> float:
    """Share of the images with two predictions."""
    return share(predicted(first) != predicted(second))
