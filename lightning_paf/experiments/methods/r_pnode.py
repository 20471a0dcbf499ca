"""Few-shot segmentation by prototypes: PANet, PNODE and R-PNODE under attack."""

import torch

from lightning_paf.attacks import FGSM, PGD, Attack
from lightning_paf.attacks.episodes import attacked
from lightning_paf.experiments.experiment import Claim, Experiment, Measurement, Variant
from lightning_paf.functional.segmentation import dice, dice_counts, predicted_class
from lightning_paf.loading import Run

_ATTACKS: dict[str, Attack | None] = {"clean": None}
for _eps in (0.02, 0.05):
    _ATTACKS |= {f"fgsm_{_eps}": FGSM(_eps), f"pgd_{_eps}": PGD(_eps, step_size=_eps / 4, steps=10)}
METRICS = tuple(_ATTACKS)


def scores(run: Run, examples: int) -> dict[str, list[float]]:
    """Dice of the first test volumes and classes, clean and under each attack."""
    model = run.module.model
    dataset, batches = run.datamodule.test_batches()  # type: ignore[attr-defined]
    counts = {metric: torch.zeros(len(dataset.pairs), 3, dtype=torch.int64) for metric in METRICS}
    for batch in batches:
        for metric, attack in _ATTACKS.items():
            moved = batch if attack is None else attacked(model, batch, attack, "query")
            with torch.no_grad():
                found = dice_counts(predicted_class(model(moved)), batch.query_mask)
            counts[metric].index_add_(0, dataset.pair_of[batch.numbers], found)
    return {metric: dice(found)[:examples].tolist() for metric, found in counts.items()}


def _variant(name: str, net: str, objective: str, *options: str) -> Variant:
    return Variant(name, ("--model.net", net, "--model.objective", objective, *options))


EXPERIMENT = Experiment(
    title="R-PNODE (Pandey et al., IEEE TMI 2023)",
    variants=(
        _variant("panet", "PANet", "EpisodeCE"),
        _variant("panet-at", "PANet", "AdversarialEpisodeCE"),
        _variant("pnode", "PNODE", "EpisodeCE"),
        _variant("r-pnode", "PNODE", "RegularizedEpisodeCE"),
        _variant("r-pnode-pssilu", "PNODE", "RegularizedEpisodeCE", "--model.activation", "PSSiLU"),
    ),
    claims=(
        Claim("PNODE is more robust to PGD than PANet", "pnode", "panet", "pgd_0.05", source="paper"),
        Claim("PNODE is more robust to FGSM than PANet", "pnode", "panet", "fgsm_0.05", source="paper"),
        Claim("R-PNODE is at least as robust to PGD as PNODE", "r-pnode", "pnode", "pgd_0.05", -0.02, "paper"),
        Claim("R-PNODE is at least as robust to FGSM as PNODE", "r-pnode", "pnode", "fgsm_0.05", -0.02, "paper"),
        Claim("R-PNODE is more robust to PGD than PANet", "r-pnode", "panet", "pgd_0.05", source="paper"),
        Claim("R-PNODE is at least as good as PANet on clean images", "r-pnode", "panet", "clean", -0.02, "paper"),
        Claim("PNODE is more robust than PANet to PGD at eps 0.02", "pnode", "panet", "pgd_0.02"),
        Claim("R-PNODE is more robust to PGD than PNODE", "r-pnode", "pnode", "pgd_0.05"),
        Claim("AT makes PANet more robust to PGD", "panet-at", "panet", "pgd_0.05"),
        Claim("PANet with AT is more robust to PGD than R-PNODE", "panet-at", "r-pnode", "pgd_0.05"),
        Claim("PSSiLU makes R-PNODE more robust to PGD", "r-pnode-pssilu", "r-pnode", "pgd_0.05"),
    ),
    options=(
        *("--data.subjects", "150", "--data.batch_size", "4", "--data.epoch", "500", "--trainer.max_epochs", "3"),
        *("--data.eval_batch_size", "64"),
        *("--model.attack", "PGD", "--model.attack.eps", "0.05", "--model.attack.step_size", "0.02"),
        *("--model.attack.steps", "5", "--trainer.check_val_every_n_epoch", "1000"),
        *("--trainer.enable_progress_bar", "false"),
    ),
    plain=METRICS,
    shown=METRICS,
    config="segmentation/shapes",
    measurement=Measurement("segmenter", METRICS, scores, "Dice of a volume"),
    note=(
        "Synthetic slices of 32 x 32 pixels with two textured shapes of six classes; 1,500 training episodes of four "
        "classes, tested on the other two. An encoder of 3 convolutions with 32 channels, and a last block of 3: a "
        "neural ODE of 8 Euler steps for PNODE, its field at time 0 for PANet, with the same parameters. Metrics end "
        "with the linf radius of the attack on the query: FGSM, or PGD of 10 steps. panet-at: adversarial training by "
        "PGD of 5 steps at 0.05. r-pnode-pssilu: PSSiLU in place of every ReLU. The numbers of the paper and the "
        "settings of its regulariser are unknown. Images of the tables are volumes with a class."
    ),
)
