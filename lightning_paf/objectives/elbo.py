"""Evidence lower bound of a latent end time (Anumasa and Srijith, 2021)."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.distributions import Gamma, kl_divergence

from lightning_paf.attacks.base import Attack
from lightning_paf.functional.losses import cross_entropy
from lightning_paf.nets.ode.ltnode import Draw, Draws, LatentEndTimeNet
from lightning_paf.nn.classifier import Classifier
from lightning_paf.objectives.base import Objective, StepResult
from lightning_paf.objectives.checks import checked, checked_weight

Estimator = Literal["official", "snis", "reparam"]

_EARLIEST = 1e-6  # uniform end time


class ELBO(Objective):
    """Negative evidence lower bound of networks with a latent end time.

    `E_q[CE(T)] + kl_weight KL(q || p)`: the mean cross-entropy under the posterior q of the end time T, and its
    divergence from the prior p. Anumasa, Srijith, "Latent Time Neural Ordinary Differential Equations", AAAI 2022.

    The estimators of the expectation differ in times and weights:

    * `official`, of the authors' code: T from U(0, horizon), with weights q(T) / samples. It is biased: the density of
      the proposal and times above the horizon are missing.
    * `snis`, self-normalised importance sampling: the same times, with weights q(T) / sum q(T).
    * `reparam`: T from q, with equal weights. Its gradient flows through the times.

    Args:
        estimator: `official`, `snis` or `reparam`.
        samples: Number of end times; for `snis` at least 2. The authors use 10 for `LTNODE`, and 1 for `ALTNODE`, where
            `snis` and `reparam` should have at least 5.
        kl_weight: Weight of the divergence, >= 0. The bound has 1 / (number of training images). The authors use 0.05
            for `LTNODE` and 0.1 for `ALTNODE`.
        horizon: Largest uniform end time, > 0.
        adversarial: Whether to train on adversarial images instead of clean ones.

    Raises:
        ValueError: A value outside its range; a network without latent end time.
    """

    def __init__(
        self,
        estimator: Estimator = "snis",
        samples: int = 10,
        kl_weight: float = 0.05,
        horizon: float = 3.0,
        adversarial: bool = False,
    ) -> None:
        super().__init__()
        known = get_args(Estimator)
        self.estimator = checked("estimator", estimator, estimator in known, "official, snis or reparam", "snis")
        least = 2 if estimator == "snis" else 1  # one self-normalised weight is always 1
        self.samples = checked("samples", samples, samples >= least, f"at least {least} for {estimator}", 10)
        self.kl_weight = checked_weight("kl_weight", kl_weight, 0.05)
        self.horizon = checked("horizon", horizon, _EARLIEST < horizon < math.inf, "finite and > 0", 3)
        self.adversarial = adversarial
        draws: Mapping[Estimator, Draw] = MappingProxyType(
            {"official": self._uniform, "snis": self._normalised, "reparam": self._posterior}
        )
        self._draw = draws[estimator]

    def bind(self, model: Classifier) -> None:
        """Check that the network has a latent end time."""
        _latent(model)

    def forward(self, model: Classifier, x: Tensor, y: Tensor, attack: Attack) -> StepResult:
        """Estimated bound of the batch."""
        net = _latent(model)
        net.posterior.return_to_domain()  # after the last optimiser step
        z = attack(model, x, y) if self.adversarial else x
        with net.recording(self._draw) as records:
            logits = model(z)
        (record,) = records
        repeated = y.expand(self.samples, *y.shape).flatten(0, 1)
        losses = cross_entropy(record.logits.flatten(0, 1), repeated).view(self.samples, -1)
        expected = (record.log_weights.exp() * losses).sum(0).mean()
        divergence = kl_divergence(record.posterior, net.prior(record.posterior)).mean()
        logs = {"kl": divergence, "end_time": record.posterior.mean.mean()}
        return StepResult(expected + self.kl_weight * divergence, logits.detach(), logs)

    def _uniform(self, posterior: Gamma) -> Draws:
        shape = (self.samples, *posterior.batch_shape)
        times = torch.empty(shape, device=posterior.rate.device, dtype=posterior.rate.dtype)
        times.uniform_(_EARLIEST, self.horizon)
        density: Tensor = posterior.log_prob(times)  # type: ignore[no-untyped-call]
        return Draws(times, density - math.log(self.samples))

    def _normalised(self, posterior: Gamma) -> Draws:
        times, log_weights = self._uniform(posterior)
        return Draws(times, log_weights.log_softmax(0))

    def _posterior(self, posterior: Gamma) -> Draws:
        times = posterior.rsample((self.samples,))
        return Draws(times, torch.full_like(times, -math.log(self.samples)))


def _latent(model: Classifier) -> LatentEndTimeNet:
    for module in model.modules():
        if isinstance(module, LatentEndTimeNet):
            return module
    raise ValueError(
        f"The network must have a latent end time for ELBO, got {type(model.net).__name__}. Pass --model.net LTNODE."
    )
