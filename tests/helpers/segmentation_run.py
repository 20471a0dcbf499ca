"""A small training of few-shot segmentation: two epochs of four steps on synthetic volumes."""

from pathlib import Path

import yaml


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
