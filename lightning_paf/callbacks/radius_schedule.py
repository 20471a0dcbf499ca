"""Schedule of the radius of the training attack."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from lightning_paf.attacks import Attack
from lightning_paf.schedules import Ramp, Schedule
from lightning_paf.types import Radius


class RadiusSchedule(Callback):
    """Schedule of `eps` and the step size of the training attack.

    Both are multiplied by the factor of the schedule. Attacks of an evaluation keep their radius. The attack is scaled
    before every batch by the fraction of optimiser steps done, so that a resumed training continues the schedule.

    Args:
        schedule: Factor over the training, in [0, 1]; by default linear from 0 to 1 (Cui et al., 2023).
        step_size: Whether to scale the step size too.

    Raises:
        ValueError: A factor outside [0, 1]; a training attack whose radius is not determined by its `eps`.
    """

    def __init__(self, schedule: Schedule | None = None, step_size: bool = True) -> None:
        self.schedule = schedule or Ramp()
        self.schedule.check_fraction("The radius of the attack")
        self.step_size = step_size
        self._full: dict[str, Radius] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the attack can be scaled."""
        if stage != "fit":
            return
        attack = _attack_of(pl_module)
        self._full = {name: value for name in self._names() if (value := getattr(attack, name, None)) is not None}
        radius = attack.radius
        self._scale(attack, 0.5)
        halved, scaled = attack.radius, self.step_size
        self._scale(attack, 1.0)
        if halved == radius or (scaled and abs(halved - radius / 2) > 1e-6 * radius):
            raise ValueError(
                "RadiusSchedule needs an attack whose radius is proportional to eps, got "
                f"{type(attack).__name__}. Pass a single attack such as PGD, with its radius as --model.attack.eps."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Scale the attack for this batch."""
        progress = trainer.global_step / trainer.estimated_stepping_batches
        self._scale(_attack_of(pl_module), self.schedule(progress))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the attack."""
        if stage == "fit" and self._full:
            self._scale(_attack_of(pl_module), 1.0)

    def _names(self) -> tuple[str, ...]:
        return ("eps", "step_size") if self.step_size else ("eps",)

    def _scale(self, attack: Attack, factor: float) -> None:
        for name, value in self._full.items():
            setattr(attack, name, value if factor == 1 else factor * float(value))


def _attack_of(pl_module: LightningModule) -> Attack:
    attack = getattr(pl_module, "attack", None)
    if not isinstance(attack, Attack):
        raise ValueError(f"RadiusSchedule needs a module with an attack, got {type(pl_module).__name__}.")
    return attack
