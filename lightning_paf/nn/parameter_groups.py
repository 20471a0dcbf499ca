"""Parameter groups for weight decay."""

from typing import Any, Literal

from torch import nn

from lightning_paf.nn.activations import Activation

DecayRule = Literal["all", "activation_free", "weights"]


def parameter_groups(model: nn.Module, decay: DecayRule) -> list[dict[str, Any]]:
    """Split trainable parameters into those that the optimiser decays and those that it leaves alone.

    Decay pulls alpha towards 0, that is towards smoother shapes, against the direction in which adversarial training
    moves it. Dai et al. (2021) decay everything in one group; later recipes spare BatchNorm and biases.

    Args:
        model: Any module; parameters without gradients are left out.
        decay: `all`; `activation_free`: all but the parameters of activations; `weights`: only weights of linear
            and convolutional layers, that is parameters of two or more dimensions.

    Returns:
        Groups for `torch.optim`; the second one, if there is one, has `weight_decay` 0.
    """
    of_activations = {
        id(parameter) for layer in model.modules() if isinstance(layer, Activation) for parameter in layer.parameters()
    }
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        spare = decay != "all" and (id(parameter) in of_activations or (decay == "weights" and parameter.ndim < 2))
        (spared if spare else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
