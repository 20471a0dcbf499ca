"""Commands in this process, on images and networks so small that a run takes a second."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from helpers.fakes import write_npz_dataset
from helpers.resume_helpers import at_step
from lightning_paf.__main__ import main
from lightning_paf.attacks import Attack
from lightning_paf.cli.training import PafCLI, train
from lightning_paf.evaluation import Evaluation, EvaluationResult, evidence
from lightning_paf.loading import load_run


def experiment(num_classes: int = 3) -> dict[str, Any]:
    """Return an experiment of one epoch of four steps, without `data.root`."""
    attack = {"class_path": "PGD", "init_args": {"steps": 2, "step_size": "4/255"}}
    return {
        "data": {
            "dataset": "npz",
            "num_classes": num_classes,
            "real_fraction": 1.0,
            "batch_size": 16,
            "val_size": 12,
            "num_workers": 0,
        },
        "model": {
            "net": {"class_path": "SmallConvNet", "init_args": {"in_channels": 3, "width": 4}},
            "activation": "PSSiLU",
            "attack": attack,
            "objective": "AdversarialCE",
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "val_attack": {"class_path": "RobustEval", "init_args": {"attack": attack}},
    }


def write_experiment(folder: Path, num_classes: int = 3) -> str:
    """Write `experiment` and its images into a folder, and return the path of the file."""
    root = write_npz_dataset(folder / "images", num_classes=num_classes)
    written = experiment(num_classes)
    written["data"]["root"] = str(root)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(written))
    return str(path)


def trained_run(folder: Path) -> Path:
    """Train for one epoch on small images in `folder/images`; return the run folder."""
    assert status("fit", "-c", write_experiment(folder), "--run", folder / "run") == 0
    return folder / "run"


def evaluated_run(folder: Path, attack: Attack, name: str, with_config: bool) -> EvaluationResult:
    """Train in `folder/run`, evaluate the model, and write the evidence to `folder/NAME`."""
    trained_run(folder)
    run = load_run(folder / "run" / "checkpoints" / "last.ckpt")
    samples = run.samples()
    result = Evaluation(run.model, attack, samples, block_size=8).run()
    config = (folder / "run" / "config.yaml").read_text() if with_config else None
    evidence.write(result, folder / name, samples, dataset="npz", config=config)
    return result


def status(*words: str | Path) -> int:
    """Return the exit status of `lightning-paf WORDS`."""
    try:
        return main([str(word) for word in words])
    except SystemExit as stop:
        return int(stop.code or 0)


def stopped_and_resumed(words: Sequence[Any], run: Path, step: int, *first: str) -> Path:
    """Run `fit`, which fails before a step, and resume it from the last checkpoint; `first` are words of the former."""
    with pytest.raises(RuntimeError, match=f"stopped before step {step}"):
        status(*words, *first, *at_step("FailsAt", step), "--run", run)
    assert status(*words, "--run", run, "--ckpt_path", "last") == 0
    return run


def assert_resumed_run_is_the_same(words: Sequence[Any], folder: Path) -> None:
    """Compare the weights of a resumed and an uninterrupted run, and test the latter by its configuration."""
    assert status(*words, "--run", folder / "a") == 0
    resumed = stopped_and_resumed(words, folder / "b", 4)
    checkpoints = [run / "checkpoints" / "last.ckpt" for run in (folder / "a", resumed)]
    one, other = (torch.load(path)["state_dict"] for path in checkpoints)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert status("test", "--ckpt_path", checkpoints[0]) == 0


def built(*words: str | Path) -> PafCLI:
    """Build the objects of `lightning-paf fit WORDS` without running it."""
    return train([str(word) for word in words], run=False)


def parser_error(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Return the error of the parser of `fit WORDS`; nothing was built."""
    with pytest.raises(SystemExit, match="2"):
        built(*words)
    return " ".join(capsys.readouterr().err.split())
