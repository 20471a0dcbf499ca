"""Images that are not what the model and the attacks take them for."""

from typing import ClassVar

import torch
from torch import Tensor

from lightning_paf.evaluation.checks.base import Finding, Symptom, gain, is_large, percent, share
from lightning_paf.evaluation.checks.context import Patient
from lightning_paf.functional.predictions import misclassified

_TOLERANCE = 1e-4  # interpolation overshoots by a rounding error; attacks accept as much
_GREY_LEVEL = 1 / 255


class PixelRange(Symptom):
    """Images must lie in [0, 1], where eps has its unit, and must fill more than one grey level of it."""

    name = "pixel-range"
    decisive = True
    why = "Eps and the clamp of every attack are in units of [0, 1]; elsewhere the threat model is another one."
    remedy = (
        "Give images in [0, 1]: divide grey levels by 255, once, and move normalisation into the model "
        "(`Classifier` does it in the first line of `forward`)."
    )

    def examine(self, patient: Patient) -> Finding:
        """Look at the extremes."""
        finite = bool(patient.x.isfinite().all())
        low, high = (limit.item() for limit in patient.x.nan_to_num().aminmax())
        healthy = finite and low >= -_TOLERANCE and _GREY_LEVEL + _TOLERANCE < high <= 1 + _TOLERANCE
        evidence = f"pixels lie in [{low:.4g}, {high:.4g}]" + ("" if finite else ", and some are NaN or infinite")
        return self.finding(healthy, evidence, low=low, high=high, finite=finite)


class Normalisation(Symptom):
    """A model that is better on normalised images was trained on them, and gets others here."""

    name = "normalisation"
    why = "Images that the model was not trained on cost clean accuracy, and an attack on them judges another model."
    remedy = (
        "Put the normalisation of the training into the model (`--model.normalize true`, or mean and std of the "
        "network); attacks then still work in [0, 1]."
    )
    scales: ClassVar[dict[str, tuple[float, float]]] = {"[-1, 1]": (0.5, 0.5), "[0, 255]": (0.0, _GREY_LEVEL)}
    """Usual ranges of pixels, as a mean and a standard deviation."""

    def examine(self, patient: Patient) -> Finding:
        """Compare the accuracies on the images as they are and after each usual normalisation."""
        candidates = {name: (patient.x - mean) / std for name, (mean, std) in self.scales.items()}
        if patient.spec is not None:
            mean, std = (_channels(v, patient.x) for v in (patient.spec.mean, patient.spec.std))
            candidates = {"mean and std of the dataset": (patient.x - mean) / std, **candidates}
        right = {name: ~misclassified(patient.logits(x), patient.y) for name, x in candidates.items()}
        best = max(right, key=lambda name: int(right[name].sum()))
        difference = gain(right[best], patient.correct)
        evidence = f"clean accuracy {percent(share(patient.correct))}, {percent(share(right[best]))} with {best}"
        accuracies = {name: share(of_one) for name, of_one in right.items()}
        return self.finding(not is_large(difference), evidence, raw=share(patient.correct), **accuracies)


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    """One value a channel, to be combined with images."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)
