"""Parameter groups for weight decay."""

from typing import Any, Literal

from torch import nn

from lightning_paf.nn.activations import Activation

DecayRule = Literal["all", "activation_free", "weights"]


def parameter_groups(model: nn.Module, decay: DecayRule) -> list[dict[str, Any]]:
    """Split trainable parameters by weight decay.

    Decay pulls alpha towards 0, that is towards smoother shapes, while adversarial training increases it. Dai et al.
    (2021) decay all parameters; later recipes exclude BatchNorm and biases.

    Args:
        model: Any module; parameters without gradients are left out.
        decay: `all`; `activation_free`: all but the parameters of activations; `weights`: only weights of linear
            and convolutional layers, that is parameters of two or more dimensions.

    Returns:
        Groups for `torch.optim`; a second group has `weight_decay` 0.
    """
    of_activations = {
        id(parameter) for layer in model.modules() if isinstance(layer, Activation) for parameter in layer.parameters()
    }
    decayed: list[nn.Parameter] = []
    excluded: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        exclude = decay != "all" and (id(parameter) in of_activations or (decay == "weights" and parameter.ndim < 2))
        (excluded if exclude else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": excluded, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
