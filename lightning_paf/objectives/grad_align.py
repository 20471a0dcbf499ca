"""GradAlign (Andriushchenko and Flammarion, 2020)."""

from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.alignment import cosine
from lightning_paf.functional.geometry import geometry_of
from lightning_paf.functional.input_gradient import input_gradient
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective
from lightning_paf.objectives.wrapper import Regularised


class GradAlign(Regularised):
    """GradAlign: penalty on the misalignment of loss gradients within the eps-ball.

    It is an objective plus `weight` times the mean of 1 - cos(gradient at x, gradient at x + u), with u uniform in the
    ball and not clamped to the range of pixels. It keeps FGSM training from catastrophic overfitting at two to three
    times its cost. Andriushchenko and Flammarion, "Understanding and Improving
    Fast Adversarial Training", NeurIPS 2020. Images with a zero gradient are left out, as in the authors' code.
    Gradients are those of the network in training mode, so running statistics of BatchNorm also include x and x + u.

    Args:
        objective: Objective to add the term to; null for adversarial training, meant for `--model.attack FGSM`.
        weight: 0.2 for CIFAR-10 at 8/255; for other radii the authors' scripts use 0.02 * 10 ** (255 * eps / 8).
        differentiate_both: Whether the gradient at x is differentiated too. The authors' code treats it as constant;
            the gradients of the two forms have a cosine of about 0.6.
    """

    needs_double_backward = True
    name = "misalignment"

    def __init__(
        self, objective: Objective | None = None, weight: float = 0.2, differentiate_both: bool = False
    ) -> None:
        super().__init__(objective, weight)
        self.differentiate_both = differentiate_both

    def term(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
        """Mean of 1 - cosine over the images with two gradients that are not zero."""
        noise = geometry_of(attack.norm).uniform(x, float(attack.eps))
        here, there = (input_gradient(model, start, y) for start in (x, x + noise))
        here = here if self.differentiate_both else here.detach()
        known = here.detach().flatten(1).any(dim=1) & there.detach().flatten(1).any(dim=1)
        return ((1 - cosine(here, there)) * known).sum() / known.sum().clamp_min(1)
