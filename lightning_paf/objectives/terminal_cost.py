"""Cost of the terminal state of standalone neural ODEs (Jaroudi et al., 2022)."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nets.ode.snode import StandaloneNet
from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.jacobian_spectrum import differentiable
from lightning_paf.nn.modes import buffers_kept
from lightning_paf.nn.sobolev_ncg import Slope
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked, checked_weight
from lightning_paf.utils.distributed import mean_over_ranks


class TerminalCost(Objective):
    """Weighted sum of four terms, on clean images; the attack is not used.

    With the terminal state x(T) (N, D) and B images: `squared / 2B sum |x(T) - y|^2`, whose target y is 1 at the class
    and 0 at all other components; `cross_entropy / B sum CE`; `rest / 2B sum |x(T) - T sigma(0)|^2`; and
    `energy / 2` times the integral of |W|^2 + |b|^2 over [0, T]. For networks other than `SNODE` and `SNODEResNet` the
    state is the logits, and the last two terms are undefined. Jaroudi et al., "Standalone Neural ODEs with Sensitivity
    Analysis", arXiv:2205.13933, 2022.

    Args:
        squared: Weight of the squared error, >= 0.
        cross_entropy: Weight of the cross-entropy, >= 0.
        rest: Weight of the distance from the state of a network without weights, >= 0.
        energy: Weight of the size of the weights, >= 0.

    Raises:
        ValueError: A negative weight, or none that is positive; a network without the term.
    """

    def __init__(
        self, squared: float = 1.0, cross_entropy: float = 0.0, rest: float = 0.0, energy: float = 0.0
    ) -> None:
        super().__init__()
        self.squared = checked_weight("squared", squared, 1.0)
        self.cross_entropy = checked_weight("cross_entropy", cross_entropy, 0.0)
        self.rest, self.energy = checked_weight("rest", rest, 0.0), checked_weight("energy", energy, 0.0)
        checked("squared", squared, squared + cross_entropy > 0, "> 0 without cross_entropy", 1.0)
        self._batch: tuple[Tensor, Tensor] | None = None

    def bind(self, model: Classifier) -> None:
        """Check that the network has the terms."""
        if (self.rest or self.energy) and not isinstance(model.net, StandaloneNet):
            raise ValueError(
                f"rest and energy must be 0 for {type(model.net).__name__}, got {self.rest:g} and {self.energy:g}. "
                "Pass --model.net SNODE, or --model.objective.rest 0 --model.objective.energy 0."
            )

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Cost of the clean batch."""
        self._batch = x.detach(), y
        state, logits = _outputs(model, x)
        cost = self.cross_entropy * cross_entropy(logits, y).mean()
        for weight, residual in self._residuals(model, state, y):
            cost = cost + weight / 2 * residual.square().sum(1).mean()
        for weight, parameter in self._decayed(model):
            cost = cost + weight / 2 * parameter.square().sum()
        return StepResult(cost, logits)

    def slope(self, model: Classifier, direction: Mapping[Tensor, Tensor]) -> Slope:
        """Linearise the output for the last batch, and return the slope of the cost.

        The derivative xi of the output along the direction solves the sensitivity problem. It comes from two reverse
        passes, as the derivative of `u -> J^T u`.

        Args:
            model: The classifier in training.
            direction: Change of each parameter.

        Returns:
            First and second derivative of the cost at a step length, over the batches of all ranks.
        """
        assert self._batch is not None
        x, y = self._batch
        with torch.enable_grad(), buffers_kept(model), differentiable(model):
            state, logits = _outputs(model, x)
            u = torch.zeros_like(state, requires_grad=True)
            weights = list(direction)
            pulled = torch.autograd.grad(state, weights, u, create_graph=True, materialize_grads=True)
            along = [pull for pull in pulled if pull.requires_grad]
            moved = [direction[w] for w, pull in zip(weights, pulled, strict=True) if pull.requires_grad]
            (xi,) = torch.autograd.grad(along, u, moved)
        state, logits, number = state.detach(), logits.detach(), logits.shape[1]
        first = second = state.new_zeros(())
        for weight, residual in self._residuals(model, state, y):
            first = first + weight * (xi * residual).sum() / len(x)
            second = second + weight * xi.square().sum() / len(x)
        for weight, parameter in self._decayed(model):
            first = first + weight * (parameter.detach() * direction[parameter]).sum()
            second = second + weight * direction[parameter].square().sum()
        target, zeta = _one_hot(y, number).to(state), xi[:, :number]

        def at(length: float) -> tuple[float, float]:
            p = (logits + length * zeta).softmax(1)
            pulled = (p * zeta).sum(1)
            value = first + length * second + self.cross_entropy * ((p - target) * zeta).sum() / len(x)
            variance = (p * zeta.square()).sum(1) - pulled.square()
            growth = second + self.cross_entropy * variance.clamp_min(0).mean()
            value, growth = mean_over_ranks([value, growth])
            return value.item(), growth.item()

        return at

    def _residuals(self, model: Classifier, state: Tensor, y: Tensor) -> list[tuple[float, Tensor]]:
        """Squared terms of the state: weight, and residual (N, D)."""
        target = _one_hot(y, model.num_classes).to(state)
        terms = [(self.squared, state - pad(target, (0, state.shape[1] - target.shape[1])))]
        if self.rest and isinstance(model.net, StandaloneNet):
            terms.append((self.rest, state - model.net.rest_state()))
        return terms

    def _decayed(self, model: Classifier) -> list[tuple[float, Tensor]]:
        """Squared terms of the weights: weight, and parameter."""
        net = model.net
        if not self.energy or not isinstance(net, StandaloneNet):
            return []
        return [(self.energy * net.step, net.weight), (self.energy * net.step, net.bias)]


def _outputs(model: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    """State, whose first components are the logits, and logits."""
    if isinstance(model.net, StandaloneNet):
        out = model.outputs(x)
        return out.features, out.logits
    logits = model(x)
    return logits, logits


def _one_hot(y: Tensor, classes: int) -> Tensor:
    return y if y.is_floating_point() else one_hot(y, classes)
