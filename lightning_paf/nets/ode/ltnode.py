"""LT-NODE, ALT-NODE, and NODE as their baseline (Anumasa and Srijith, 2021)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Gamma

from lightning_paf.functional.gamma import gamma_quantiles
from lightning_paf.nets.layers import Net, init_convolutions, require_width
from lightning_paf.nets.ode.block import ODEBlock, Solver
from lightning_paf.nets.ode.end_time import AmortisedPosterior, EndTimeBlock, GammaPosterior
from lightning_paf.nets.ode.fields import PreNormTimeField, group_norm


class Draws(NamedTuple):
    """End times and logarithms of their weights, (S, N) or (S, 1)."""

    times: Tensor
    log_weights: Tensor


Draw = Callable[[Gamma], Draws]
"""Draws end times for a posterior."""


class Recorded(NamedTuple):
    """Results of one forward pass.

    Attributes:
        logits: At all end times, (S, N, num_classes).
        log_weights: Those of `Draws`.
        posterior: Distribution of the end times, of batch shape (N,) or (1,).
    """

    logits: Tensor
    log_weights: Tensor
    posterior: Gamma


class _StemBlockHead(Net):
    """Convolutions, an ODE block, group norm, mean pooling and a linear layer."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        width: int,
        groups: int,
        downsamplings: int,
        block: ODEBlock,
        posterior: nn.Module | None = None,
    ) -> None:
        super().__init__(num_classes, width)
        self.smallest_side = 2 + 2**downsamplings  # checked by `Classifier`
        self.stem = _stem(in_channels, width, groups, downsamplings)
        self.block = block
        if posterior is not None:
            self.posterior = posterior
        self.norm, self.activation = group_norm(groups, width), nn.ReLU()
        self.fc = nn.Linear(width, num_classes)  # after that of the posterior
        init_convolutions(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=1e-3)
                nn.init.zeros_(module.bias)

    def features(self, states: Tensor) -> Tensor:
        """Features (N, width) of states (N, width, H, W)."""
        return F.adaptive_avg_pool2d(self.activation(self.norm(states)), 1).flatten(1)


class NODE(_StemBlockHead):
    """Neural ODE with a fixed end time, of the architecture of `LTNODE`.

    208,266 parameters for MNIST. Its activation is applied `downsamplings` times in the stem, twice in each evaluation
    of the field, and once in the head.

    Args:
        num_classes: Width of the logits.
        in_channels: Channels of the images.
        width: Channels of all feature maps; 64 in the authors' code.
        groups: Groups of the group norms; 32 in the authors' code.
        downsamplings: Convolutions of stride 2 after the first one; 2 in the authors' code.
        t_end: Time of the output, > 0.
        step: Length of a step, which must divide `t_end`.
        solver: `euler`, `midpoint`, `rk4` or `dopri5`, all with fixed steps.

    Raises:
        ValueError: A value outside its range; groups that do not divide the width.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: int = 64,
        groups: int = 32,
        downsamplings: int = 2,
        t_end: float = 1.0,
        step: float = 0.1,
        solver: Solver = "rk4",
    ) -> None:
        block = ODEBlock(PreNormTimeField(width, groups), t_end, step, solver)
        super().__init__(num_classes, in_channels, width, groups, downsamplings, block)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.fc(self.features(self.block(self.stem(x))))
        return logits


class LatentEndTimeNet(_StemBlockHead):
    """Base of networks whose ODE ends at a random time.

    In training mode, it draws `samples` times from the posterior, differentiably. In eval mode, they are quantiles of
    the posterior, so that predictions and attacks are reproducible, or also random. The logits are logarithms of mean
    probabilities over the times. Gradients flow through all of them, so an attack maximises an expectation over the
    end time (EOT, Athalye et al., 2018).

    The objective `ELBO` replaces the times of a training step by its own. With other objectives, the posterior
    decreases their loss only, without a prior. `Classifier.outputs` returns the features at the last time.
    """

    posterior: GammaPosterior | AmortisedPosterior
    block: EndTimeBlock

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        width: int,
        groups: int,
        downsamplings: int,
        posterior: GammaPosterior | AmortisedPosterior,
        prior: tuple[float, float],
        samples: int,
        random: bool,
        t_end: float,
        step: float,
        solver: Solver,
    ) -> None:
        if not all(0 < value < math.inf for value in prior):
            raise ValueError(
                f"prior must be two numbers, finite and > 0, got {[*prior]}. Pass --model.net.prior '[2, 0.5]'."
            )
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}. Pass --model.net.samples 10.")
        block = EndTimeBlock(PreNormTimeField(width, groups), t_end, step, solver)
        super().__init__(num_classes, in_channels, width, groups, downsamplings, block, posterior)
        self.prior_parameters, self.samples, self.random = (*prior,), samples, random
        self._draw: Draw | None = None
        self._records: list[Recorded] = []

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, in_channels, H, W) to logits (N, num_classes)."""
        z = self.stem(x)
        posterior: Gamma = self.posterior(x)
        times, log_weights = (self._draw or self._own_draw)(posterior)
        features = self.features(self.block.states_at(z, times).flatten(0, 1))
        # One call for each time, since `Classifier.outputs` keeps the input of the last one.
        logits = torch.stack([self.fc(part) for part in features.chunk(len(times))])
        if self._draw is not None:
            self._records.append(Recorded(logits, log_weights, posterior))
        log_probabilities = logits.log_softmax(-1) + log_weights.log_softmax(0)[..., None]
        return log_probabilities.logsumexp(0)

    @contextmanager
    def recording(self, draw: Draw) -> Iterator[list[Recorded]]:
        """Use other end times, and collect the logits at all of them, in each pass."""
        self._draw, self._records = draw, []
        try:
            yield self._records
        finally:
            self._draw, self._records = None, []

    def prior(self, posterior: Gamma) -> Gamma:
        """Prior of the end time, with dtype and device of the posterior."""
        concentration, rate = posterior.rate.new_tensor(self.prior_parameters)
        return Gamma(concentration, rate, validate_args=False)

    def extra_repr(self) -> str:
        """Settings, so that fingerprints of networks differ."""
        return f"prior={self.prior_parameters}, samples={self.samples}, random={self.random}"

    def _own_draw(self, posterior: Gamma) -> Draws:
        """Quantiles of the posterior at random or equidistant levels."""
        a, b = posterior.concentration, posterior.rate
        levels = (torch.arange(self.samples, dtype=a.dtype, device=a.device) + 0.5)[:, None] / self.samples
        if self.training or self.random:
            levels = torch.rand(self.samples, len(a), dtype=a.dtype, device=a.device)
        times = gamma_quantiles(a, b, levels)
        return Draws(times, torch.zeros_like(times))


class LTNODE(LatentEndTimeNet):
    """Neural ODE with a latent end time T (LT-NODE).

    Anumasa, Srijith, "Latent Time Neural Ordinary Differential Equations", AAAI 2022. The posterior is a gamma
    distribution with two trained parameters, the same for all images. All end times come from one solution. 208,268
    parameters for MNIST. Its activation is applied as in `NODE`, in the head once for all times together.

    Limitations: With `random`, the same image can be classified correctly once and wrongly the next time; see
    `RandomSelfEnsemble`. Evaluate such a network with `ReferenceAutoAttack` and `version: rand`.

    Args:
        num_classes: Width of the logits.
        in_channels: Channels of the images.
        width: Channels of all feature maps; 64 in the authors' code.
        groups: Groups of the group norms; 32 in the authors' code.
        downsamplings: Convolutions of stride 2 after the first one; 2 in the authors' code.
        posterior: Initial shape parameter and rate, in [0.001, 100].
        prior: Shape parameter and rate of the prior, > 0.
        samples: End times of a prediction, >= 1.
        random: Whether the end times of a prediction are random in eval mode.
        t_end: Largest end time, > 0; larger ones are reduced to it.
        step: Length of a step, which must divide `t_end`.
        solver: `euler`, `midpoint`, `rk4` or `dopri5`, all with fixed steps.

    Raises:
        ValueError: A value outside its range; groups that do not divide the width.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: int = 64,
        groups: int = 32,
        downsamplings: int = 2,
        posterior: tuple[float, float] = (1.0, 1.0),
        prior: tuple[float, float] = (2.0, 0.5),
        samples: int = 10,
        random: bool = False,
        t_end: float = 50.0,
        step: float = 0.1,
        solver: Solver = "rk4",
    ) -> None:
        layout = (num_classes, in_channels, width, groups, downsamplings)
        super().__init__(*layout, GammaPosterior(*posterior), prior, samples, random, t_end, step, solver)


class ALTNODE(LatentEndTimeNet):
    """Neural ODE with a latent end time of each image (ALT-NODE).

    An encoder like the stem, with group norm, mean pooling and a linear layer, maps an image to the parameters of its
    posterior, initially about (1, 1). Attacks differentiate it too. 340,620 parameters for MNIST. All arguments and
    limitations are those of `LTNODE`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: int = 64,
        groups: int = 32,
        downsamplings: int = 2,
        prior: tuple[float, float] = (2.0, 0.5),
        samples: int = 10,
        random: bool = False,
        t_end: float = 50.0,
        step: float = 0.1,
        solver: Solver = "rk4",
    ) -> None:
        layout = (num_classes, in_channels, width, groups, downsamplings)
        posterior = AmortisedPosterior(_stem(in_channels, width, groups, downsamplings), width, groups)
        super().__init__(*layout, posterior, prior, samples, random, t_end, step, solver)


def _stem(in_channels: int, width: int, groups: int, downsamplings: int) -> nn.Sequential:
    """A 3x3 convolution without padding, and 4x4 convolutions of stride 2."""
    if downsamplings < 0:
        raise ValueError(f"downsamplings must be at least 0, got {downsamplings}. Pass --model.net.downsamplings 2.")
    require_width(width)
    layers: list[nn.Module] = [nn.Conv2d(in_channels, width, kernel_size=3)]
    for _ in range(downsamplings):
        layers += [group_norm(groups, width), nn.ReLU(), nn.Conv2d(width, width, kernel_size=4, stride=2, padding=1)]
    return nn.Sequential(*layers)
