"""MeanSparse: sparsified inputs of the activations of a trained network."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from lightning_paf.nn.modes import frozen
from lightning_paf.nn.swap import DEFAULT_TARGETS, target_paths


class MeanSparse(nn.Module):
    """An activation whose inputs near their mean are replaced by the mean.

    An input within `alpha` standard deviations of the mean of its channel becomes the mean, and its gradient zero.
    `alpha=0` changes nothing.

    Args:
        activation: The activation.
        shape: Shape of mean and deviation: (C, 1, 1) for feature maps, (C,) otherwise; () before they are known.

    Attributes:
        straight_through: Pass the gradient through replaced inputs as if they were not, for an adaptive attack.
    """

    mean: Tensor
    std: Tensor
    alpha: Tensor
    straight_through = False

    def __init__(self, activation: nn.Module, shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.activation = activation
        for name, size in (("mean", shape), ("std", shape), ("alpha", ())):
            self.register_buffer(name, torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the activation of the sparsified input."""
        sparse = torch.where((x - self.mean).abs() < self.alpha * self.std, self.mean.to(x.dtype), x)
        if self.straight_through:
            sparse = x + (sparse - x).detach()
        result: Tensor = self.activation(sparse)
        return result


class MeanSparseNet(nn.Module):
    """A network with `MeanSparse` before every activation (Amini et al. 2024).

    "MeanSparse: Post-training robustness enhancement through mean-centered feature sparsification", arXiv:2406.05927.
    The wrapped activations are those that `swap_activations` replaces. An activation object that is used at several
    places has statistics for each attribute that holds it.

    Args:
        net: Network, changed in place.
        num_classes: Width of the logits.
        shapes: Shape of the statistics of each activation, in order; null before `fit_statistics`.

    Raises:
        ValueError: The network has no activation to wrap, or another number than `shapes`.
    """

    def __init__(self, net: nn.Module, num_classes: int = 10, shapes: Sequence[Sequence[int]] | None = None) -> None:
        super().__init__()
        self.net, self.num_classes = net, num_classes
        paths = target_paths(net, DEFAULT_TARGETS)
        if not paths:
            raise ValueError(f"{type(net).__name__} must have activation modules for MeanSparse, got none.")
        shapes = [()] * len(paths) if shapes is None else shapes
        if len(shapes) != len(paths):
            raise ValueError(f"shapes must be those of {len(paths)} activations, got {len(shapes)}. Pass null.")
        for path, shape in zip(paths, shapes, strict=True):
            net.set_submodule(path, MeanSparse(net.get_submodule(path), shape))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.net(x)
        return logits

    def get_classifier(self) -> nn.Module | None:
        """Last layer, if the network has a method for it."""
        own = getattr(self.net, "get_classifier", None)
        return None if own is None else own()

    def sites(self) -> dict[str, MeanSparse]:
        """The sparsified activations by name."""
        return {name: module for name, module in self.named_modules() if isinstance(module, MeanSparse)}

    def set_alpha(self, alpha: float) -> None:
        """Set the threshold of all sites, in standard deviations."""
        for site in self.sites().values():
            site.alpha.fill_(alpha)

    @contextmanager
    def straight_through(self) -> Iterator[None]:
        """Pass gradients through replaced inputs inside a `with` block."""
        try:
            for site in self.sites().values():
                site.straight_through = True
            yield
        finally:
            for site in self.sites().values():
                site.straight_through = False


@torch.no_grad()
def fit_statistics(model: nn.Module, sparse: MeanSparseNet, batches: Iterable[Tensor]) -> int:
    """Set mean and deviation of all sites in one pass, with `alpha=0`.

    Args:
        model: Images to logits, with `sparse` inside; in eval mode during the pass.
        sparse: The network.
        batches: Images (n, C, H, W).

    Returns:
        Number of images.

    Raises:
        ValueError: An activation is not reached, or is called with inputs of different numbers of channels.
    """
    sums: dict[str, Tensor] = {}

    def record(name: str, x: Tensor) -> None:
        over = (0, 2, 3) if x.ndim == 4 else tuple(range(x.ndim - 1))
        values, count = x.double(), x.numel() // x.shape[1 if x.ndim == 4 else -1]
        keep = x.ndim == 4
        found = [values.sum(over, keepdim=keep), values.square().sum(over, keepdim=keep)]
        found = [part[0] if keep else part for part in found]
        new = torch.stack([*found, torch.full_like(found[0], count)])
        if name in sums and sums[name].shape != new.shape:
            raise ValueError(
                f"The activation {name} must have one number of channels for MeanSparse, got {sums[name].shape[1]} and "
                f"{new.shape[1]}. Use a network with one activation for each place."
            )
        sums[name] = sums.get(name, 0) + new

    sparse.set_alpha(0)
    images, sites = 0, sparse.sites()
    with ExitStack() as stack, frozen(model):
        for name, site in sites.items():
            hook = site.register_forward_pre_hook(lambda _, args, name=name: record(name, args[0]))
            stack.callback(hook.remove)
        for x in batches:
            model(x)
            images += len(x)
    if missing := [name for name in sites if name not in sums]:
        raise ValueError(f"The activation {missing[0]} must be used by the network for MeanSparse, got no call of it.")
    for name, site in sites.items():
        total, squares, count = sums[name]
        mean = total / count
        site.mean = mean.to(site.alpha)
        site.std = (squares / count - mean.square()).clamp_min(0).sqrt().to(site.alpha)
    return images
