"""Tables of docs/results/arithmetic.md, and the size of checkpoints."""

import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment

from lightning_paf.nets import CifarResNet

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "results" / "arithmetic.md").read_text()


@pytest.fixture(scope="module")
def arithmetic():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield import_module("arithmetic")


@pytest.mark.slow
def test_the_page_has_the_computed_tables(arithmetic):
    assert re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE) == [f"{table}\n" for table in arithmetic.tables()]


def test_parameters_match_the_published_ones(arithmetic):
    with torch.device("meta"):
        found = {name: sum(p.numel() for p in make().parameters()) / 1e6 for name, make in arithmetic.NETS.items()}
    published = {"ResNet-18": 11.17, "WRN-28-10": 36.48, "WRN-34-10": 46.16, "WRN-70-16": 266.8}
    assert {name: found[name] for name in published} == pytest.approx(published, rel=1e-3)


def test_speedup_is_at_most_the_number_of_gpus(arithmetic):
    cost = arithmetic.Cost(parameters=10**8, weights=4 * 10**8, step=10**12, fraction=0.5)
    seconds = [cost.epoch_seconds(gpus) for gpus in arithmetic.LINKS]
    assert seconds[0] == pytest.approx(arithmetic.EPOCH * 10**12 / (arithmetic.PEAK * 0.5))
    assert seconds[0] / 8 < seconds[1] < seconds[0]
    assert seconds[0] / 64 < seconds[2] < seconds[1]


def test_a_checkpoint_is_as_large_as_computed(arithmetic, tmp_path):
    net = ["--model.net", "CifarResNet", "--model.net.width", "12"]
    experiment = write_experiment(tmp_path)
    short = ["--trainer.max_steps", "1", "--averaging", "WarmupEMA", "--trainer.limit_val_batches", "0"]
    # The formula counts the momentum of SGD, which the recipes use.
    short += ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.1"]
    short += ["--model.optimizer.momentum", "0.9"]
    run = tmp_path / "run"
    assert status("fit", "-c", experiment, *net, *short, "--run", run, "--checkpoint.monitor", "null") == 0
    model = CifarResNet(18, width=12, num_classes=3)
    parameters = sum(p.numel() for p in model.parameters())
    expected = arithmetic.Cost(parameters, arithmetic.size(model), step=1, fraction=1.0).checkpoint
    assert (run / "checkpoints" / "last.ckpt").stat().st_size == pytest.approx(expected, rel=0.1)
