"""Networks with an embedding of few dimensions between features and logits."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_paf.nets.layers import Net


class EmbeddingNet(Net):
    """A linear embedding of the features in few dimensions, classified by an MLP.

    The network of ER-CLA (Li et al. 2021), whose objective regularises the output of the layer `embedding`. The linear
    layer of `net` that returns logits is removed.

    Args:
        net: A network whose `get_classifier()` is a linear layer.
        dimensions: Width of the embedding; 16 for CIFAR-10, 4 for MNIST in the authors' code.
        hidden: Widths of the hidden layers of the MLP; `[]` classifies embeddings linearly.
        dropout: Fraction of the inputs of the second and the third layer of the MLP to drop in training.

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
        super().__init__(num_classes)
        if min(dimensions, *hidden, num_classes) < 1:
            raise ValueError(
                f"dimensions, hidden and num_classes must be at least 1, got {dimensions}, {[*hidden]}, {num_classes}. "
                "Pass --model.net.dimensions 16 and --model.net.hidden '[512, 512, 512]'."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be a fraction in [0, 1), got {dropout}. Pass --model.net.dropout 0.5.")
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


def _without_head(net: nn.Module) -> tuple[nn.Module, int]:
    """The network up to its features, and their number."""
    head = getattr(net, "get_classifier", lambda: None)()
    if not isinstance(head, nn.Linear):
        raise ValueError(
            f"net must have a get_classifier() that returns a linear layer, got {type(net).__name__}. "
            "Pass --model.net.net CifarResNet."
        )
    name = next(name for name, module in net.named_modules() if module is head)
    net.set_submodule(name, nn.Identity())
    return net, head.in_features
