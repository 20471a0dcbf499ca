"""All networks of the package that define an architecture, each built small."""

from helpers.fakes import images
from lightning_paf.nets import (
    ALTNODE,
    LTNODE,
    NODE,
    SNODE,
    VGG16BN,
    CifarResNet,
    CoViT,
    DMPreActResNet,
    DMWideResNet,
    GatedResNet,
    LeNet,
    ODENet,
    PreActResNet,
    ResidualCNN,
    SmallConvNet,
    SNODEResNet,
    TisODENet,
    ViT,
    WideResNet,
    ZeroSNet,
)
from lightning_paf.nn.classifier import Classifier
from lightning_paf.specs import dataset_spec

SMALL = {
    ALTNODE: ({"width": 64, "samples": 2, "step": 0.5, "solver": "euler"}, 20),
    CifarResNet: ({"width": 4}, 17),
    CoViT: ({"image_size": 8, "patch": 4, "width": 8, "depth": 2, "kernels": [1, 3]}, 2),
    DMPreActResNet: ({"width": 4}, 17),
    DMWideResNet: ({"depth": 10, "width": 1}, 7),
    GatedResNet: ({}, 17),
    LTNODE: ({"width": 64, "samples": 2, "step": 0.5, "solver": "euler"}, 17),
    LeNet: ({}, 4),
    NODE: ({"width": 64, "step": 0.5, "solver": "euler"}, 7),
    ODENet: ({"width": 4, "groups": 2, "step": 0.5}, 6),
    PreActResNet: ({"width": 4}, 17),
    ResidualCNN: ({"width": 4, "groups": 2}, 4),
    SNODE: ({"image_size": 4, "t_end": 1.0, "step": 0.25}, 4),
    SNODEResNet: ({"image_size": 4, "depth": 3, "step": 1.0}, 3),
    SmallConvNet: ({"width": 4}, 4),
    TisODENet: ({"width": 4, "groups": 2, "step": 0.5}, 6),
    VGG16BN: ({"width": 4}, 15),
    ViT: ({"image_size": 8, "patch": 4, "width": 8, "depth": 2, "heads": 2}, 2),
    WideResNet: ({"depth": 10, "width": 1}, 7),
    ZeroSNet: ({"depth": 14, "width": 4}, 13),
}
"""Class: small arguments, and the number of activations in a forward pass."""

LARGE_IMAGES = {ALTNODE, LTNODE, LeNet, NODE, VGG16BN}
"""Networks that normalise or pool single pixels of smaller images; for the others 8 x 8 pixels suffice."""


def build(cls, **kwargs):
    """A small network of the class."""
    if cls is GatedResNet:
        return cls(build(CifarResNet, **kwargs), kwargs.get("num_classes", 10))
    return cls(**SMALL[cls][0], **kwargs)


def classifier(cls, n=4):
    """A small classifier, and images and labels of a size for it."""
    model = Classifier(build(cls, in_channels=3), dataset_spec("cifar10"))
    return model, images(n, size=32 if cls in LARGE_IMAGES else 8)
