"""A task with an additional option."""

from lightning_paf.tasks.classification import RobustModule


class ScaledLoss(RobustModule):
    """Multiplies the loss."""

    def __init__(self, *args, scale: float = 1.0, **options) -> None:
        super().__init__(*args, **options)
        self.scale = scale

    def training_step(self, batch, batch_idx):
        return self.scale * super().training_step(batch, batch_idx)
