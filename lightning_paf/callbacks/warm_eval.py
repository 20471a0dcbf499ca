"""Upper bound of AutoAttack accuracy during training."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_paf.attacks import Attack
from lightning_paf.callbacks.robust_eval import RobustEval, Stage
from lightning_paf.evaluation import Samples
from lightning_paf.evaluation.result import EvaluationResult
from lightning_paf.evaluation.stopping import StopRule, anytime_interval
from lightning_paf.evaluation.warm import WarmCheck, joined
from lightning_paf.utils.distributed import barrier_without_timeout, gathered


class WarmEval(RobustEval):
    """`RobustEval` that starts from the adversarial images of the last validation.

    It first replays these images. The remaining robust samples are attacked from the images with the smallest margin,
    until `val_stop`. Logs `val/acc_{name}` and the same value as `val/aa_upper`, an upper bound of AutoAttack accuracy,
    with its anytime-valid 95 % interval from `val/aa_upper_low` to `val/aa_upper_high`. Logs the cost, in images
    forward or backward per evaluated sample, as `val/aa_passes`, and that of the first validation as
    `val/aa_passes_cold`. Its state is part of checkpoints. In test it is the same as `RobustEval`.

    Args:
        attack: Its sub-attacks must be APGD: AutoAttack with version=custom and attacks=[apgd-ce, apgd-t].
        name: Suffix of the metric and prefix of the file names.
        max_examples: Evaluate at most the first samples of the validation set; null evaluates all.
        batch_size: Samples per block; `val_stop` is called after each.
        warm_steps: Steps of every sub-attack after the first validation.
        val_stop: Stops a validation early, such as HalfWidth; null evaluates all of `max_examples`.
        **options: Further options of `RobustEval`.

    Raises:
        ValueError: As `RobustEval`; a sub-attack that is not APGD.
    """

    def __init__(
        self,
        attack: Attack,
        name: str = "warm",
        max_examples: int | None = 1024,
        batch_size: int = 256,
        warm_steps: int = 20,
        val_stop: StopRule | None = None,
        **options: Any,
    ) -> None:
        super().__init__(attack, name, max_examples=max_examples, batch_size=batch_size, **options)
        self.warm = WarmCheck(
            attack, steps=warm_steps, block_size=batch_size, seed=self.seed, precision=self.search_precision
        )
        self.val_stop = val_stop
        self._cost = torch.zeros(2)  # passes and samples of the current validation
        self._cold_cost = torch.zeros(2)
        self._counts: tuple[int, int, int] = (0, 0, 0)
        self._before: dict[str, Any] | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the state for checkpoints, since a resumed run repeats the validation."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._before = self._state()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Combine and log the results."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._before = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all ranks, since a restart redistributes samples."""
        state = self._before or self._state()
        return {**state, "warm": joined(gathered(state["warm"]))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.warm.load_state_dict(state_dict["warm"])
        self._cold_cost = state_dict["cold_cost"]

    def _state(self) -> dict[str, Any]:
        return {"warm": self.warm.state_dict(), "cold_cost": self._cold_cost}

    def _check(self, trainer: Trainer, model: nn.Module, samples: Samples) -> None:
        with barrier_without_timeout() as wait:
            common = _CommonStop(trainer, self.val_stop, wait)
            result = self.warm.run(model, samples, common)
            common.wait_for_other_ranks()
        self._counts = common.counts
        self._outcomes[torch.from_numpy(result.ids)] = torch.from_numpy(result.outcomes).int()
        self._flags = result.flags
        cost = torch.tensor([float(result.passes), float(len(result.ids))], device=trainer.strategy.root_device)
        self._cost = trainer.strategy.reduce(cost, reduce_op="sum").cpu()
        if trainer.strategy.reduce_boolean_decision(result.cold, all=True):  # a rank without samples is always "cold"
            self._cold_cost = self._cost
        if trainer.is_global_zero and not result.cold:
            rank_zero_info(
                f"{self.name}: {result.replayed} of {len(result.ids)} samples fooled by images of the last validation; "
                f"{_each(self._cost):.0f} passes per sample, {_each(self._cold_cost):.0f} in the first validation"
            )

    def _log(self, stage: Stage, pl_module: LightningModule, result: EvaluationResult) -> None:
        super()._log(stage, pl_module, result)
        if stage == "test":
            return
        interval = anytime_interval(*self._counts)
        values = {"aa_upper": result.robust.value, "aa_upper_low": interval.low, "aa_upper_high": interval.high}
        costs = {"aa_passes": _each(self._cost), "aa_passes_cold": _each(self._cold_cost)}
        pl_module.log_dict({f"val/{key}": value for key, value in (values | costs).items()}, sync_dist=True)


class _CommonStop:
    """Stop rule applied to the sum of the counts of all ranks after each block.

    The decision is a collective operation, so that a rank with fewer blocks takes part until all have stopped.
    """

    def __init__(self, trainer: Trainer, rule: StopRule | None, wait: Callable[[], None]) -> None:
        self.trainer = trainer
        self.rule = rule
        self.wait = wait  # without time-out, for ranks whose block takes longer
        self.counts = (0, 0, 0)
        self._mine = (0, 0, 0)
        self._stopped = False
        if rule is not None:
            rule.reset()

    def __call__(self, robust: int, evaluated: int, total: int) -> bool:
        """Return whether to stop, given the counts of this rank."""
        self._mine = (robust, evaluated, total)
        return self._reduce() or evaluated == total

    def wait_for_other_ranks(self) -> None:
        """Take part in the decisions of other ranks."""
        while not self._stopped:
            self._reduce()

    def _reduce(self) -> bool:
        self.wait()
        mine = torch.tensor(self._mine, device=self.trainer.strategy.root_device)
        robust, evaluated, total = (int(n) for n in self.trainer.strategy.reduce(mine, reduce_op="sum"))
        self.counts = (robust, evaluated, total)
        enough = self.rule is not None and evaluated > 0 and self.rule(robust, evaluated, total)
        # Time limits differ between ranks: the decision of one applies to all.
        self._stopped = self.trainer.strategy.reduce_boolean_decision(enough, all=False) or evaluated == total
        return self._stopped


def _each(cost: torch.Tensor) -> float:
    """Return the passes per sample."""
    return float(cost[0] / cost[1].clamp_min(1))
