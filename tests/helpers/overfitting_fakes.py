"""A detector that finds overfitting at a given step."""

from lightning_paf.callbacks.overfitting_detector import Measurement, OverfittingDetector

GOOD, BAD = Measurement(0.9, 0.5, 0.45, 0.8), Measurement(0.9, 0.9, 0.05, 0.1)
FOUND_AT = 6  # the second measurement of the second epoch of four steps, measured at even steps


class Scripted(OverfittingDetector):
    """Finds overfitting at one step, or at the end of one epoch, and at no other."""

    def __init__(self, found_at: int = FOUND_AT, **options) -> None:
        super().__init__(**options)
        self.found_at = found_at

    def _measure(self, trainer, pl_module, attack, eps):
        super()._measure(trainer, pl_module, attack, eps)
        return BAD if trainer.global_step == self.found_at else GOOD
