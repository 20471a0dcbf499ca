"""Network architectures, from images (N, C, H, W) to logits (N, num_classes).

Activations are `nn.ReLU`, `nn.SiLU` or `nn.GELU` modules, so that `swap_activations` can replace them. Keys and
parameter counts are those of published checkpoints if there are any.
"""

from lightning_paf.nets.dm_preact_resnet import DMPreActResNet
from lightning_paf.nets.dm_wide_resnet import DMWideResNet
from lightning_paf.nets.embedding import EmbeddingNet
from lightning_paf.nets.factory import TimmNet, TorchvisionNet, timm_net, torchvision_net
from lightning_paf.nets.gated_resnet import GatedResNet
from lightning_paf.nets.kernel_classifier import KernelClassifier
from lightning_paf.nets.lenet import LeNet
from lightning_paf.nets.ode.last_stage import LastStageODE
from lightning_paf.nets.ode.ltnode import ALTNODE, LTNODE, NODE
from lightning_paf.nets.ode.snode import SNODE, SNODEResNet
from lightning_paf.nets.ode.tisode import ODENet, ResidualCNN, TisODENet
from lightning_paf.nets.preact_resnet import PreActResNet
from lightning_paf.nets.random_self_ensemble import RandomSelfEnsemble
from lightning_paf.nets.resnet import CifarResNet
from lightning_paf.nets.small import SmallConvNet
from lightning_paf.nets.vgg import VGG16BN
from lightning_paf.nets.vit import CoViT, ViT
from lightning_paf.nets.wide_resnet import WideResNet
from lightning_paf.nets.zerosnet import ZeroSNet

__all__ = [
    "ALTNODE",
    "LTNODE",
    "NODE",
    "SNODE",
    "VGG16BN",
    "CifarResNet",
    "CoViT",
    "DMPreActResNet",
    "DMWideResNet",
    "EmbeddingNet",
    "GatedResNet",
    "KernelClassifier",
    "LastStageODE",
    "LeNet",
    "ODENet",
    "PreActResNet",
    "RandomSelfEnsemble",
    "ResidualCNN",
    "SNODEResNet",
    "SmallConvNet",
    "TimmNet",
    "TisODENet",
    "TorchvisionNet",
    "ViT",
    "WideResNet",
    "ZeroSNet",
    "timm_net",
    "torchvision_net",
]
