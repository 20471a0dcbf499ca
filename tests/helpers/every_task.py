"""Small trainings of the tasks other than classification: two epochs of four steps."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from helpers.cli_runs import write_experiment
from lightning_paf.tasks import KIP, Denoising, Diffusion, FewShotSegmentation, Task


def denoising(folder: Path) -> str:
    """A denoiser of smooth images of two sizes."""
    photographs = folder / "images"
    photographs.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([(24, 24), (24, 30), (30, 24)]):
        small = Image.fromarray(rng.integers(0, 256, (4, 4), np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(photographs / f"{number}.png")
    folders = {f"{part}_dir": str(photographs) for part in ("train", "val", "test")}
    net = {"class_path": "DnCNN", "init_args": {"depth": 3, "width": 4}}
    written = {
        "data": {**folders, "patch": 12, "batch_size": 4, "epoch": 16},
        "model": {"class_path": "Denoising", "init_args": {"net": net, "schedule": "Constant"}},
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(written))
    return str(folder / "tiny.yaml")


def diffusion(folder: Path) -> str:
    """A diffusion model of 8x8 images."""
    net = {"class_path": "UNet", "init_args": {"width": 4, "multipliers": [1, 2], "layers_per_block": 1}}
    sampler = {"class_path": "DDIM", "init_args": {"steps": 2}}
    options = {"net": net, "sampler": sampler, "schedule": "Constant", "samples_per_class": 2}
    model = {"class_path": "Diffusion", "init_args": options}
    return _changed(folder, model=model, val_attack=None, averaging={"class_path": "WarmupEMA"})


def distillation(folder: Path) -> str:
    """A distillation into six 8x8 images of three classes."""
    options = {
        "net": {"class_path": "KernelClassifier", "init_args": {"image_size": 8, "support": 6}},
        "attack": {"class_path": "PGD", "init_args": {"steps": 2, "step_size": "4/255"}},
        "objective": "AdversarialSquaredError",
    }
    checkpoint = {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/acc_pgd", "mode": "max"}}
    return _changed(folder, model={"class_path": "KIP", "init_args": options}, checkpoint=checkpoint)


def segmentation(folder: Path) -> str:
    """R-PNODE on shapes of 16 x 16 pixels, tested by two attacks."""
    net = {"class_path": "PNODE", "init_args": {"widths": [4, 4], "convs": [1, 1], "groups": 2, "step": 2.0}}
    attack = {"class_path": "PGD", "init_args": {"eps": 0.05, "step_size": 0.05, "steps": 1}}
    square = {"class_path": "Square", "init_args": {"eps": 0.05, "queries": 3}}
    written = {
        "data": {"size": 16, "subjects": 30, "batch_size": 4, "epoch": 16, "test_classes": [6]},
        "model": {
            "class_path": "FewShotSegmentation",
            "init_args": {
                "net": net,
                "objective": "RegularizedEpisodeCE",
                "attack": attack,
                "attacks": {"pgd": attack, "square": square},
            },
        },
        "trainer": {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(written))
    return str(folder / "tiny.yaml")


TASKS: dict[type[Task], Callable[[Path], str]] = {
    Denoising: denoising,
    Diffusion: diffusion,
    FewShotSegmentation: segmentation,
    KIP: distillation,
}
"""Function that writes images and configuration to a folder and returns the file."""


def _changed(folder: Path, **parts: dict | None) -> str:
    """Write `experiment` with two epochs and other parts; None removes one."""
    path = Path(write_experiment(folder))
    written = yaml.safe_load(path.read_text()) | parts
    written["trainer"]["max_epochs"] = 2
    path.write_text(yaml.safe_dump({name: part for name, part in written.items() if part is not None}))
    return str(path)
