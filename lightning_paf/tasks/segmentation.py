"""Few-shot segmentation under attacks on query or support."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.optim import SGD

from lightning_paf.attacks import PGD, Attack, radius_text
from lightning_paf.attacks.episodes import Target, attacked_alone, seven_attacks
from lightning_paf.data import EpisodeDataModule
from lightning_paf.data.episode_set import EpisodeBatch, QueryDataset
from lightning_paf.evaluation.segmentation import CLEAN, VolumeCounts, summary
from lightning_paf.functional.segmentation import dice, dice_counts, predicted_class
from lightning_paf.nets.few_shot import FewShotSegmenter, PANet
from lightning_paf.nn.activations import Activation
from lightning_paf.nn.classifier import penalty_of
from lightning_paf.nn.parameter_groups import DecayRule
from lightning_paf.nn.swap import Scope, swap_activations
from lightning_paf.objectives.segmentation import EpisodeCE, EpisodeObjective
from lightning_paf.runs.folder import run_folder_of
from lightning_paf.runs.weights_origin import weights_origin
from lightning_paf.schedules import Constant, Schedule
from lightning_paf.tasks.base import Task, default_optimizer
from lightning_paf.types import Radius
from lightning_paf.utils.distributed import sum_over_ranks
from lightning_paf.utils.figures import VERMILION, open_figure, save_figure, show_image
from lightning_paf.utils.files import write_whole
from lightning_paf.utils.options import checked

RESULT, FIGURE = "segmentation.json", "segmentation.png"
_COLUMNS = 4


class FewShotSegmentation(Task):
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
        attacks: Attacks of the test, by name; null for the seven of the paper within `eps`.
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

    kind = "segmenter"
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
        checked(
            "attacks", attacks, attacks is None or CLEAN not in attacks, f"named other than {CLEAN}", "null", "--model"
        )
        checked("eps", eps, float(eps) > 0, "positive", 0.035, "--model")
        spec = EpisodeDataModule.spec_of(channels, size)
        if activation is not None:
            example = torch.zeros(1, channels, size, size)
            swap_activations(net, lambda: deepcopy(activation), scope=activation_scope, example=example)
        self.model = FewShotSegmenter(net, spec.mean, spec.std)
        self.objective = objective or EpisodeCE()
        self.attack = attack or PGD(eps, step_size=float(eps) / 3.5)
        self.attacks = seven_attacks(float(eps), channels * size * size) if attacks is None else attacks
        self.target, self.eps = target, eps
        self._counts: VolumeCounts | None = None
        self._pairs = torch.empty(0)
        self._shown: dict[str, Any] = {}
        self._folder = Path()
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
        self._reset("val", ["adv"])

    def validation_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Count pixels, without and with the attack."""
        self._evaluate(batch, {"adv": self.attack})

    def on_validation_epoch_end(self) -> None:
        """Log the mean Dice."""
        scores = self._scores()
        for name, values in zip(self.val_metrics, scores.values(), strict=True):
            self.log(name, values.mean(), prog_bar=True)

    def on_test_start(self) -> None:
        """Reset the counts, and keep the run folder."""
        super().on_test_start()
        self._reset("test", list(self.attacks))
        self._shown = {}
        # On all ranks.
        self._folder = run_folder_of(self.trainer)

    def test_step(self, batch: EpisodeBatch, batch_idx: int) -> None:
        """Count pixels, without and with each attack; keep one slice for the figure."""
        versions = self._evaluate(batch, self.attacks)
        sizes = (batch.query_mask == 1).sum((1, 2)) * (self._pairs[batch.numbers] == 0)
        row, size = int(sizes.argmax()), int(sizes.max())
        if size > self._shown.get("size", 0):
            one = {name: EpisodeBatch(*(part[row].cpu() for part in found)) for name, (found, _) in versions.items()}
            self._shown = {"size": size, "episodes": one, "masks": {n: m[row].cpu() for n, (_, m) in versions.items()}}

    def on_test_epoch_end(self) -> None:
        """Log the means, and write the result of all processes."""
        results = summary(self._scores())
        for condition, result in results.items():
            self.log(f"test/dice_{condition}", result["value"], sync_dist=True)
        content = {
            "weights": weights_origin(self.trainer, self).content(),
            "volumes": [f"{name} class {label}" for name, label in self._dataset("test").pairs],
            "target": self.target,
            "eps": radius_text(self.eps),
            "attacks": {name: attack.describe() for name, attack in self.attacks.items()},
            "results": results,
        }
        if self.trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(self._folder / RESULT, f"{json.dumps(content, indent=1, allow_nan=False)}\n".encode())
            if self._shown:
                self._draw()
        for condition, result in results.items():
            interval = "" if result["low"] is None else f" [{result['low']:.3f}, {result['high']:.3f}]"
            rank_zero_info(f"{condition}: Dice {result['value']:.3f}{interval}")
        rank_zero_info(f"Result: {self._folder / RESULT}, {FIGURE}")

    def _evaluate(self, batch: EpisodeBatch, attacks: dict[str, Attack]) -> dict[str, tuple[EpisodeBatch, Tensor]]:
        """Count pixels, and return episodes and predicted masks for each condition."""
        assert self._counts is not None
        found = {}
        for name, attack in {CLEAN: None, **attacks}.items():
            moved = batch if attack is None else attacked_alone(self.model, batch, attack, self.target)
            with torch.no_grad():
                predicted = predicted_class(self.model(moved))
            self._counts.add(name, self._pairs[batch.numbers], dice_counts(predicted, batch.query_mask))
            found[name] = moved, predicted
        return found

    def _dataset(self, part: str) -> QueryDataset:
        dataset: QueryDataset = getattr(self.trainer.datamodule, f"{part}_dataloader")().dataset  # type: ignore[attr-defined]
        return dataset

    def _reset(self, part: str, attacks: list[str]) -> None:
        dataset = self._dataset(part)
        self._pairs = dataset.pair_of.to(self.device)
        self._counts = VolumeCounts(len(dataset.pairs), [CLEAN, *attacks], self.device)

    def _scores(self) -> dict[str, Tensor]:
        """Dice of each volume and class, over the slices of all ranks."""
        assert self._counts is not None
        return {name: dice(sum_over_ranks(sums)) for name, sums in self._counts.sums.items()}

    def _draw(self) -> None:
        """Draw support, query, mask and prediction, without and with each attack."""
        episodes, masks = self._shown["episodes"], self._shown["masks"]
        clean = episodes[CLEAN]
        panels = [("support", clean.support[0, 0], clean.support_masks[0, 0] == 1)]
        panels += [("query", clean.query, None), ("query mask", clean.query, clean.query_mask == 1)]
        for name, mask in masks.items():
            value = float(dice(dice_counts(mask[None], clean.query_mask[None])))
            panels.append((f"{name}, Dice {value:.2f}", episodes[name].query, mask == 1))
        rows = -(-len(panels) // _COLUMNS)
        with open_figure(
            2.4 * _COLUMNS, 2.6 * rows, f"Attacks on the {self.target}, ε = {radius_text(self.eps)}"
        ) as figure:
            axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
            for ax, (title, image, mask) in zip(axes, panels, strict=False):
                pixels = image.permute(1, 2, 0).float().numpy()
                show_image(ax, pixels if pixels.shape[2] == 3 else pixels[..., 0], title, cmap="gray", vmin=0, vmax=1)
                if mask is not None and mask.any():
                    ax.contour(mask.numpy(), [0.5], colors=VERMILION, linewidths=1.5)
            for ax in axes[len(panels) :]:
                ax.set_axis_off()
            save_figure(figure, self._folder / FIGURE)


_sgd = default_optimizer(FewShotSegmentation, "_sgd")
