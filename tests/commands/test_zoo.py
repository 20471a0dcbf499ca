"""`zoo` lists published networks, and `import-weights NAME` downloads one."""

from dataclasses import replace

import pytest
import torch
from helpers.cli_runs import status
from helpers.file_server import file_server
from helpers.originals import MEAN, STD, Normalize, shifted, wide
from torch import nn

from lightning_paf.interop import zoo
from lightning_paf.loading import load_run

X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_table_has_80_columns(capsys):
    assert status("zoo") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["cifar10/linf/", "architecture", "eps", "clean", "AA"]
    assert lines[1].split() == ["Bartoldson2024Adversarial_WRN-94-16", "WideResNet-94-16", "8/255", "93.68", "73.71"]


def test_one_name_prints_all_facts(capsys):
    assert status("zoo", "Dai2021Parameterizing") == 0
    text = capsys.readouterr().out
    assert "WideResNet (depth 28, width 10) with PSSiLU" in text
    assert "lightning-paf import-weights cifar10/linf/Dai2021Parameterizing --out RUN" in text


def test_an_unknown_pattern_lists_near_names(capsys):
    assert status("zoo", "Rebufi2021Fixing_R18_ddpm") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Near: " in line
    assert "cifar10/linf/Rebuffi2021Fixing_R18_ddpm" in line


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Entry `cifar10/l2/Tiny` whose file holds `best` and the published `last` weights, and the published network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    net = wide(activation=False)
    torch.save({"best": shifted(net.state_dict()), "last": net.state_dict()}, tmp_path / "tiny.pt")
    with file_server() as server:
        server.files["/tiny.pt"] = (tmp_path / "tiny.pt").read_bytes()
        size = {"class_path": "WideResNet", "init_args": {"depth": 10, "width": 1}}
        entry = replace(
            zoo.zoo_entry("cifar10/l2/Wu2020Adversarial"), name="cifar10/l2/Tiny", net=size, mean=MEAN, std=STD
        )
        entry = replace(entry, url=server.url("/tiny.pt"), entry="last")
        monkeypatch.setattr(zoo, "zoo", lambda: (entry,))
        yield server, nn.Sequential(Normalize(), net).eval()


@pytest.mark.parametrize("words", [["tiny"], ["FILE", "--zoo", "Tiny"]])
def test_a_name_is_a_run_with_the_published_logits(words, served, tmp_path, capsys):
    words = [str(tmp_path / "tiny.pt") if word == "FILE" else word for word in words]
    assert status("import-weights", *words, "--out", tmp_path / "run") == 0
    run = load_run(tmp_path / "run" / "checkpoints" / "imported.ckpt")
    torch.testing.assert_close(run.model(X), served[1](X), atol=1e-6, rtol=1e-6)
    attack = run.config["autoattack"]["init_args"]["attack"]["init_args"]
    assert (attack["norm"], float(attack["eps"])) == ("l2", 0.5)
    assert "Published: clean 88.51 %, AutoAttack 73.66 % within l2 0.5." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Tyni"], "neither a file Tyni nor a network of this name in the zoo. Near: cifar10/l2/Tiny."),
        (["Tiny", "--net", "WideResNet"], "--net must not be given for a network of the zoo"),
        (["Tiny", "--sha256", 64 * "0"], "must be 000"),
        (["tiny.pt"], "--net must be given for a file"),
    ],
)
def test_a_wrong_name_or_file_is_one_line(words, message, served, tmp_path, capsys):
    assert status("import-weights", *words, "--out", tmp_path / "run") == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in lines[-1]
    assert not (tmp_path / "run").exists()


def test_a_page_instead_of_the_file_names_the_way_by_hand(served, tmp_path, capsys):
    served[0].types["/tiny.pt"] = "text/html"
    assert status("import-weights", "Tiny", "--out", tmp_path / "run") == 1
    assert "lightning-paf import-weights FILE --zoo cifar10/l2/Tiny" in capsys.readouterr().err
