"""Parts of the speed benchmarks, and a quick run of every program."""

import json
import logging
import math
import subprocess
import sys
from argparse import Namespace
from fractions import Fraction
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_paf.attacks import PGD, autoattack
from lightning_paf.evaluation import Samples
from lightning_paf.evaluation.statistics import exact_accuracy
from lightning_paf.nets import CifarResNet, SmallConvNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.swap import swap_activations
from lightning_paf.objectives import AdversarialCE
from lightning_paf.speed.options import Speed
from lightning_paf.tasks.classification import RobustModule

FOLDER = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")
TINY = ["--quick", "--net", "wrn10", "--batch", "4", "--repeats", "2"]


@pytest.fixture(autouse=True)
def _search_path(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    level = logging.getLogger("lightning.pytorch").level
    yield
    logging.getLogger("lightning.pytorch").setLevel(level)


def program(name):
    return import_module(name)


def run(name, arguments, monkeypatch, folder):
    """Run a program's `main`, and return the rows of its JSON file."""
    file = folder / "results" / f"{name}.json"
    monkeypatch.setattr(sys, "argv", [str(FOLDER / f"{name}.py"), "--threads", "1", "--json", str(file), *arguments])
    program(name).main()
    content = json.loads(file.read_text())
    assert content["program"] == f"{name}.py"
    assert content["machine"]["torch"] == torch.__version__
    return content["rows"]


def is_spread(row):
    return math.isfinite(row["median"]) and row["min"] <= row["median"] <= row["max"]


def test_variants_alternate_and_the_warm_up_is_dropped():
    called = []
    variants = {name: lambda name=name: called.append(name) for name in "ab"}
    times = program("measure").interleaved(variants, repeats=2, warmup=1, device=CPU)
    assert "".join(called) == "abbaab"
    assert {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2}
    assert all(t > 0 for taken in times.values() for t in taken)


def test_ratios_are_taken_repeat_by_repeat():
    found = program("measure").ratios([2.0, 30.0, 400.0], [1.0, 10.0, 100.0])
    assert found == {"median": 3.0, "min": 2.0, "max": 4.0}


def test_peak_memory_counts_simultaneous_tensors():
    before = torch.empty(3_000_000)

    def call():
        a = torch.empty(1_000_000)
        b = torch.empty(2_000_000)
        del a
        c = torch.empty(500_000)
        del b, c
        return torch.empty(2_500_000)

    assert program("measure").peak_memory(call, CPU) == 4 * 3_000_000
    del before


def test_missing_values_are_empty_cells():
    text = program("measure").table({"a": {"median": 0.5, "target": "<= 1"}, "b": {"median": 12345.6}})
    assert text.splitlines()[2:] == ["| a | 0.500 |  |  | <= 1 |", "| b | 12,346 |  |  |  |"]


def test_operations_are_those_of_the_flop_counter():
    net, x = CifarResNet(width=4).eval(), torch.rand(1, 3, 32, 32)

    def counted(inputs):
        for tensor in (x, *net.parameters()):
            tensor.requires_grad_(any(tensor is other for other in inputs))
        with FlopCounterMode(display=False) as counter:
            net(x).sum().backward(inputs=inputs)
        return counter.get_total_flops()

    found = program("utilisation").operations(net, x, attack_steps=3)
    images, weights = counted([x]), counted(list(net.parameters()))
    assert found["with gradient of the images"] == images
    assert found["with gradient of the weights"] == weights
    assert found["step"] == found["forward"] + 3 * images + weights


def test_the_textbook_step_is_equivalent_to_ours():
    """The same weights, batch and noise lead to the same weights."""
    textbook, ours = program("textbook"), program("ours")
    x, y = torch.rand(8, 3, 32, 32), torch.randint(10, (8,))

    torch.manual_seed(1)
    net, activation = CifarResNet(width=4), textbook.PlainPSSiLU()
    swap_activations(net, lambda: activation)
    start = {name: value.clone() for name, value in net.state_dict().items()}
    reference = textbook.Normalized(net, (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    torch.manual_seed(2)
    textbook.training_step(reference, activation, optimizer, x, y, steps=5)

    speed = Speed(channels_last=False, fused=False, folded=False, recompute=False)
    with ours.quiet():
        module = RobustModule(
            CifarResNet(width=4), PGD(steps=5), AdversarialCE(), activation=PSSiLU(), decay="all", speed=speed
        )
    module.model.net.load_state_dict(start)
    step = ours.OurStep(module, CPU, "fp32")
    torch.manual_seed(2)
    step(x, y)

    theirs, found = net.state_dict(), module.model.net.state_dict()
    assert found.keys() == theirs.keys()
    moved = {name for name in start if not torch.equal(start[name], theirs[name])}
    assert {"activation.alpha", "activation.beta", "conv1.weight", "bn1.running_mean"} <= moved
    for name, value in theirs.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_fractions_of_an_epoch():
    parts = {"epoch": 10.0, "objective": 6.0, "attack": 4.0, "backward": 2.0, "optimiser": 0.5}
    found = program("epoch").fractions(parts)
    assert found["outside of attack and update"] == pytest.approx(0.15)
    assert found["update, forward"] == pytest.approx(0.2)
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(("shift", "contains"), [(0.05, "yes"), (0.5, "no")])
def test_a_shift_larger_than_the_spread_of_seeds_is_found(shift, contains):
    equivalence = program("equivalence")
    robust = exact_accuracy(5, 10)
    base = [equivalence.Run([9.0] * 10 + [loss] * equivalence.TAIL, robust) for loss in (1.0, 1.1, 1.2)]
    other = [equivalence.Run([9.0] * 10 + [loss + shift] * equivalence.TAIL, robust) for loss in (1.0, 1.1, 1.2)]
    row = equivalence.compared({"first": base, "other": other})["mean loss, other minus first, 95 % interval"]
    assert row["median"] == pytest.approx(shift)
    assert row["target"] == f"contains 0: {contains}"


def test_a_missing_library_is_reported(monkeypatch):
    libraries = program("libraries")
    monkeypatch.setitem(sys.modules, "foolbox", None)
    runs, versions = libraries.theirs(nn.Identity(), libraries.Setting(0.1, 0.05, 2))
    assert "foolbox" not in runs
    assert versions["foolbox"].startswith("not installed")
    assert "plain_loop" in runs


def test_step(monkeypatch, tmp_path, capsys):
    rows = run("step", TINY, monkeypatch, tmp_path)
    assert is_spread(rows["time, PSSiLU / ReLU"])
    assert is_spread(rows["time, PSSiLU / textbook"])
    assert rows["peak memory, PSSiLU / textbook"]["median"] < 1
    assert not any("milliseconds" in name for name in rows)  # no absolute times on a CPU
    assert "| time, PSSiLU / ReLU |" in capsys.readouterr().out


def test_nets(monkeypatch, tmp_path):
    rows = run("nets", ["--quick", "--width", "4"], monkeypatch, tmp_path)
    assert all(is_spread(row) and row["min"] > 0 for row in rows.values())
    unrolled = program("nets").COMPARISONS["ODE block, 10 Euler steps / 10 residual blocks"]
    x, block, reference = torch.rand(2, 4, 8, 8), unrolled.net(4), unrolled.reference(4)
    reference.load_state_dict(block.state_dict())
    torch.testing.assert_close(block(x), reference(x))


def test_utilisation(monkeypatch, tmp_path):
    rows = run("utilisation", TINY, monkeypatch, tmp_path)
    (fraction,) = [row for name, row in rows.items() if name.startswith("share")]
    assert is_spread(fraction)
    assert fraction["min"] > 0


def test_epoch(monkeypatch, tmp_path):
    rows = run("epoch", [*TINY, "--batches", "2"], monkeypatch, tmp_path)
    assert all(is_spread(row) and 0 < row["median"] < 1 for row in rows.values())
    assert sum(row["median"] for row in rows.values()) == pytest.approx(1)  # two epochs: the median is the mean


def test_first_step(monkeypatch, tmp_path):
    def in_this_process(command, **_):
        monkeypatch.setattr(sys, "argv", command[1:])
        first_step.main()
        torch._logging.set_logs()  # the default
        return subprocess.CompletedProcess(command, 0)

    first_step = program("first_step")
    monkeypatch.setattr(subprocess, "run", in_this_process)
    rows = run("first_step", [*TINY[:-1], "1"], monkeypatch, tmp_path)
    assert rows["first step / later step, eager"]["median"] > 1
    assert rows["compilations, second epoch, eager"]["median"] == 0


@pytest.mark.slow
def test_libraries(monkeypatch, tmp_path):
    libraries = program("libraries")

    def untrained(options: Namespace):
        assert options.eps == Fraction(1, 20)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.rand(6, 1, 8, 8), torch.arange(6)

    monkeypatch.setitem(libraries.CASES, "digits_standard", untrained)
    rows = run("libraries", TINY, monkeypatch, tmp_path)
    assert rows["images a second over ours, ours"]["median"] == 1
    assert is_spread(rows["images a second over ours, plain_loop"])
    assert is_spread(rows["robust of 6 digits, plain_loop"])


def test_equivalence(monkeypatch, tmp_path):
    small = lambda depth, in_channels, width: SmallConvNet(in_channels=in_channels, width=width)  # noqa: E731
    monkeypatch.setattr(program("equivalence"), "CifarResNet", small)
    rows = run("equivalence", ["--quick", "--width", "4", "--picture", str(tmp_path / "a.png")], monkeypatch, tmp_path)
    difference = rows["mean loss, fp32 minus fp32, plain, 95 % interval"]["median"]
    assert abs(difference) < 0.05  # rounding, after four steps
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.slow
def test_loader(monkeypatch, tmp_path):
    loader = program("loader")
    monkeypatch.setattr(loader, "MEMORY_SIZES", (1000,))
    monkeypatch.setattr(loader, "WARMUP", 2)
    rows = run("loader", ["--quick"], monkeypatch, tmp_path)
    assert is_spread(rows["loading and augmentation, images a second"])


def test_episodes(monkeypatch, tmp_path):
    rows = run("episodes", ["--quick"], monkeypatch, tmp_path)
    assert len(rows) == 8
    assert all(is_spread(row) for row in rows.values())


def test_folder_loader(monkeypatch, tmp_path):
    rows = run("folder_loader", ["--quick"], monkeypatch, tmp_path)
    assert {"32 px, array, images per CPU second", "224 px, streamed : torchvision"} <= rows.keys()
    assert all(row["median"] > 0 for name, row in rows.items() if "memory" not in name)


@pytest.fixture
def short_attacks(monkeypatch):
    """AutoAttack with few iterations."""
    short = {"apgd-ce": {"steps": 5}, "apgd-t": {"steps": 5}, "fab-t": {"steps": 5}, "square": {"queries": 10}}
    made = {name: partial(autoattack._MAKE[name], **budget) for name, budget in short.items()}
    monkeypatch.setattr(autoattack, "_MAKE", {**autoattack._MAKE, **made})


def small_case(options: Namespace | None = None):
    """An untrained network, and images with its own predictions as labels."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)), torch.rand(12, 1, 8, 8)
    return net.eval(), x, net(x).argmax(1)


@pytest.mark.usefixtures("short_attacks")
def test_disagreements_of_precisions(monkeypatch, tmp_path):
    monkeypatch.setitem(program("networks").CASES, "digits_relu", small_case)
    arguments = ["--cases", "digits_relu", "--eps", "1/20", "--images", "8", "--queries", "10"]
    rows = run("precision", arguments, monkeypatch, tmp_path)
    assert [row["attack"] for row in rows] == ["apgd-ce", "apgd-t", "fab-t", "square", "all"]
    assert all(row["images"] == 8 for row in rows)
    for row in rows:
        assert row["robust, bf16"] - row["robust, fp32"] == row["only fp32"] - row["only bf16"]
    assert rows[-1]["robust, fp32"] <= min(row["robust, fp32"] for row in rows)
    assert run("precision", arguments, monkeypatch, tmp_path) == rows  # replaced, not added


@pytest.mark.usefixtures("short_attacks")
def test_certificates_and_attacks_of_runs(monkeypatch, tmp_path, capsys):
    net, x, y = small_case()
    certificates = program("certificates")
    loaded = SimpleNamespace(model=net, samples=lambda count: Samples.of(x[:count], y[:count]))
    monkeypatch.setattr(certificates, "load_run", lambda *_: loaded)
    monkeypatch.setattr(certificates, "checkpoint_of", lambda folder: folder)
    (row,) = run("certificates", ["runs/mine", "--eps", "1/50", "--images", "9"], monkeypatch, tmp_path)
    counts = list(row["counts"].values())
    assert (row["run"], row["images"], row["clean"]) == ("mine", 9, 9)
    assert counts == sorted(counts)
    assert 0 < counts[-2] <= counts[-1]
    assert f"| mine | 9 | {counts[0]} (" in capsys.readouterr().out


def test_autoattack_with_certificates_finds_the_same(monkeypatch, tmp_path):
    timed = program("autoattack")
    monkeypatch.setitem(timed.CASES, "digits_relu", small_case)
    words = ["--images", "6", "--repeats", "2", "--budget", "0.02", "--eps", "1/50", "--certify", "crown"]
    monkeypatch.setattr(sys, "argv", ["autoattack.py", *words, "--json", str(tmp_path / "a.json")])
    timed.main()
    found = json.loads((tmp_path / "a.json").read_text())
    plain, certified = (found["runs"][name] for name in ("ours fp32", "ours fp32, crown"))
    assert [timing["robust"]["square"] for timing in plain] == [timing["robust"]["square"] for timing in certified]
    assert all(0 < timing["certified"] <= timing["robust"]["square"] for timing in certified)
    assert is_spread(found["ratios"]["ours fp32, crown all"])


@pytest.mark.usefixtures("short_attacks")
def test_recall_counts_violations_and_the_images_that_each_attack_finds(monkeypatch, tmp_path, capsys):
    arguments = ["--nets", "cross-entropy, plain", "--eps", "0.12", "--images", "6", "--epochs", "1", "--seeds", "1"]
    (row,) = run("recall", arguments, monkeypatch, tmp_path)
    assert row["violated"] + row["proven"] + row["undecided"] == row["images"] == 6
    assert row["found"]["standard"] <= row["found"]["strong"] <= row["violated"]
    assert f"strong finds {row['found']['strong']} of {row['violated']}" in capsys.readouterr().out
