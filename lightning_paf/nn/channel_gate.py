"""Gates that weight the channels of a feature map by their importance."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_paf.utils.options import checked

Probe = Literal["linear", "mlp"]
Importance = Literal["softmax", "sigmoid", "softplus", "identity"]

_HIDDEN, _BETA = 128, 5.0  # of the MLP probe and its softplus, as in the authors' code
_IMPORTANCES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "softmax": partial(torch.softmax, dim=1),
        "sigmoid": torch.sigmoid,
        "softplus": F.softplus,
        "identity": torch.clone,
    }
)


class LinearProbe(nn.Linear):
    """Linear classifier of pooled features (N, C), with its gradient."""

    def relevance(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """Gradient (N, C) of the summed logits of the classes (N, k)."""
        return F.embedding(classes, self.weight).sum(1)


class MLPProbe(nn.Module):
    """Classifier of pooled features (N, C) with a hidden layer, with its gradient."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, num_classes)

    @property
    def bias(self) -> Tensor:
        """Bias of the logits."""
        return self.out.bias

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        logits: Tensor = self.out(F.softplus(self.hidden(pooled), beta=_BETA))
        return logits

    def relevance(self, pooled: Tensor, classes: Tensor) -> Tensor:
        """Gradient (N, C) of the summed logits of the classes (N, k)."""
        slope = torch.sigmoid(_BETA * self.hidden(pooled))
        return (F.embedding(classes, self.out.weight).sum(1) * slope) @ self.hidden.weight


_PROBES: Mapping[str, Callable[[int, int], LinearProbe | MLPProbe]] = MappingProxyType(
    {"linear": LinearProbe, "mlp": MLPProbe}
)


class ChannelGate(nn.Module):
    """Features times the importance of each channel for the likely classes.

    A probe predicts classes from the spatial means of the channels. The relevance of a channel is the gradient of the
    probe's `topk` largest logits, summed over classes and space; the importance is a function of all relevances of an
    image. The loss does not reach the features through the importance, only the weights of the probe. Yan, Zhang, Niu,
    Feng, Tan, Sugiyama, "CIFS: Improving Adversarial Robustness of CNNs via Channel-wise Importance-based Feature
    Selection", ICML 2021. With `identity`, `topk=1` and a linear probe it is the gate of CAS (Bai et al., ICLR 2021).

    Args:
        channels: Number of channels C.
        num_classes: Number of classes of the probe.
        probe: `linear`, or `mlp` with 128 hidden units and softplus.
        importance: `softmax` over the channels, elementwise `sigmoid` or `softplus`, or `identity`, the only one that
            can be negative.
        topk: Number of classes, from 1 to `num_classes`.
        scale: Factor of the importance, > 0. 1 in the authors' code; C gives a softmax the mean 1.

    Attributes:
        mask_grad: Whether the gradient also flows through the importance into the features, for attacks.

    Raises:
        ValueError: A value outside its range.
    """

    fx_leaf = True
    """`speed.folding` calls it as one layer, whose gradient rules cannot be traced."""

    def __init__(
        self,
        channels: int,
        num_classes: int,
        probe: Probe = "linear",
        importance: Importance = "softmax",
        topk: int = 2,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        checked("channels", channels, channels >= 1, "at least 1", 512)
        checked("num_classes", num_classes, num_classes >= 2, "at least 2", 10)
        checked("probe", probe, probe in _PROBES, "linear or mlp", "linear")
        checked("importance", importance, importance in _IMPORTANCES, ", ".join(get_args(Importance)), "softmax")
        checked("topk", topk, 1 <= topk <= num_classes, f"from 1 to the {num_classes} classes", min(2, num_classes))
        checked("scale", scale, 0 < scale < math.inf, "finite and > 0", 1.0)
        self.probe = _PROBES[probe](channels, num_classes)
        self.importance_name, self.topk, self.scale = importance, topk, scale
        self.mask_grad = False
        self._labels: Tensor | None = None
        self._records: list[Tensor] | None = None

    def forward(self, z: Tensor) -> Tensor:
        """Weight features (N, C, H, W)."""
        pooled = z.mean((2, 3))
        logits = self.probe(pooled)
        if self._records is not None:
            self._records.append(logits)
        importance = self.importance(pooled, logits, self._labels if self.training else None)
        return z * importance.to(z.dtype)[:, :, None, None]

    def importance(self, pooled: Tensor, logits: Tensor, y: Tensor | None = None) -> Tensor:
        """Importance (N, C) of the channels.

        Args:
            pooled: Spatial means (N, C).
            logits: Logits of the probe (N, num_classes).
            y: Labels (N,), which replace the most likely class.
        """
        classes = logits.topk(self.topk, dim=1).indices
        if y is not None:
            classes = torch.cat([y[:, None], classes[:, 1:]], dim=1)
        relevance = self.probe.relevance(pooled if self.mask_grad else pooled.detach(), classes)
        if self.training:
            # The bias only affects which classes are likely; DDP stops without a gradient for every parameter.
            relevance = relevance + 0 * self.probe.bias.sum()
        return self.scale * _IMPORTANCES[self.importance_name](relevance)

    @contextmanager
    def recording(self, y: Tensor | None = None) -> Iterator[list[Tensor]]:
        """Collect the logits of the probe in each pass.

        Args:
            y: Labels (N,) for passes in training mode.
        """
        self._labels, self._records = y, []
        try:
            yield self._records
        finally:
            self._labels = self._records = None

    def extra_repr(self) -> str:
        """Settings, so that fingerprints of networks differ."""
        return f"importance={self.importance_name}, topk={self.topk}, scale={self.scale}"


class FixedGate(nn.Module):
    """Features times a random importance of each channel, as a control.

    The importance is drawn at construction, `scale` times the softmax of standard normal numbers, and does not change.

    Args:
        channels: Number of channels C.
        scale: Sum of the importances, > 0.

    Raises:
        ValueError: A `scale` outside its range.
    """

    importance: Tensor

    def __init__(self, channels: int, scale: float = 1.0) -> None:
        checked("scale", scale, 0 < scale < math.inf, "finite and > 0", 1.0)
        super().__init__()
        self.register_buffer("importance", scale * torch.randn(channels).softmax(0))

    def forward(self, z: Tensor) -> Tensor:
        """Weight features (N, C, H, W)."""
        return z * self.importance[:, None, None]


@contextmanager
def recorded_probes(model: nn.Module, y: Tensor | None = None) -> Iterator[Callable[[], tuple[Tensor, ...]]]:
    """Collect the logits of all probes of a model.

    Args:
        model: Any module.
        y: As in `ChannelGate.recording`.

    Yields:
        A function that returns the logits so far, and forgets them.
    """
    with ExitStack() as stack:
        records = [stack.enter_context(gate.recording(y)) for gate in gates(model)]

        def collected() -> tuple[Tensor, ...]:
            found = tuple(logits for record in records for logits in record)
            for record in records:
                record.clear()
            return found

        yield collected


@contextmanager
def mask_gradients(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Let gradients flow through the importances of all gates of a model."""
    before = {gate: gate.mask_grad for gate in gates(model)}
    try:
        for gate in before:
            gate.mask_grad = enabled
        yield
    finally:
        for gate, value in before.items():
            gate.mask_grad = value


def gates(model: nn.Module) -> list[ChannelGate]:
    """All gates with a probe."""
    return [module for module in model.modules() if isinstance(module, ChannelGate)]
