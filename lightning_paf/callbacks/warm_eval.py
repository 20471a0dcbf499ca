"""An upper bound of AutoAttack accuracy while a network trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_paf.attacks import Attack
from lightning_paf.callbacks.robust_eval import RobustEval, Stage
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.samples import Samples
from lightning_paf.evaluation.stopping import ConfidenceSequence, StopRule
from lightning_paf.evaluation.warm import WarmCheck, joined
from lightning_paf.speed.search_model import Precision
from lightning_paf.utils.distributed import barrier_without_timeout, gathered


class WarmEval(RobustEval):
    """`RobustEval` whose validation check begins where the last one ended, and stops when it knows enough.

    It replays the adversarial images of the last check, searches for those that survive from the images that came
    nearest to fooling the network, and stops at the interval that `val_stop` asks for. Logs `val/acc_{name}` and the
    same as `val/aa_upper`, since no attack breaks less than all of AutoAttack does, with the ends of its anytime-valid
    95 % interval, `val/aa_upper_low` and `val/aa_upper_high`; and what it cost in images forward or backward for each
    judged sample, `val/aa_passes`, beside `val/aa_passes_cold`, the same of the first check. Its memory is part of
    checkpoints. In test it is the same as `RobustEval`.

    Args:
        attack: Its stages must be APGD: AutoAttack with version=custom and attacks=[apgd-ce, apgd-t].
        name: Suffix of the metric and of the files.
        every_n_epochs: Validation epochs between two checks; 0 judges only in test.
        max_examples: Judge at most the first so many samples of the validation set; null judges all.
        test_examples: Judge only the first so many samples of the test set; null judges all.
        batch_size: Samples in a block; `val_stop` is asked after each, in test it is a block of the ledger.
        seed: Of the attack and of the order of the samples.
        search_precision: `bf16` searches faster on hardware that has it, and confirms every success in fp32.
        stop: As in `RobustEval`, for the test.
        ledger: As in `RobustEval`, for the test.
        receipt: As in `RobustEval`, for the test.
        warm_steps: Steps of every stage in a check that is not the first.
        val_stop: Ends a check, such as HalfWidth; null judges all of `max_examples`.

    Raises:
        ValueError: As `RobustEval`; a stage that is not APGD.
    """

    def __init__(
        self,
        attack: Attack,
        name: str = "warm",
        every_n_epochs: int = 1,
        max_examples: int | None = 1024,
        test_examples: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        search_precision: Precision = "fp32",
        stop: StopRule | None = None,
        ledger: Path | None = None,
        receipt: bool = True,
        warm_steps: int = 20,
        val_stop: StopRule | None = None,
    ) -> None:
        options = (every_n_epochs, max_examples, test_examples, batch_size, seed, search_precision, stop)
        super().__init__(attack, name, *options, ledger, receipt)
        self.warm = WarmCheck(attack, steps=warm_steps, block_size=batch_size, seed=seed, precision=search_precision)
        self.val_stop = val_stop
        self._cost = torch.zeros(2)  # passes and samples of the present check
        self._cold_cost = torch.zeros(2)
        self._counts: tuple[int, int, int] = (0, 0, 0)
        self._begun_with: dict[str, Any] | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what a checkpoint is to hold that is made before the validation ends: it is begun anew then."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._begun_with = self._memory()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the check."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._begun_with = None

    def state_dict(self) -> dict[str, Any]:
        """The memory of the last check, of all ranks: a sample may be another one's after a restart."""
        memory = self._begun_with or self._memory()
        return {**memory, "warm": joined(gathered(memory["warm"]))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self.warm.load_state_dict(state_dict["warm"])
        self._cold_cost = state_dict["cold_cost"]

    def _memory(self) -> dict[str, Any]:
        return {"warm": self.warm.state_dict(), "cold_cost": self._cold_cost}

    def _check(self, trainer: Trainer, model: nn.Module, samples: Samples) -> None:
        with barrier_without_timeout() as wait:
            together = _Together(trainer, self.val_stop, wait)
            result = self.warm.run(model, samples, together.ask)
            together.wait_for_the_others()
        self._counts = together.counts
        self._verdicts[torch.from_numpy(result.ids)] = torch.from_numpy(result.verdicts).int()
        cost = torch.tensor([float(result.passes), float(len(result.ids))], device=trainer.strategy.root_device)
        self._cost = trainer.strategy.reduce(cost, reduce_op="sum").cpu()
        if trainer.strategy.reduce_boolean_decision(result.cold, all=True):  # a rank without samples is always cold
            self._cold_cost = self._cost
        if trainer.is_global_zero and not result.cold:
            rank_zero_info(
                f"{self.name}: {result.replayed} of {len(result.ids)} samples fell to the last check's images; "
                f"{_each(self._cost):.0f} passes a sample, the first check needed {_each(self._cold_cost):.0f}"
            )

    def _log(self, stage: Stage, pl_module: LightningModule, result: EvaluationResult) -> None:
        super()._log(stage, pl_module, result)
        if stage == "test":
            return
        robust, judged, total = self._counts
        interval = ConfidenceSequence(total).update(robust, judged)
        values = {"aa_upper": result.robust.value, "aa_upper_low": interval.low, "aa_upper_high": interval.high}
        costs = {"aa_passes": _each(self._cost), "aa_passes_cold": _each(self._cold_cost)}
        pl_module.log_dict({f"val/{key}": value for key, value in (values | costs).items()}, sync_dist=True)


class _Together:
    """The stop rule of all ranks: asked by all of them after each block, answered for their counts together.

    A rank with fewer blocks goes on asking until all have ended, since the answer needs everybody.
    """

    def __init__(self, trainer: Trainer, rule: StopRule | None, wait: Callable[[], None]) -> None:
        self.trainer = trainer
        self.rule = rule
        self.wait = wait  # for ranks whose block takes longer
        self.counts = (0, 0, 0)
        self._mine = (0, 0, 0)
        self._stopped = False
        if rule is not None:
            rule.reset()

    def ask(self, robust: int, judged: int, total: int) -> bool:
        """Whether to stop, for the counts of this rank."""
        self._mine = (robust, judged, total)
        return self._reduce() or judged == total

    def wait_for_the_others(self) -> None:
        """Take part in their questions."""
        while not self._stopped:
            self._reduce()

    def _reduce(self) -> bool:
        self.wait()
        mine = torch.tensor(self._mine, device=self.trainer.strategy.root_device)
        robust, judged, total = (int(n) for n in self.trainer.strategy.reduce(mine, reduce_op="sum"))
        self.counts = (robust, judged, total)
        enough = self.rule is not None and judged > 0 and self.rule(robust, judged, total)
        # Clocks differ between ranks: what one has decided holds for all.
        self._stopped = self.trainer.strategy.reduce_boolean_decision(enough, all=False) or judged == total
        return self._stopped


def _each(cost: torch.Tensor) -> float:
    """Passes for each sample."""
    return float(cost[0] / cost[1].clamp_min(1))
