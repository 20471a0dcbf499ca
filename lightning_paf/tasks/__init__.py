"""Training tasks, which configurations can name without their path."""

from lightning_paf.tasks.base import Task
from lightning_paf.tasks.classification import RobustModule
from lightning_paf.tasks.denoising import Denoising
from lightning_paf.tasks.diffusion import Diffusion
from lightning_paf.tasks.distillation import KIP
from lightning_paf.tasks.segmentation import FewShotSegmentation

__all__ = ["KIP", "Denoising", "Diffusion", "FewShotSegmentation", "RobustModule", "Task"]
