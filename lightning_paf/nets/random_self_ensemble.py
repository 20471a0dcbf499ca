"""Random self-ensemble: noise before every convolution (Liu et al., 2018)."""

import math

import torch
from torch import Tensor, nn


class RandomSelfEnsemble(nn.Module):
    """Random self-ensemble of any network, in training and evaluation.

    It adds Gaussian noise before each convolution. In training it makes one pass. In eval mode it averages the
    probabilities of several passes and returns their logarithms as logits. Gradients flow through all passes, so an
    attack in eval mode maximises an expectation over the noise (EOT, Athalye et al., 2018); more `passes` estimate it
    better. Liu, Cheng, Zhang, Hsieh, "Towards Robust Neural Networks via Random Self-ensemble", ECCV 2018.

    The checkpoint of `net` fits below `net.`. All `nn.Conv2d` are convolutions, including those of shortcuts and gates;
    the first one is the first in the order of the network's definition. Functional convolutions and linear layers get
    no noise. `Classifier.outputs` returns the features of the last pass, but in eval mode the logits of all passes, so
    the last layer does not map one to the other. Probes of `net` (`forward_aux`) are not used.

    Limitations: Outputs are random, so the same image can be classified correctly once and wrongly the next time. An
    attack that keeps the best of many tries, and an evaluation that counts every success, find less robustness than the
    average has. Attacks that compare single outputs (line searches, Square) can find too little. Evaluate with
    `ReferenceAutoAttack` and `version: rand`.

    Args:
        net: Network from images (N, C, H, W) to logits (N, num_classes).
        first_std: Standard deviation of the noise before the first convolution, in units of its input: of pixels in
            [0, 1] with `--model.normalize false`, as in the authors' code.
        inner_std: Standard deviation before all others.
        passes: Number of passes to average in eval mode; 1 returns the logits of a single pass.

    Raises:
        ValueError: A negative or infinite standard deviation; no pass; a network without convolutions.
    """

    def __init__(self, net: nn.Module, first_std: float = 0.2, inner_std: float = 0.1, passes: int = 10) -> None:
        super().__init__()
        for name, std in (("first_std", first_std), ("inner_std", inner_std)):
            if not 0 <= std < math.inf:
                raise ValueError(f"{name} must be finite and >= 0, got {std}. Pass --model.net.{name} 0.1.")
        if passes < 1:
            raise ValueError(f"passes must be at least 1, got {passes}. Pass --model.net.passes 10.")
        convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
        if not convolutions:
            raise ValueError(
                f"net must have convolutions, got {type(net).__name__} without nn.Conv2d. "
                "Pass --model.net.net SmallConvNet."
            )
        self.net = net
        self.first_std, self.inner_std, self.passes = first_std, inner_std, passes
        for number, convolution in enumerate(convolutions):
            std = inner_std if number else first_std
            if std > 0:  # 0 draws no random numbers
                convolution.register_forward_pre_hook(_Noise(std))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, num_classes)."""
        if self.training or self.passes == 1:
            logits: Tensor = self.net(x)
            return logits
        log_probabilities = torch.stack([self.net(x).log_softmax(1) for _ in range(self.passes)])
        return log_probabilities.logsumexp(0) - math.log(self.passes)

    def get_classifier(self) -> nn.Module | None:
        """Linear layer that returns the logits, if the wrapped network has this method."""
        head: nn.Module | None = getattr(self.net, "get_classifier", lambda: None)()
        return head

    def extra_repr(self) -> str:
        """Settings, so that fingerprints of networks differ."""
        return f"first_std={self.first_std}, inner_std={self.inner_std}, passes={self.passes}"


class _Noise:
    """Hook that adds noise to the input of a layer; can be copied and pickled."""

    def __init__(self, std: float) -> None:
        self.std = std

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *others = inputs
        return (x + self.std * torch.randn_like(x), *others)
