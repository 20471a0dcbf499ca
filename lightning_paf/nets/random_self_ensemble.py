"""Noise before every convolution, and the average over several passes (Liu et al., 2018)."""

import math

import torch
from torch import Tensor, nn


class RandomSelfEnsemble(nn.Module):
    """Any network with Gaussian noise before each of its convolutions, in training and afterwards.

    In training it makes one pass. In eval mode it averages the probabilities of several, and returns their logarithms,
    which are logits like others. Gradients flow through all passes, so an attack in eval mode climbs an expectation
    over the noise (EOT, Athalye et al., 2018); more `passes` estimate it better. Liu, Cheng, Zhang, Hsieh, "Towards
    Robust Neural Networks via Random Self-ensemble", ECCV 2018.

    Its outputs are random: the same image may be right once and wrong the next time. An attack that keeps the luckiest
    of many tries, and a verdict that counts every success, find less robustness than the average has; and attacks that
    compare single outputs (line searches, Square) may find too little. Judge it by
    `ReferenceAutoAttack` with `version: rand`.

    Networks keep their keys: a checkpoint of `net` fits below `net.`. Convolutions are all `nn.Conv2d`, those of
    shortcuts and gates as well; the first is the first by definition, which is that of the data in all usual networks.
    Convolutions by function calls, and linear layers, get no noise. `Classifier.outputs` gives the features of the
    last pass; in eval mode the logits are those of all passes, so the last layer does not map one to the other. Probes
    of `net` (`forward_aux`) are not used.

    Args:
        net: Network from images (N, C, H, W) to logits (N, num_classes).
        first_std: Standard deviation of the noise before the first convolution, in units of what reaches it: of pixels
            in [0, 1] with `--model.normalize false`, as in the authors' code.
        inner_std: The same before all others.
        passes: How many are averaged in eval mode; 1 gives the logits of a single one.

    Raises:
        ValueError: A negative or infinite standard deviation; no pass; a network without convolutions.
    """

    def __init__(self, net: nn.Module, first_std: float = 0.2, inner_std: float = 0.1, passes: int = 10) -> None:
        super().__init__()
        for name, std in (("first_std", first_std), ("inner_std", inner_std)):
            if not 0 <= std < math.inf:
                raise ValueError(f"{name} must be a standard deviation, >= 0, got {std}. Pass --model.net.{name} 0.1.")
        if passes < 1:
            raise ValueError(f"An ensemble needs at least one pass, but passes={passes}. Pass --model.net.passes 10.")
        convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
        if not convolutions:
            raise ValueError(
                f"Noise goes before convolutions, but {type(net).__name__} has no nn.Conv2d. "
                "Use a convolutional network, e.g. --model.net.net SmallConvNet."
            )
        self.net = net
        self.first_std, self.inner_std, self.passes = first_std, inner_std, passes
        for position, convolution in enumerate(convolutions):
            std = inner_std if position else first_std
            if std > 0:  # otherwise no random number is drawn
                convolution.register_forward_pre_hook(_Noise(std))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        if self.training or self.passes == 1:
            logits: Tensor = self.net(x)
            return logits
        log_probabilities = torch.stack([self.net(x).log_softmax(1) for _ in range(self.passes)])
        return log_probabilities.logsumexp(0) - math.log(self.passes)

    def get_classifier(self) -> nn.Module | None:
        """The layer that makes the logits of one pass, where the network tells."""
        tell = getattr(self.net, "get_classifier", None)
        head: nn.Module | None = None if tell is None else tell()
        return head

    def extra_repr(self) -> str:
        """Its settings, by which records of verdicts tell networks apart."""
        return f"first_std={self.first_std}, inner_std={self.inner_std}, passes={self.passes}"


class _Noise:
    """Adds noise to what enters a layer; an object, so that networks can be copied and sent to other processes."""

    def __init__(self, std: float) -> None:
        self.std = std

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = inputs
        return (x + self.std * torch.randn_like(x), *others)
