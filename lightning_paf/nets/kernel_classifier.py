"""Kernel ridge regression on learned images."""

import math

import torch
from torch import Tensor, nn

from lightning_paf.functional.losses import centred_targets
from lightning_paf.functional.neural_tangent_kernel import gram_matrix, neural_tangent_kernel


class KernelClassifier(nn.Module):
    """Kernel ridge regression on images that are its weights.

    `f(x) = k(x, S) (k(S, S) + lambda I)^-1 Y` with `lambda = ridge * trace k(S, S) / support`, as in KIP (Nguyen, Chen,
    Lee, "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021). The kernel is that of a fully connected ReLU
    network without biases. It is computed in float64, whatever the precision of images and weights. `KIP` trains it.

    Images S start as uniform noise, class `i % num_classes` for image i.

    Args:
        in_channels: Channels of the images.
        image_size: Height and width of the images.
        support: Number of images in S, at least one for each class.
        depth: Hidden layers of the network of the kernel; 0 for a linear kernel.
        ridge: Regularisation, relative to the mean diagonal of the kernel.
        learn_labels: Whether the targets Y are weights, too. Otherwise they are one-hot minus 1 / num_classes.

    Raises:
        ValueError: A number out of range.
    """

    fx_leaf = True
    """`speed.folding` calls it as one layer, since solutions are kept between passes."""

    targets: Tensor

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: int = 32,
        support: int = 100,
        depth: int = 2,
        ridge: float = 1e-6,
        learn_labels: bool = False,
    ) -> None:
        _check(image_size, support, num_classes, depth, ridge)
        super().__init__()
        self.depth, self.ridge = depth, ridge
        self.images = nn.Parameter(torch.rand(support, in_channels, image_size, image_size))
        targets = centred_targets(torch.arange(support) % num_classes, num_classes)
        if learn_labels:
            self.targets = nn.Parameter(targets)
        else:
            self.register_buffer("targets", targets)
        self._solved: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def classes(self) -> Tensor:
        """Class of each image (support,) at the start."""
        return torch.arange(len(self.targets), device=self.targets.device) % self.targets.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, in_channels, image_size, image_size) to logits (N, num_classes)."""
        self.check_shape(x)
        with torch.autocast(x.device.type, enabled=False):
            kernel = neural_tangent_kernel(_vectors(x), _vectors(self.images), self.depth)
            return (kernel @ self._coefficients()).to(x.dtype)

    def check_shape(self, x: Tensor) -> None:
        """Check that images have the shape of the learned ones."""
        if x.shape[1:] != self.images.shape[1:]:
            raise ValueError(
                f"Images must be (N, {', '.join(map(str, self.images.shape[1:]))}) for this KernelClassifier, got "
                f"{tuple(x.shape)}. Pass --model.net.image_size {x.shape[-1]}."
            )

    def _coefficients(self) -> Tensor:
        """Solution (support, num_classes), kept while images and targets are the same."""
        if torch.is_grad_enabled() and (self.images.requires_grad or self.targets.requires_grad):
            return self._solve()
        known = self._solved
        if known is None or not torch.equal(known[0], self.images) or not torch.equal(known[1], self.targets):
            with torch.inference_mode(False), torch.no_grad():  # autograd cannot use inference tensors
                self._solved = known = (self.images.clone(), self.targets.clone(), self._solve())
        return known[2]

    def _solve(self) -> Tensor:
        gram = gram_matrix(_vectors(self.images), self.depth)
        shift = self.ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(gram + shift)
        # Images that are not finite; the training reports a loss that is not finite.
        return torch.cholesky_solve(self.targets.double(), factor.masked_fill(failed > 0, torch.nan))

    def _apply(self, *args: object, **options: object) -> "KernelClassifier":
        """Forget the solution, which belongs to another device or precision."""
        self._solved = None
        return super()._apply(*args, **options)  # type: ignore[no-untyped-call,no-any-return]  # torch has no types


def _vectors(images: Tensor) -> Tensor:
    return images.flatten(1).double()


def _check(image_size: int, support: int, num_classes: int, depth: int, ridge: float) -> None:
    for name, value, least in (("image_size", image_size, 1), ("support", support, num_classes), ("depth", depth, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}. Pass --model.net.{name} {least} or more.")
    if not 0 < ridge < math.inf:
        raise ValueError(f"ridge must be positive and finite, got {ridge}. Pass --model.net.ridge 1e-6.")
