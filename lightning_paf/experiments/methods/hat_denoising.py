"""Hybrid adversarial training of denoisers against normal and vanilla AT."""

from itertools import islice

from lightning_paf.evaluation.denoising import NOISES, denoised, observations
from lightning_paf.experiments.experiment import Claim, Experiment, Measurement, Variant
from lightning_paf.functional.image_quality import psnr
from lightning_paf.loading import Run

STEPS = 20
"""Steps of the stronger attack."""


def scores(run: Run, examples: int) -> dict[str, list[float]]:
    """PSNR in dB of the first test photographs after denoising, for each noise."""
    module, model = run.module, run.module.model
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for batch in islice(run.datamodule.test_batches(), examples):  # type: ignore[attr-defined]
        for _, clean, noisy in module.observed(batch):
            for condition, image in noisy.items():
                found[condition].append(psnr(denoised(model, image), clean).item())
                if condition.startswith("obsatk"):
                    found[condition.replace("obsatk", "noisy")].append(psnr(image, clean).item())
        (number,) = batch[1].tolist()
        for sigma in module.sigmas:
            strong = observations(model, clean, sigma, module.level, STEPS, seed=number)["obsatk"]
            found[f"strong_{sigma:g}"].append(psnr(denoised(model, strong), clean).item())
    return found


METRICS = tuple(f"{name}_{sigma}" for sigma in (25, 15) for name in (*NOISES, "strong", "noisy"))

EXPERIMENT = Experiment(
    title="HAT for denoising (Yan et al., IJCAI 2022)",
    variants=(
        Variant("nt", ("--model.objective", "NormalTraining")),
        Variant("at", ("--model.objective", "VanillaAT")),
        Variant("hat", ("--model.objective", "HybridAT")),
    ),
    claims=(
        Claim("ObsAtk harms NT more than Gaussian noise", "nt", "nt", "gaussian_25", source="paper", than="obsatk_25"),
        Claim("HAT denoises ObsAtk better than NT", "hat", "nt", "obsatk_25", source="paper"),
        Claim("HAT removes noise with ObsAtk", "hat", "hat", "obsatk_25", source="paper", than="noisy_25"),
        Claim("HAT exceeds NT by 0.5 dB under ObsAtk", "hat", "nt", "obsatk_25", by=0.5),
        Claim("AT exceeds NT by 0.5 dB under ObsAtk", "at", "nt", "obsatk_25", by=0.5),
        Claim("HAT is within 0.5 dB of AT under ObsAtk", "hat", "at", "obsatk_25", by=-0.5),
        Claim("NT is at least as good as HAT on Gaussian noise", "nt", "hat", "gaussian_25"),
        Claim("HAT exceeds AT on Gaussian noise", "hat", "at", "gaussian_25"),
        Claim("HAT is at least as good as NT on uniform noise", "hat", "nt", "uniform_25"),
        Claim(f"HAT exceeds NT under ObsAtk of {STEPS} steps", "hat", "nt", "strong_25"),
    ),
    options=(
        *("--data.patch", "24", "--data.batch_size", "16", "--data.epoch", "2000", "--trainer.max_epochs", "12"),
        *("--trainer.check_val_every_n_epoch", "1000", "--trainer.enable_progress_bar", "false"),
    ),
    plain=METRICS,
    shown=("gaussian_25", "uniform_25", "obsatk_25", "strong_25"),
    config="denoising/photographs",
    measurement=Measurement("denoiser", METRICS, scores, "PSNR in dB"),
    note=(
        "DnCNN of 5 convolutions with 16 channels; 1,500 steps of 16 grey patches of 24 x 24 pixels from 6 photographs "
        "of scikit-image; tested on crops of at most 128 x 128 pixels of 10 others. Metrics end with the standard "
        "deviation of the noise in grey levels. For obsatk it is divided into Gaussian noise, of 20 or 10, and ObsAtk "
        f"of 5. strong: ObsAtk of {STEPS} steps. noisy: obsatk before denoising. AT is our reading of the names of the "
        "authors' checkpoints. Real noise is not tested."
    ),
)
