"""Real and synthetic images, and the batches made of them."""

from lightning_paf.data.augment import Augment, CropFlip, Dihedral, GaussianNoise
from lightning_paf.data.episodes import EpisodeDataModule
from lightning_paf.data.mixing import CutMix, Mixing
from lightning_paf.data.module import RobustDataModule
from lightning_paf.data.photographs import PhotographDataModule
from lightning_paf.data.samplers import MixedSampler, ShardSampler
from lightning_paf.data.synthetic.pool import SyntheticPool

__all__ = [
    "Augment",
    "CropFlip",
    "CutMix",
    "Dihedral",
    "EpisodeDataModule",
    "GaussianNoise",
    "MixedSampler",
    "Mixing",
    "PhotographDataModule",
    "RobustDataModule",
    "ShardSampler",
    "SyntheticPool",
]
