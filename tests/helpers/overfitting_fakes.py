"""A detector of overfitting that sees a sign at a given step."""

from lightning_paf.callbacks.overfitting_detector import Look, OverfittingDetector

GOOD, BAD = Look(0.9, 0.5, 0.45, 0.8), Look(0.9, 0.9, 0.05, 0.1)
SIGN_AT = 6  # the second look of the second epoch: four steps make one, looks are at even steps


class Pretending(OverfittingDetector):
    """Sees a sign at one step, or at the end of one epoch, and none at others."""

    def __init__(self, sign_at: int = SIGN_AT, **options) -> None:
        super().__init__(**options)
        self.sign_at = sign_at

    def _look(self, trainer, pl_module, attack, eps):
        self.truth = super()._look(trainer, pl_module, attack, eps)
        return BAD if trainer.global_step == self.sign_at else GOOD
