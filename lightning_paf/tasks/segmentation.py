"""Few-shot segmentation under attacks on query or support."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from torch import Tensor, nn
from torch.optim import SGD

from lightning_paf.attacks import PGD, Attack, radius_text
from lightning_paf.attacks.episodes import Target, attacked_alone, paper_attacks
from lightning_paf.data import EpisodeDataModule
from lightning_paf.data.episode_set import EpisodeBatch, QueryDataset
from lightning_paf.evaluation.evaluate import CLEAN
from lightning_paf.evaluation.scores import Limits, Row
from lightning_paf.functional.segmentation import dice, dice_counts, predicted_class
from lightning_paf.nets.few_shot import FewShotSegmenter, PANet
from lightning_paf.nn.activations import Activation
from lightning_paf.nn.classifier import penalty_of
from lightning_paf.nn.parameter_groups import DecayRule
from lightning_paf.nn.swap import Scope, swap_activations
from lightning_paf.objectives.segmentation import EpisodeCE, EpisodeObjective
from lightning_paf.schedules import Constant, Schedule
from lightning_paf.tasks.base import default_optimizer
from lightning_paf.tasks.scored import ScoredTask
from lightning_paf.types import Radius
from lightning_paf.utils.distributed import gathered
from lightning_paf.utils.figures import VERMILION, open_figure, show_image
from lightning_paf.utils.options import checked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = 4
_COUNTS = ("intersection", "prediction", "mask")


class FewShotSegmentation(ScoredTask):
    """Training of a few-shot segmenter on episodes (Pandey et al. 2022).

    PANet and PNODE are the networks of these names with `EpisodeCE`; R-PNODE is `PNODE` with `RegularizedEpisodeCE`.
    The validation logs `val/dice` and `val/dice_adv`, clean and under `attack`. `test` evaluates all `attacks`, and
    writes `segmentation.json`, with intervals over volumes, and `segmentation.png` to the run folder. Dice is computed
    over all slices of a volume.

    Args:
        net: Network from normalised images (N, C, H, W) to features (N, D, h, w): `PANet` or `PNODE`.
        objective: Training loss; null for `EpisodeCE`.
        attack: Inner maximisation of adversarial training, and attack of the validation; null for PGD with 10 steps of
            `eps / 3.5`.
        attacks: Attacks of the test, by name; null for FGSM and PGD within `eps`.
        seven_attacks: Test the seven attacks of the paper within `eps` instead of `attacks`.
        target: Images that are attacked in validation and test: `query` or `support`.
        eps: Largest change of a pixel in [0, 1]; 0.035 in the paper.
        activation: Replaces every ReLU, SiLU and GELU of the network, as in `RobustModule`; null keeps them.
        activation_scope: Part of the network that shares one activation.
        optimizer: Optimiser of all parameters.
        schedule: Factor of the learning rate over the training; null for a constant.
        decay: Parameters with weight decay; see `RobustModule`.
        init: Checkpoint of another training of the same network, whose weights this one starts with.
        channels: Image channels; follows `--data.channels`.
        size: Size of the slices; follows `--data.size`.

    Raises:
        ValueError: A number out of range.
    """

    kind, stem = "segmenter", "segmentation"
    limits: ClassVar[Limits] = {"dice": (0.0, 1.0)}
    data = EpisodeDataModule
    plug_ins: ClassVar[Mapping[str, type]] = {"net": PANet, "objective": EpisodeObjective}
    instead_of_predict = "Run test, which draws masks."
    val_metrics = ("val/dice", "val/dice_adv")
    model: FewShotSegmenter

    def __init__(
        self,
        net: nn.Module,
        objective: EpisodeObjective | None = None,
        attack: Attack | None = None,
        attacks: dict[str, Attack] | None = None,
        seven_attacks: bool = False,
        target: Target = "query",
        eps: Radius = 0.035,
        activation: Activation | None = None,
        activation_scope: Scope = "network",
        optimizer: OptimizerCallable = lambda p: SGD(p, lr=1e-3, momentum=0.9, weight_decay=5e-4),
        schedule: Schedule | None = None,
        decay: DecayRule = "weights",
        init: Path | None = None,
        channels: int = 1,
        size: int = 32,
    ) -> None:
        super().__init__(optimizer, schedule or Constant(), decay, init)
        if _given_hyperparameters.get() is not None:
            self.save_hyperparameters()
        checked("eps", eps, float(eps) > 0, "positive", 0.035, "--model")
        spec = EpisodeDataModule.spec_of(channels, size)
        if activation is not None:
            example = torch.zeros(1, channels, size, size)
            swap_activations(net, lambda: deepcopy(activation), scope=activation_scope, example=example)
        self.model = FewShotSegmenter(net, spec.mean, spec.std)
        self.objective = objective or EpisodeCE()
        self.attack = attack or PGD(eps, step_size=float(eps) / 3.5)
        self.attacks = _tested(attacks, seven_attacks, float(eps), channels * size * size)
        self.target, self.eps = target, eps
        self._found: dict[int, Row] = {}
        self.load_init()

    def forward(self, batch: EpisodeBatch) -> Tensor:
        """Scores (E, W + 1, H, W) of the queries of episodes."""
        scores: Tensor = self.model(batch)
        return scores

    def trial_pass(self, images: Tensor) -> None:
        """Compute features of images (N, C, H, W)."""
        self.model.features(images)

    def training_step(self, batch: EpisodeBatch, batch_idx: int) -> Tensor:
        """Return the loss of the objective."""
        error, logs = self.objective(self.model, batch, self.attack)
        loss: Tensor = error + penalty_of(self.model)
        self.record(loss, **logs)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Reset the counts."""
        self._found = {}

    def validation_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Count pixels, without and with the attack."""
        for number, episode in zip(batch.numbers.tolist(), batch.separate(), strict=True):
            self._found[number] = self._counts(episode, {"adv": self.attack})

    def on_validation_epoch_end(self) -> None:
        """Log the mean Dice over the volumes of all ranks."""
        dataset = self.trainer.datamodule.val_dataloader().dataset  # type: ignore[attr-defined]
        volumes = volume_dice({n: row for part in gathered(self._found) for n, row in part.items()}, dataset)
        for name, condition in zip(self.val_metrics, (CLEAN, "adv"), strict=True):
            self.log(name, fmean(row[condition]["dice"] for row in volumes.values()), prog_bar=True, sync_dist=True)

    def test_settings(self) -> dict[str, Any]:
        """Attacks of the test."""
        attacks = {name: attack.describe() for name, attack in self.attacks.items()}
        return {"target": self.target, "eps": radius_text(self.eps), "attacks": attacks}

    def evaluations(self, batch: EpisodeBatch) -> Iterator[tuple[int, Sequence[Tensor], Callable[[], Row]]]:
        """Count the pixels of each query, without and with each attack."""
        for number, episode in zip(batch.numbers.tolist(), batch.separate(), strict=True):
            yield number, episode[:-1], partial(self._counts, episode, self.attacks)

    def table(self, rows: Mapping[int, Row]) -> dict[str, Row]:
        """Dice of each volume and class, over its slices."""
        return volume_dice(rows, self.test_dataset())

    def draw_test(self) -> "Figure":
        """Draw support, query, mask and predictions of one slice."""
        dataset = self.test_dataset()
        sizes = {int(n): int((dataset[int(n)].query_mask == 1).sum()) for n in (dataset.pair_of == 0).nonzero()}
        versions = self._versions(self.test_batch(max(sizes, key=lambda number: sizes[number])), self.attacks)
        clean = versions[CLEAN]
        panels: list[tuple[str, Tensor, Tensor | None]] = [
            ("support", clean.support[0, 0, 0], clean.support_masks[0, 0, 0] == 1)
        ]
        panels += [("query", clean.query[0], None), ("query mask", clean.query[0], clean.query_mask[0] == 1)]
        for name, episode in versions.items():
            predicted = self._predicted(episode)
            value = float(dice(dice_counts(predicted, clean.query_mask)))
            panels.append((f"{name}, Dice {value:.2f}", episode.query[0], predicted[0] == 1))
        rows = -(-len(panels) // _COLUMNS)
        with open_figure(
            2.4 * _COLUMNS, 2.6 * rows, f"Attacks on the {self.target}, ε = {radius_text(self.eps)}"
        ) as figure:
            axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
            for ax, (title, image, outline) in zip(axes, panels, strict=False):
                pixels = image.permute(1, 2, 0).float().cpu().numpy()
                show_image(ax, pixels if pixels.shape[2] == 3 else pixels[..., 0], title, cmap="gray", vmin=0, vmax=1)
                if outline is not None and outline.any():
                    ax.contour(outline.cpu().numpy(), [0.5], colors=VERMILION, linewidths=1.5)
            for ax in axes[len(panels) :]:
                ax.set_axis_off()
        return figure

    def _versions(self, episode: EpisodeBatch, attacks: Mapping[str, Attack]) -> dict[str, EpisodeBatch]:
        """Return one episode by condition."""
        moved = {name: attacked_alone(self.model, episode, attack, self.target) for name, attack in attacks.items()}
        return {CLEAN: episode, **moved}

    @torch.no_grad()
    def _predicted(self, batch: EpisodeBatch) -> Tensor:
        return predicted_class(self.model(batch))

    def _counts(self, episode: EpisodeBatch, attacks: Mapping[str, Attack]) -> Row:
        found = {
            name: dice_counts(self._predicted(moved), episode.query_mask)[0].tolist()
            for name, moved in self._versions(episode, attacks).items()
        }
        return {name: dict(zip(_COUNTS, counts, strict=True)) for name, counts in found.items()}


def _tested(attacks: dict[str, Attack] | None, seven: bool, eps: float, pixels: int) -> dict[str, Attack]:
    """Return the attacks of the test by name."""
    names, paper = [*(attacks or ())], paper_attacks(eps, pixels)
    checked("attacks", names, CLEAN not in names, f"named other than {CLEAN}", "null", "--model")
    checked("attacks", names, attacks is None or not seven, "null with seven_attacks", "null", "--model")
    if attacks is not None:
        return attacks
    return paper if seven else {name: paper[name] for name in ("fgsm", "pgd")}


def volume_dice(rows: Mapping[int, Row], dataset: QueryDataset) -> dict[str, Row]:
    """Dice of each volume and class, from the counts of all its slices."""
    slices: dict[int, list[Row]] = {}
    for number, row in rows.items():
        slices.setdefault(int(dataset.pair_of[number]), []).append(row)
    found: dict[str, Row] = {}
    for pair, of in sorted(slices.items()):
        name, label = dataset.pairs[pair]
        sums = {c: torch.tensor([[sum(row[c][count] for row in of) for count in _COUNTS]]) for c in of[0]}
        found[f"{name} class {label}"] = {c: {"dice": dice(counts).item()} for c, counts in sums.items()}
    return found


_sgd = default_optimizer(FewShotSegmentation, "_sgd")
