"""The model type of attacks, objectives and callbacks."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lightning_paf.nn.penalties import total_penalty
from lightning_paf.specs import DatasetSpec
from lightning_paf.types import Forward


class RefreshedForward(Protocol):
    """A faster way to compute a model in eval mode that follows its weights."""

    def refresh(self) -> Forward:
        """Bring the weights up to date.

        Returns:
            Images (N, C, H, W) to logits (N, num_classes).
        """


class Outputs(NamedTuple):
    """Logits and intermediate results of one forward pass.

    Attributes:
        logits: (N, num_classes).
        features: (N, num_features), the input of the last linear layer.
        aux: Further logits of networks that have probes (each (N, num_classes)).
    """

    logits: Tensor
    features: Tensor
    aux: tuple[Tensor, ...] = ()


class Classifier(nn.Module):
    """A network that takes images in [0, 1] and returns logits.

    Normalisation is the first line of `forward`, so attacks, AutoAttack, export and metrics all live in [0, 1].

    Args:
        net: Any network from (N, C, H, W) to (N, num_classes) whose last layer is linear.
        spec: Number of classes, channel mean and standard deviation.
        normalize: Subtract the mean and divide by the standard deviation. The networks of Dai et al. (2021) want False,
            and so does a network that normalises by itself (`DMWideResNet` with `mean` and `std`).

    Attributes:
        fast_forward: Substitute that attacks in eval mode refresh and call; None, the default, for the model itself. It
            is set for training, and is no submodule: neither in the state dict nor in a copy.
        training_net: Substitute for `net` in training mode, set likewise; None, the default, for `net` itself.

    Raises:
        ValueError: The network has no linear classification layer, or one with another number of classes; its
            `smallest_side`, where it says one, is more than the images have.
    """

    mean: Tensor
    std: Tensor
    fast_forward: RefreshedForward | None = None
    training_net: Forward | None = None

    def __init__(self, net: nn.Module, spec: DatasetSpec, normalize: bool = True) -> None:
        super().__init__()
        if spec.size < (smallest := getattr(net, "smallest_side", 0)):
            raise ValueError(
                f"{type(net).__name__} needs images with sides of {smallest} pixels or more, but those of {spec.name} "
                f"have {spec.size}. Pass another --model.net, such as SmallConvNet."
            )
        self.net = net
        self.num_classes = spec.num_classes
        mean, std = (spec.mean, spec.std) if normalize else ((0.0,), (1.0,))
        # Not persistent: a checkpoint holds what was learned, and released weights load without these keys.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self._head_name = _find_head(net, spec.num_classes)

    @property
    def head(self) -> nn.Linear:
        """The linear layer that makes the logits."""
        head = self.net.get_submodule(self._head_name)
        assert isinstance(head, nn.Linear)
        return head

    @property
    def num_features(self) -> int:
        """Width of `Outputs.features`."""
        return self.head.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, num_classes); nothing else, ever."""
        net = self.training_net if self.training and self.training_net is not None else self.net
        logits: Tensor = net(self._normalized(x))
        return logits

    def outputs(self, x: Tensor, y: Tensor | None = None) -> Outputs:
        """The same forward pass with its features and, where the network has probes, their logits.

        Args:
            x: Images (N, C, H, W) in [0, 1].
            y: Labels (N,), for networks whose probes use them.
        """
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            with_probes = getattr(self.net, "forward_aux", None)
            if with_probes is None:
                return Outputs(self.net(self._normalized(x)), caught[-1])
            logits, aux = with_probes(self._normalized(x), y)
            return Outputs(logits, caught[-1], tuple(aux))
        finally:
            hook.remove()

    def _normalized(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def penalty(self) -> Tensor:
        """Sum of the penalties of all layers, a scalar; a shared layer counts once."""
        return total_penalty(self.net)


def _find_head(net: nn.Module, num_classes: int) -> str:
    """Name of the linear layer that makes the logits."""
    names: dict[nn.Module, str] = {module: name for name, module in net.named_modules()}
    get_classifier = getattr(net, "get_classifier", None)
    if get_classifier is not None and isinstance(own := get_classifier(), nn.Linear) and own in names:
        head: nn.Linear = own
    else:
        linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
        if not linear:
            layers = sorted({type(module).__name__ for module in net.modules() if not list(module.children())})
            raise ValueError(
                f"The classifier needs a linear last layer, but {type(net).__name__} has none (it has "
                f"{', '.join(layers)}). Use a network that ends in nn.Linear, e.g. TimmNet('resnet18')."
            )
        head = next((layer for layer in reversed(linear) if layer.out_features == num_classes), linear[-1])
    if head.out_features != num_classes:
        raise ValueError(
            f"The dataset has {num_classes} classes, but {type(net).__name__} has {head.out_features} outputs. "
            f"Pass --model.net.num_classes {num_classes}."
        )
    return names[head]
