"""Randomised smoothing: certified accuracy after training with noise."""

from functools import cache
from pathlib import Path

from torch import Tensor

from lightning_paf.analysis.randomized_smoothing import Certificates, Smoothing
from lightning_paf.experiments.experiment import Claim, Experiment, Metric, Variant
from lightning_paf.experiments.options import NATURAL, objective
from lightning_paf.loading import Run, load_run
from lightning_paf.objectives.gaussian_noise import training_noise

SAMPLES = 2000
SIGMA = 0.25
"""Standard deviation of the noise for the network trained without noise."""


@cache
def _certificates(checkpoint: Path, examples: int) -> Certificates:
    """Certificates of the first test images, computed once for all radii."""
    run = load_run(checkpoint, device="cpu")
    samples = run.samples(examples)
    smoothing = Smoothing(training_noise(run.module.objective) or SIGMA, n=SAMPLES)
    return smoothing.certify(run.model, samples.fetch(samples.ids)[0])


def _certified(radius: float) -> Metric:
    def metric(run: Run, x: Tensor, y: Tensor) -> Tensor:
        return _certificates(run.checkpoint, len(x)).certified(y, radius)

    return metric


EXPERIMENT = Experiment(
    title="Randomised smoothing (Cohen et al., ICML 2019)",
    variants=(
        Variant("natural", NATURAL),
        Variant("noise0.12", objective("NoisyCE", std=0.12)),
        Variant("noise0.25", objective("NoisyCE", std=0.25)),
        Variant("noise0.5", objective("NoisyCE", std=0.5)),
    ),
    claims=(
        Claim(
            "Smoothed with 0.25, training with that noise certifies more at radius 0.25 than clean training",
            *("noise0.25", "natural", "certified 0.25"),
            source="paper",
        ),
        Claim("Noise 0.5 certifies more than 0.25 at radius 1", "noise0.5", "noise0.25", "certified 1", source="paper"),
        Claim("Noise 0.5 certifies more than 0.25 at radius 0.6", "noise0.5", "noise0.25", "certified 0.6"),
        Claim("Noise 0.25 is more accurate, smoothed, than 0.5", "noise0.25", "noise0.5", "certified 0", 0, "paper"),
        Claim("Noise 0.12 is more accurate, smoothed, than 0.25", "noise0.12", "noise0.25", "certified 0", 0, "paper"),
    ),
    metrics={f"certified {radius:g}": _certified(radius) for radius in (0, 0.25, 0.6, 1)},
    shown=("certified 0", "certified 0.25", "certified 0.6", "certified 1"),
    note=(
        f"certified R: fraction of images whose true class is certified within l2 radius R, by 100 + {SAMPLES:,} "
        f"samples at alpha 0.001, each network smoothed with the noise of its training (natural: {SIGMA:g}). clean, "
        "pgd and autoattack evaluate the base networks without smoothing. With 0.25 and this number of samples, no "
        "radius above 0.68 can be certified."
    ),
)
