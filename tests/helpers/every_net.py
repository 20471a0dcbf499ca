"""All networks of the package that define an architecture, each built small."""

from lightning_paf.nets import (
    ALTNODE,
    LTNODE,
    NODE,
    VGG16BN,
    CifarResNet,
    CoViT,
    DMPreActResNet,
    DMWideResNet,
    LeNet,
    ODENet,
    PreActResNet,
    ResidualCNN,
    SmallConvNet,
    TisODENet,
    ViT,
    WideResNet,
    ZeroSNet,
)

SMALL = {
    ALTNODE: ({"width": 64, "samples": 2, "step": 0.5, "solver": "euler"}, 20),
    CifarResNet: ({"width": 4}, 17),
    CoViT: ({"image_size": 8, "patch": 4, "width": 8, "depth": 2, "kernels": [1, 3]}, 2),
    DMPreActResNet: ({"width": 4}, 17),
    DMWideResNet: ({"depth": 10, "width": 1}, 7),
    LTNODE: ({"width": 64, "samples": 2, "step": 0.5, "solver": "euler"}, 17),
    LeNet: ({}, 4),
    NODE: ({"width": 64, "step": 0.5, "solver": "euler"}, 7),
    ODENet: ({"width": 4, "groups": 2, "step": 0.5}, 6),
    PreActResNet: ({"width": 4}, 17),
    ResidualCNN: ({"width": 4, "groups": 2}, 4),
    SmallConvNet: ({"width": 4}, 4),
    TisODENet: ({"width": 4, "groups": 2, "step": 0.5}, 6),
    VGG16BN: ({"width": 4}, 15),
    ViT: ({"image_size": 8, "patch": 4, "width": 8, "depth": 2, "heads": 2}, 2),
    WideResNet: ({"depth": 10, "width": 1}, 7),
    ZeroSNet: ({"depth": 14, "width": 4}, 13),
}
"""Class: small arguments, and the number of activations in a forward pass."""


def build(cls, **kwargs):
    """A small network of the class."""
    return cls(**SMALL[cls][0], **kwargs)
