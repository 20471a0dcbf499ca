"""The command: files that other programs read, an ONNX file that is proved, or nothing at all."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from stand_ins import TinyNet, write_npz_dataset

from lightning_paf.attacks import PGD
from lightning_paf.evaluation import EvaluationResult
from lightning_paf.evaluation.ledger import MemoryLedger
from lightning_paf.evaluation.receipt import write_receipt
from lightning_paf.evaluation.verdict import judge
from lightning_paf.interop import NormalizedNet, read_checkpoint
from lightning_paf.loading import load_run
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.swap import swap_activations
from lightning_paf.tools import export, import_weights

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
PLAIN = ("--formats", "state_dict,safetensors,model_info")


class PairNet(TinyNet):
    """Two places that share an activation."""

    def __init__(self, num_classes=3):
        super().__init__(num_classes)
        self.second = torch.nn.ReLU()

    def features(self, x):
        return self.second(self.activation(self.bn(self.conv(x))).mean((2, 3)))

    def forward(self, x):
        return self.fc(self.features(x))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An imported network that has all test images right, by least squares, but is not robust."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    root = write_npz_dataset(folder / "images")
    net = PairNet().eval()
    swap_activations(net, lambda: PSSiLU(alpha=1.5, beta=0.2))
    with torch.no_grad(), np.load(root / "test.npz") as test:
        x = torch.from_numpy(test["image"]).permute(0, 3, 1, 2) / 255
        features = net.features((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
        wanted = 4 * torch.eye(3)[torch.from_numpy(test["label"])]
        weight = torch.linalg.lstsq(torch.cat([features, torch.ones(len(x), 1)], 1), wanted).solution
        net.fc.weight.copy_(weight[:-1].T)
        net.fc.bias.copy_(weight[-1])
    torch.save(net.state_dict(), folder / "weights.pt")
    words = [folder / "weights.pt", "--net", f"{__name__}.PairNet", "--activation", "PSSiLU", "--out", folder / "run"]
    words += ["--dataset", "npz", "--data.num_classes", 3, "--data.root", root, "--data.num_workers", 0]
    words += ["--data.val_size", 12, "--autoattack.attack.eps", "0.06", "--mean", *MEAN, "--std", *STD]
    assert import_weights.main([str(word) for word in words]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def loaded(run):
    return load_run(checkpoint(run), options=["--trust-config"])


def checkpoint(run):
    return run / "checkpoints" / "imported.ckpt"


def exported(run, out, *options):
    words = ["--trust-config", "--ckpt", checkpoint(run), "--out", out, "--examples", 22, "--queries", 20, *options]
    return export.main([str(word) for word in words])


def test_the_state_dict_has_every_name_of_a_shared_tensor_in_memory_of_its_own(run, tmp_path, loaded):
    assert exported(run, tmp_path / "out", "--formats", "state_dict") == 0
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert set(state) == set(loaded.model.net.net.state_dict())
    assert {"activation.alpha", "second.alpha", "second.beta"} <= set(state)
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)
    net = PairNet()
    swap_activations(net, PSSiLU, scope="module")  # a program that does not share
    net.load_state_dict(state)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(NormalizedNet(net, MEAN, STD).eval()(x), loaded.model(x))


@pytest.mark.parametrize("file", ["model.pt", "model.safetensors"])
def test_import_export_import_gives_identical_tensors(run, tmp_path, file, loaded):
    exported(run, tmp_path / "out", *PLAIN)
    words = [tmp_path / "out" / file, "--net", f"{__name__}.PairNet", "--activation", "PSSiLU", "--dataset", "npz"]
    words += ["--data.num_classes", 3, "--out", tmp_path / "again"]
    import_weights.main([str(word) for word in words])
    again = load_run(checkpoint(tmp_path / "again"), options=["--trust-config"]).model
    before = dict(loaded.model.state_dict())
    if file.endswith(".pt"):  # which cannot say how images are normalised
        before = {key.replace("net.net.", "net."): value for key, value in before.items()}
    else:
        x = torch.rand(2, 3, 8, 8)
        assert torch.equal(again(x), loaded.model(x))
    after = again.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_normalisation_is_in_the_metadata_and_in_the_summary(run, tmp_path):
    exported(run, tmp_path / "out", *PLAIN)
    statistics = read_checkpoint(tmp_path / "out" / "model.safetensors").statistics
    assert statistics.mean == pytest.approx(MEAN)
    summary = json.loads((tmp_path / "out" / "export.json").read_text())
    assert summary["normalisation"]["std"] == pytest.approx(STD)
    assert summary["network"] == f"{__name__}.PairNet"


def result(fingerprints=None):
    attack = {"attack": "AutoAttack", "version": "standard", "eps": "8/255"}
    verdicts = np.array([1, 1, 2, 3], np.uint8)
    return EvaluationResult("autoattack", attack, verdicts, 1.0, fingerprints=fingerprints or {})


def test_the_leaderboard_entry_is_filled_from_the_result(run, tmp_path, capsys):
    result().save(tmp_path / "result.json")
    exported(run, tmp_path / "out", "--formats", "model_info", "--result", tmp_path / "result.json")
    entry = json.loads((tmp_path / "out" / "model_info.json").read_text())
    assert (entry["clean_acc"], entry["autoattack_acc"], entry["link"]) == ("75.00", "50.00", "")
    assert "its author must fill in link, name, authors" in capsys.readouterr().out


def test_a_result_of_another_network_is_refused(run, tmp_path):
    result({"model": "0" * 64}).save(tmp_path / "result.json")
    with pytest.raises(ValueError, match=r"is of another network than .*imported\.ckpt"):
        exported(run, tmp_path / "out", *PLAIN, "--result", tmp_path / "result.json")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--formats", "state_dict,tflite"], "--formats has tflite"),
        (["--examples", "0"], "--examples must be at least 1"),
        (["--queries", "0"], "--queries must be at least 1"),
    ],
)
def test_bad_options_are_refused(run, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        exported(run, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over(run, tmp_path):
    (tmp_path / "model.pt").write_text("mine")
    with pytest.raises(ValueError, match="exists, and nothing is written over"):
        exported(run, tmp_path, *PLAIN)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_help_names_every_format(capsys):
    with pytest.raises(SystemExit, match="0"):
        export.main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in export.FILES)


@pytest.fixture
def onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def receipt(loaded, tmp_path_factory):
    path = tmp_path_factory.mktemp("receipt") / "receipt.safetensors"
    attack, samples = PGD(0.06, step_size=0.015, steps=8), loaded.samples()
    judgement = judge(loaded.model, attack, samples, MemoryLedger(), block_size=10)
    assert (judgement.verdicts == 2).sum() > 2
    settings = {"seed": 0, "block_size": 10, "precision": "fp32", "config_text": None, "dataset": "npz"}
    write_receipt(path, judgement, loaded.model, samples, attack=attack, **settings)
    return path


def test_onnx_is_attacked_again_and_meets_the_examples_of_the_receipt(run, tmp_path, receipt, onnx, capsys):
    assert exported(run, tmp_path / "out", "--receipt", receipt) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*export.FILES.values(), export.SUMMARY}
    printed = " ".join(capsys.readouterr().out.split())
    robust = int(re.search(r"attacked again: (\d+) of 22 robust before", printed)[1])
    assert 0 < robust < 22, "an attack that breaks none or all compares nothing"
    assert "Held only before: none; only after: none (p = 1)" in printed
    assert "exact paired test" in printed


def test_an_onnx_file_of_other_weights_fails_and_leaves_nothing(run, tmp_path, onnx, monkeypatch):
    from lightning_paf.interop import onnx_model

    original = onnx_model.save_onnx

    def planted(model, example, path):
        other = copy.deepcopy(model)
        other.net.net.fc.bias.data[0] += 5
        original(other, example, path)

    monkeypatch.setattr(onnx_model, "save_onnx", planted)
    with pytest.raises(ValueError, match="The ONNX file is not the network") as refusal:
        exported(run, tmp_path / "out", "--formats", "state_dict,onnx")
    assert "test image 0: logits differ by" in str(refusal.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_receipt_of_another_network_is_refused(run, tmp_path, receipt, loaded, onnx, monkeypatch):
    bias = loaded.model.net.net.fc.bias.data
    changed = torch.load(checkpoint(run), weights_only=True)
    changed["state_dict"]["model.net.net.fc.bias"] = bias + 1
    other = tmp_path / "run"
    (other / "checkpoints").mkdir(parents=True)
    torch.save(changed, checkpoint(other))
    (other / "config.yaml").write_text((run / "config.yaml").read_text())
    with pytest.raises(ValueError, match="is the receipt of another network"):
        exported(other, tmp_path / "out", "--formats", "onnx", "--receipt", receipt)
    assert not list((tmp_path / "out").iterdir())
