"""The model type of attacks, objectives and callbacks."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, fx, nn

from lightning_paf.specs import DatasetSpec
from lightning_paf.types import Forward


class RefreshedForward(Protocol):
    """A faster forward pass in eval mode that follows the weights of the model."""

    def refresh(self) -> Forward:
        """Update the weights, and return the forward pass.

        It maps images (N, C, H, W) to logits (N, num_classes).
        """


@runtime_checkable
class Penalised(Protocol):
    """A layer that adds a term to the training loss.

    Examples are PSSiLU and the stability terms of neural ODEs.
    """

    def penalty(self) -> Tensor:
        """The weighted term, a scalar."""


def penalty_of(net: nn.Module) -> Tensor:
    """Sum the penalties of all layers, a scalar; a shared layer counts once."""
    terms = [layer.penalty() for layer in net.modules() if isinstance(layer, Penalised)]
    # A plain sum, since the scalars can be on different devices: layers without a penalty return a zero on the CPU.
    return sum((term.reshape(()) for term in terms), torch.zeros(()))


class Outputs(NamedTuple):
    """Logits and intermediate results of one forward pass.

    Attributes:
        logits: (N, num_classes).
        features: (N, num_features), the input of the last linear layer.
        aux: Logits of a network's auxiliary heads (each (N, num_classes)).
    """

    logits: Tensor
    features: Tensor
    aux: tuple[Tensor, ...] = ()


class Classifier(nn.Module):
    """A network that takes images in [0, 1] and returns logits.

    Normalisation is the first line of `forward`, so attacks, AutoAttack, export and metrics all work in [0, 1].

    Args:
        net: Any network from (N, C, H, W) to (N, num_classes). Only `head` and `outputs` require a linear last layer.
        spec: Number of classes, channel mean and standard deviation.
        normalize: Subtract the mean and divide by the standard deviation. Set it to False for networks of Dai et al.
            (2021), and for networks that normalise internally (`DMWideResNet` with `mean` and `std`).

    Attributes:
        head_name: Name of the linear classification layer in `net`; None if there is none.
        fast_forward: Faster substitute for attacks in eval mode, None by default. It is set for training, and is not a
            submodule: neither in the state dict nor in a copy.
        training_net: Substitute for `net` in training mode, set likewise; None by default.

    Raises:
        ValueError: The network has a linear classification layer with another number of classes; its `smallest_side`,
            if any, exceeds that of the images.
    """

    mean: Tensor
    std: Tensor
    fast_forward: RefreshedForward | None = None
    training_net: Forward | None = None

    def __init__(self, net: nn.Module, spec: DatasetSpec, normalize: bool = True) -> None:
        super().__init__()
        if min(spec.shape[1:]) < (smallest := getattr(net, "smallest_side", 0)):
            raise ValueError(
                f"Images must have at least {smallest} x {smallest} pixels for {type(net).__name__}, got "
                f"{spec.shape[1]} x {spec.shape[2]} from {spec.name}. Pass another --model.net, such as SmallConvNet."
            )
        self.net = net
        self.num_classes = spec.num_classes
        self._normalizes = normalize
        mean, std = (spec.mean, spec.std) if normalize else ((0.0,), (1.0,))
        # Not persistent: a checkpoint holds learned values only, and released weights load without these keys.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.head_name = _find_head(net, spec.num_classes)

    @property
    def head(self) -> nn.Linear:
        """The linear classification layer.

        Raises:
            ValueError: The last layer is not linear.
        """
        if self.head_name is None:
            layers = sorted({type(module).__name__ for module in self.net.modules() if not list(module.children())})
            raise ValueError(
                f"The last layer of {type(self.net).__name__} must be nn.Linear for its features, got one of "
                f"{', '.join(layers)}. Pass another --model.net, such as CifarResNet, or another objective or analysis."
            )
        head = self.net.get_submodule(self.head_name)
        assert isinstance(head, nn.Linear)
        return head

    @property
    def num_features(self) -> int:
        """Width of `Outputs.features`."""
        return self.head.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) in [0, 1] to logits (N, num_classes)."""
        net = self.training_net if self.training and self.training_net is not None else self.net
        logits = logits_of(net(self._normalized(x)))
        if isinstance(logits, Tensor) and logits.shape[1:] != (self.num_classes,):
            raise ValueError(
                f"{type(self.net).__name__} must return logits (N, {self.num_classes}), got shape "
                f"{tuple(logits.shape)}. Return only the logits from its forward."
            )
        return logits

    def outputs(self, x: Tensor, y: Tensor | None = None) -> Outputs:
        """Return logits, features and the logits of auxiliary heads, if any.

        A network with auxiliary heads has a method `forward_aux`.

        Args:
            x: Images (N, C, H, W) in [0, 1].
            y: Labels (N,), for networks whose auxiliary heads use them.
        """
        caught: list[Tensor] = []
        with self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0])):
            with_aux = getattr(self.net, "forward_aux", None)
            if with_aux is None:
                return Outputs(logits_of(self.net(self._normalized(x))), caught[-1])
            logits, aux = with_aux(self._normalized(x), y)
            return Outputs(logits, caught[-1], tuple(aux))

    def normalize_by(self, spec: DatasetSpec) -> bool:
        """Replace the statistics of a normalisation, and return whether they were others."""
        old = torch.stack([self.mean, self.std])
        new = torch.tensor([spec.mean, spec.std]).view(2, 1, -1, 1, 1).to(old)
        if not self._normalizes or torch.equal(old, new):
            return False
        self.mean.copy_(new[0])
        self.std.copy_(new[1])
        return True

    def penalty(self) -> Tensor:
        """Sum the penalties of all layers, a scalar; a shared layer counts once."""
        return penalty_of(self.net)

    def _normalized(self, x: Tensor) -> Tensor:
        normalized = (x - self.mean) / self.std
        # A trace holds no dtype of weights, which can change: its images have that of the weights.
        return normalized.to(next(self.net.parameters(), x).dtype if isinstance(x, Tensor) else x.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert the weights; keep the normalisation of images in float32."""
        before = self.mean, self.std
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch does not annotate it
        if self.mean.dtype != before[0].dtype:
            self.mean, self.std = (old.to(self.mean.device) for old in before)
        return self


def logits_of(output: Any) -> Tensor:
    """The output of a network, or its attribute `logits`.

    Raises:
        ValueError: Neither is a tensor.
    """
    logits: Any = output if isinstance(output, Tensor | fx.Proxy) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor | fx.Proxy):
        raise ValueError(
            f"The model must return logits, or an object with `.logits`, got {type(output).__name__}. Return a tensor."
        )
    return logits  # type: ignore[return-value]  # a proxy of a tensor


def _find_head(net: nn.Module, num_classes: int) -> str | None:
    """Name of the linear classification layer; None if there is none."""
    names: dict[nn.Module, str] = {module: name for name, module in net.named_modules()}
    get_classifier = getattr(net, "get_classifier", None)
    found = get_classifier() if get_classifier is not None else None
    if isinstance(found, nn.Linear) and found in names:
        head: nn.Linear = found
    else:
        linear = [module for module in names if isinstance(module, nn.Linear)]
        fitting = [layer for layer in linear if layer.out_features == num_classes]
        if not fitting and (not linear or isinstance(found, nn.Conv2d)):
            return None
        head = (fitting or linear)[-1]
    if head.out_features != num_classes:
        raise ValueError(
            f"The number of outputs of {type(net).__name__} must be {num_classes}, as many as classes, got "
            f"{head.out_features}. Pass --model.net.num_classes {num_classes}."
        )
    return names[head]
