"""The recipe of the demonstration with a small network, few images and a perturbation that one sub-attack finds."""

import shutil
from pathlib import Path

import yaml

from helpers.fakes import CONFIGS


def write_short_demo(folder: Path) -> Path:
    """Write the recipe, with the parts that it names, into a folder."""
    path = shutil.copytree(CONFIGS, folder / "configs") / "demo" / "digits.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["net"] = {"class_path": "SmallConvNet", "init_args": {"width": 2}}
    config["model"]["attack"]["init_args"]["steps"] = 1
    config["trainer"]["check_val_every_n_epoch"] = 1
    config["val_attack"]["init_args"]["max_examples"] = 10
    config["val_attack"]["init_args"]["test_examples"] = config["autoattack"]["init_args"]["test_examples"] = 20
    config["autoattack"]["init_args"]["attack"]["init_args"]["eps"] = 0.9
    path.write_text(yaml.safe_dump(config))
    return path


def write_short_generator(folder: Path) -> Path:
    """Write the recipe of a tiny diffusion model, trained for one epoch."""
    config = yaml.safe_load((CONFIGS / "diffusion" / "digits.yaml").read_text())
    options = config["model"]["init_args"]
    options["net"]["init_args"].update(width=4, multipliers=[1])
    options["samples_per_class"] = 0
    config["trainer"].update(max_epochs=1, limit_train_batches=2)
    path = folder / "generator.yaml"
    path.write_text(yaml.safe_dump(config))
    return path
