"""Joint training of a network and its probes (Yan et al., 2021)."""

from torch import Tensor

from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.joint import joint_loss
from lightning_paf.nn.channel_gate import gates
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked_weight


class JointCE(Objective):
    """Adversarial cross-entropy of the logits and of all probes.

    The loss is CE(logits) + `beta` * mean of CE(probe), times 3 / (`beta` + 1), which is 1 for beta=2. The attack
    increases the same loss, and does not pass labels to the gates; the training pass does. Yan, Zhang, Niu, Feng, Tan,
    Sugiyama, "CIFS: Improving Adversarial Robustness of CNNs via Channel-wise Importance-based Feature Selection",
    ICML 2021.

    Args:
        beta: Weight of the probes, finite and >= 0.
        adversarial: Whether to train on adversarial images; false for clean ones, as for initial weights.

    Raises:
        ValueError: A value outside its range; a network without probes.
    """

    def __init__(self, beta: float = 2.0, adversarial: bool = True) -> None:
        super().__init__()
        self.beta = checked_weight("beta", beta, 2)
        self.adversarial = adversarial

    def bind(self, model: Classifier) -> None:
        """Check that there are probes."""
        if not (hasattr(model.net, "forward_aux") and gates(model)):
            raise ValueError(
                f"The network must have probes for JointCE, got {type(model.net).__name__}. "
                "Pass --model.net GatedResNet."
            )

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Joint loss of the batch."""
        loss = joint_loss(self.beta)
        images = attack(model, x, y, loss=loss, forward=model.outputs) if self.adversarial else x
        outputs = model.outputs(images, y)
        joint = loss(outputs, y).mean() * 3 / (self.beta + 1)
        return StepResult(joint, outputs.logits, {"joint_loss": joint})
