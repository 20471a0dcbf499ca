"""Any network with an embedding of few dimensions between its features and its logits."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class EmbeddingNet(nn.Module):
    """Features to an embedding of few dimensions, linearly, and an MLP that classifies embeddings.

    The network of ER-CLA (Li et al. 2021), whose objective regularises what the layer `embedding` returns. The linear
    layer that makes the logits of `net` is left out.

    Args:
        net: A network whose `get_classifier()` is a linear layer.
        dimensions: Width of the embedding; 16 for CIFAR-10, 4 for MNIST in the authors' code.
        hidden: Widths of the hidden layers of the MLP; `[]` classifies embeddings linearly.
        dropout: Share of the inputs of the second and the third layer of the MLP that are dropped in training.
        num_classes: Width of the logits.

    Raises:
        ValueError: The network has no linear classification layer; a width below 1; a dropout outside [0, 1).
    """

    def __init__(
        self,
        net: nn.Module,
        dimensions: int = 16,
        hidden: Sequence[int] = (512, 512, 512),
        dropout: float = 0.5,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        if min(dimensions, *hidden, num_classes) < 1:
            raise ValueError(
                f"dimensions and hidden are widths of layers, at least 1, but dimensions={dimensions} and "
                f"hidden={list(hidden)}. Pass --model.net.dimensions 16 and --model.net.hidden '[512, 512, 512]'."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a fraction in [0, 1), got {dropout}. Pass --model.net.dropout 0.5.")
        self.num_classes = num_classes
        self.encoder, width = _without_head(net)
        self.embedding = nn.Linear(width, dimensions)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise((dimensions, *hidden))):
            layers += [nn.Dropout(dropout)] if number in (1, 2) else []
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.classifier = nn.Sequential(*layers, nn.Linear((dimensions, *hidden)[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.embedding(self.encoder(x)))
        return logits

    def get_classifier(self) -> nn.Module:
        """The layer that makes the logits."""
        return self.classifier[-1]


def _without_head(net: nn.Module) -> tuple[nn.Module, int]:
    """The network up to its features, and their number."""
    find = getattr(net, "get_classifier", None)
    head = None if find is None else find()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"An embedding takes the place of a linear last layer, but {type(net).__name__} names none. "
            "Pass a network with one as --model.net.net, e.g. CifarResNet."
        )
    name = next(name for name, module in net.named_modules() if module is head)
    net.set_submodule(name, nn.Identity())
    return net, head.in_features
