"""MART (Wang et al., 2020)."""

from torch import Tensor
from torch.nn.functional import one_hot, softmax

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy, kl_divergence
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked_weight


class MART(Objective):
    """MART: boosted cross-entropy plus a KL divergence weighted by the clean error.

    `-log p_y(x') - log(1 - max_{k != y} p_k(x')) + weight * KL(p(x) || p(x')) * (1 - p_y(x))`, averaged over the batch,
    with gradients into both predictions and the factor. Wang, Zou, Yi, Bailey, Ma, Gu, "Improving Adversarial
    Robustness Requires Revisiting Misclassified Examples", ICLR 2020. The attack is that of adversarial training
    (cross-entropy), in the authors' code from a small Gaussian (`--model.attack.start gaussian`).

    Args:
        weight: Weight of the last term, >= 0, the paper's lambda. The authors' code for ResNet-18 uses 5.
    """

    def __init__(self, weight: float = 5.0) -> None:
        super().__init__()
        self.weight = checked_weight("weight", weight, 5)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Mean boosted cross-entropy + weight * mean weighted divergence."""
        x_adv = attack(model, x, y)
        clean, adversarial = model(x), model(x_adv)
        probabilities = softmax(clean, 1)
        target = y if y.is_floating_point() else one_hot(y, clean.shape[1]).to(clean.dtype)
        boosted = (cross_entropy(adversarial, y) + _runner_up(adversarial, target)).mean()
        error = 1 - (target * probabilities).sum(1)
        divergence = (kl_divergence(adversarial, probabilities) * error).mean()
        logs = {"boosted_loss": boosted, "weighted_divergence": divergence}
        return StepResult(boosted + self.weight * divergence, adversarial, logs, clean)


def _runner_up(logits: Tensor, target: Tensor) -> Tensor:
    """Mean `-log(1 - max_{k != y} p_k)` (N,) over classes with weights (N, C).

    1 - p_k is summed from the other probabilities, which stays exact if p_k is 1 in floating point. It is computed in
    single precision, which autocast does not guarantee on every device.
    """
    logits = logits.float()
    top = logits.topk(2, dim=1).indices
    log_rest = [logits.scatter(1, top[:, k : k + 1], -float("inf")).logsumexp(1) for k in (0, 1)]
    without_first, without_second = (rest - logits.logsumexp(1) for rest in log_rest)
    first_is_own = target.gather(1, top[:, :1]).squeeze(1)
    return -(first_is_own * without_second + (target.sum(1) - first_is_own) * without_first)
