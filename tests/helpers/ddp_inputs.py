"""Configuration and images with which any number of ranks train the same network."""

from pathlib import Path

import numpy as np
import yaml

from helpers.fakes import write_npz_dataset

EVALUATED = 11  # on two ranks 6 and 5
BATCH, REAL_IN_BATCH = 16, 8

DDP = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
TINY = ["--model.net", "helpers.fakes.TinyNet", "--model.net.channels", "3"]
BATCH_NORM = [*TINY, "--model.attack.start", "uniform"]
BATCH_NORM += ["--data.val_size", "19", "--data.eval_batch_size", "9"]  # 10 and 9 samples: 2 batches and 1
AVERAGING = ["--averaging", "WarmupEMA", "--checkpoint.monitor", "val/acc_pgd"]
AVERAGING += ["--monitor", "ActivationMonitor", "--monitor.picture", "false"]
AVERAGING += ["--val_attack.max_examples", "1"]  # the second rank has none


def of_class(class_path: str, **init_args) -> dict:
    return {"class_path": class_path, "init_args": init_args}


def pgd(**options) -> dict:
    """PGD without a random start, whose result does not depend on how samples are batched."""
    return of_class("PGD", **{"eps": 0.1, "step_size": 0.05, "steps": 3, "start": "none", **options})


def settings(folder: Path) -> dict:
    """A training without BatchNorm, augmentation and random starts."""
    return {
        "data": {
            "dataset": "npz",
            "num_classes": 3,
            "root": str(folder / "data"),
            "synthetic": str(folder / "pool.npz"),
            "real_fraction": REAL_IN_BATCH / BATCH,
            "batch_size": BATCH,
            "val_size": EVALUATED,
            "eval_batch_size": 5,  # 6 and 5 samples would be 2 batches and 1
            "num_workers": 0,
        },
        "model": {
            "net": of_class("SmallConvNet", in_channels=3, width=4),
            # A small penalty, so that beta does not cross zero, where its sign would depend on rounding.
            "activation": of_class("PSSiLU", beta=0.1, penalty_weight=0.1),
            "attack": pgd(),
            "objective": of_class("AdversarialCE"),
        },
        "val_attack": of_class("RobustEval", attack=pgd(eps=0.15, steps=10)),
        "checkpoint": of_class("ModelCheckpoint", filename="{epoch}", save_top_k=-1),
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "callbacks": [of_class("helpers.ddp_worker.Recorder")],
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }


def write_inputs(folder: Path) -> str:
    """Write configuration and images; the first pixel of synthetic images, and of no others, is black."""
    write_npz_dataset(folder / "data", train=27 + EVALUATED, test=EVALUATED)
    image = np.random.default_rng(1).integers(20, 230, (40, 8, 8, 3)).astype(np.uint8)
    image[:, 0, 0] = 0
    np.savez(folder / "pool.npz", image=image, label=np.arange(40) % 3)
    (folder / "base.yaml").write_text(yaml.safe_dump(settings(folder)))
    return str(folder / "base.yaml")
