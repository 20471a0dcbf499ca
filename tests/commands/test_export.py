"""`export` writes files with the logits of the network, or nothing."""

import copy
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
from helpers.fakes import TinyNet, write_npz_dataset
from huggingface_hub import HfApi

from lightning_paf.attacks import PGD
from lightning_paf.commands import export, import_weights
from lightning_paf.evaluation import EvaluationResult, evidence
from lightning_paf.evaluation.evaluate import Evaluation
from lightning_paf.interop import NormalizedNet, plain_files, read_checkpoint
from lightning_paf.loading import load_run
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.swap import swap_activations

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
PLAIN = ("--formats", "state_dict,safetensors,model_info")


class PairNet(TinyNet):
    """Two layers that share an activation."""

    def __init__(self, num_classes=3):
        super().__init__(num_classes)
        self.second = torch.nn.ReLU()

    def features(self, x):
        return self.second(self.activation(self.bn(self.conv(x))).mean((2, 3)))

    def forward(self, x):
        return self.fc(self.features(x))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An imported network that classifies all test images correctly, by least squares, but is not robust."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    root = write_npz_dataset(folder / "images")
    net = PairNet().eval()
    swap_activations(net, lambda: PSSiLU(alpha=1.5, beta=0.2))
    with torch.no_grad(), np.load(root / "test.npz") as test:
        x = torch.from_numpy(test["image"]).permute(0, 3, 1, 2) / 255
        features = net.features((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
        logits = 4 * torch.eye(3)[torch.from_numpy(test["label"])]
        weight = torch.linalg.lstsq(torch.cat([features, torch.ones(len(x), 1)], 1), logits).solution
        net.fc.weight.copy_(weight[:-1].T)
        net.fc.bias.copy_(weight[-1])
    torch.save(net.state_dict(), folder / "weights.pt")
    words = ["--data.root", root, "--data.num_workers", 0, "--data.val_size", 12, "--mean", *MEAN, "--std", *STD]
    return imported(folder / "weights.pt", folder / "run", *words, "--autoattack.attack.eps", "0.06")


def imported(file, out, *options):
    words = [file, "--net", f"{__name__}.PairNet", "--activation", "PSSiLU", "--dataset", "npz", "--out", out]
    assert import_weights.main([str(word) for word in (*words, "--data.num_classes", 3, *options)]) == 0
    return out


@pytest.fixture(scope="module")
def loaded(run):
    return load_run(checkpoint(run), options=["--trust-config"])


def checkpoint(run):
    return run / "checkpoints" / "imported.ckpt"


def exported(run, out, *options):
    return export.main([str(word) for word in ("--trust-config", "--ckpt", checkpoint(run), "--out", out, *options)])


def test_the_state_dict_has_a_copy_of_a_shared_tensor_for_every_name(run, tmp_path, loaded, capsys):
    assert exported(run, tmp_path / "out", "--formats", "state_dict", "--examples", 0, "--data.root", "absent") == 0
    assert "model.pt: 64 random images: logits differ by at most" in capsys.readouterr().out
    state = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    assert set(state) == set(loaded.model.net.net.state_dict())
    assert {"activation.alpha", "second.alpha", "second.beta"} <= set(state)
    assert len({tensor.untyped_storage().data_ptr() for tensor in state.values()}) == len(state)
    net = PairNet()
    swap_activations(net, PSSiLU, scope="module")  # a program that does not share
    net.load_state_dict(state)
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(NormalizedNet(net, MEAN, STD).eval()(x), loaded.model(x))


def test_import_export_import_gives_identical_tensors_and_the_leaderboard_entry(run, tmp_path, loaded, capsys):
    attack, outcomes = {"attack": "AutoAttack", "version": "standard"}, np.array([1, 1, 2, 3], np.uint8)
    EvaluationResult("autoattack", attack, outcomes, 1.0).save(tmp_path / "result.json")
    out = tmp_path / "out"
    exported(run, out, *PLAIN, "--result", tmp_path / "result.json")
    assert "model_info.json: fill in link, name, authors" in capsys.readouterr().out
    entry, summary = (json.loads((out / name).read_text()) for name in ("model_info.json", "export.json"))
    assert (entry["clean_acc"], entry["autoattack_acc"], entry["link"]) == ("75.00", "50.00", "")
    assert summary["normalisation"]["std"] == pytest.approx(STD)
    assert summary["network"] == f"{__name__}.PairNet"
    assert read_checkpoint(out / "model.safetensors").statistics.mean == pytest.approx(MEAN)
    for name, prefix in (("model.pt", "net."), ("model.safetensors", "net.net.")):  # the former without normalisation
        folder = imported(out / name, tmp_path / name)
        again = load_run(checkpoint(folder), options=["--trust-config"]).model
        before = {key.replace("net.net.", prefix): value for key, value in loaded.model.state_dict().items()}
        after, x = again.state_dict(), torch.rand(2, 3, 8, 8)
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in before)
        assert torch.equal(again(x), loaded.model(x)) == (name == "model.safetensors")


def test_a_result_of_other_weights_is_refused(run, tmp_path):
    result = EvaluationResult("pgd", {}, np.array([1], np.uint8), 1.0, fingerprints={"model": "0" * 64})
    result.save(tmp_path / "result.json")
    with pytest.raises(ValueError, match=r"--result must belong to the weights in .*imported\.ckpt"):
        exported(run, tmp_path / "out", "--formats", "model_info", "--result", tmp_path / "result.json")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--formats", "state_dict,tflite"], "must be some of .* got tflite"),
        (["--examples", "0"], "--examples must be at least 1 for an ONNX file, got 0"),
        ([*PLAIN, "--examples", "-1"], "--examples: must be at least 0, got -1"),
        (["--eps=-8/255"], "--eps: must be above 0, got -8/255"),
        (["--queries", "100"], r"--queries was removed.*Pass --evidence FILE"),
        (["--receipt", "FILE"], r"--receipt was removed.*Pass --evidence FILE"),
    ],
)
def test_invalid_options_are_refused(run, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        exported(run, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "model.pt").write_text("mine")
    with pytest.raises(ValueError, match=r"--out must be a folder without model\.pt"):
        exported(run, tmp_path, *PLAIN)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.fixture(scope="module")
def evaluated(loaded, tmp_path_factory):
    """Evidence of an evaluation, and the number of its adversarial examples."""
    path = tmp_path_factory.mktemp("evaluated") / f"autoattack{evidence.SUFFIX}"
    attack, samples = PGD(0.06, step_size=0.015, steps=8), loaded.samples()
    result = Evaluation(loaded.model, attack, samples, block_size=10).run()
    evidence.write(result, path, samples, dataset="npz")
    return path, int((result.outcomes == 2).sum())


def test_every_network_is_checked_on_the_evidence_of_the_run(run, tmp_path, evaluated, capsys):
    pytest.importorskip("onnxscript")
    path, fooled = evaluated
    assert fooled > 2
    assert exported(run, tmp_path / "out", "--evidence", path) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*export.FILES.values(), export.SUMMARY, "README.md"}
    printed = capsys.readouterr().out
    for name in ("model.pt", "model.safetensors", "model.onnx"):
        lines = [line for line in printed.splitlines() if line.startswith(f"{name}: ")]
        assert [line.split(": ")[1] for line in lines] == [
            "22 test images",
            "22 perturbed images",
            f"{fooled} adversarial examples",
        ]
        assert lines[2].endswith(f"the network misclassifies {fooled}, the export {fooled} of these.")


def test_evidence_in_the_run_folder_is_found_unless_it_is_of_other_weights(run, tmp_path, evaluated, capsys):
    path, fooled = evaluated
    again = tmp_path / "run"
    (again / "checkpoints").mkdir(parents=True)
    (again / "test").mkdir()
    (again / "test" / path.name).write_bytes(path.read_bytes())
    (again / "config.yaml").write_text((run / "config.yaml").read_text())
    weights = torch.load(checkpoint(run), weights_only=True)
    torch.save(weights, checkpoint(again))
    exported(again, tmp_path / "out", "--formats", "safetensors")
    assert f"model.safetensors: {fooled} adversarial examples: " in capsys.readouterr().out
    few = write_npz_dataset(tmp_path / "few", test=4)
    with pytest.raises(ValueError, match="Test images must be those of the evidence"):
        exported(again, tmp_path / "other", "--formats", "safetensors", "--data.root", few)
    weights["state_dict"]["model.net.net.fc.bias"] += 1
    torch.save(weights, checkpoint(again))
    exported(again, tmp_path / "changed", "--formats", "safetensors")
    assert "Adversarial examples were not checked: the run has no evidence" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--evidence must belong to the weights in"):
        exported(again, tmp_path / "named", "--formats", "safetensors", "--evidence", path)
    assert not (tmp_path / "named").exists()


def test_evidence_of_other_images_is_left_out_if_some_is_of_these(run, loaded, tmp_path, evaluated, capsys):
    path, fooled = evaluated
    again = shutil.copytree(run, tmp_path / "run")
    (again / "test").mkdir(exist_ok=True)
    shutil.copy(path, again / "test")
    root = write_npz_dataset(tmp_path / "other", train=60)
    samples = load_run(checkpoint(run), options=["--trust-config", "--data.root", str(root)]).samples()
    result = Evaluation(loaded.model, PGD(0.2, step_size=0.05, steps=8), samples, block_size=9).run()
    evidence.write(result, again / "test" / f"other{evidence.SUFFIX}", samples, dataset="npz")
    assert exported(again, tmp_path / "out", "--formats", "safetensors") == 0
    printed = capsys.readouterr().out
    assert "Left out: 1 of 2 evidence files, which are of other images." in printed
    assert f"model.safetensors: {fooled} adversarial examples: " in printed


def other_bias(model):
    other = copy.deepcopy(model)
    list(other.parameters())[-1].data[0] += 5
    return other


@pytest.mark.parametrize("format_", ["state_dict", "safetensors"])
def test_a_file_of_other_weights_is_refused_and_removed(run, tmp_path, format_, monkeypatch):
    state = plain_files.plain_state_dict
    monkeypatch.setattr(plain_files, "plain_state_dict", lambda net: state(other_bias(net)))
    with pytest.raises(ValueError, match="must match those of the network") as refusal:
        exported(run, tmp_path / "out", "--formats", f"model_info,{format_}")
    assert "test image 0: logits differ by" in str(refusal.value)
    assert not list((tmp_path / "out").iterdir())


@pytest.fixture
def with_evidence(run, tmp_path, loaded):
    """A copy of the run with evidence of 10 test images under PGD in l2."""
    folder = shutil.copytree(run, tmp_path / "evaluated")
    samples = load_run(checkpoint(folder), options=["--trust-config"]).samples(10)
    result = Evaluation(loaded.model, PGD(eps=0.5, steps=3, norm="l2"), samples, block_size=10).run()
    evidence.write(result, folder / "test" / "pgd.evidence.safetensors", samples, dataset="npz")
    return folder, result


def test_the_card_has_threat_model_intervals_and_a_command_for_the_import(with_evidence, tmp_path, monkeypatch):
    folder, result = with_evidence
    exported(folder, tmp_path / "out", "--formats", "safetensors", "--examples", 0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: lightning-paf\n")
    assert f"| PGD | l2 | 0.5 | 10 of npz | {result.clean} | {result.robust} |" in card
    command, test, verify = re.search(r"```bash\n(.*)\n```", card, re.DOTALL)[1].splitlines()
    assert test.endswith("--autoattack.attack.norm l2 --autoattack.attack.eps 0.5")
    monkeypatch.chdir(tmp_path)
    assert import_weights.main(shlex.split(command)[2:]) == 0
    again = load_run(checkpoint(tmp_path / "RUN"), options=["--trust-config"]).model
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(again(x), load_run(checkpoint(folder), options=["--trust-config"]).model(x))
    assert verify == "lightning-paf verify EVIDENCE --ckpt RUN/checkpoints/imported.ckpt"


def test_a_card_without_evidence_says_so(run, tmp_path):
    exported(run, tmp_path / "out", "--formats", "state_dict", "--examples", 0)
    assert "The run has no evidence for these weights" in (tmp_path / "out" / "README.md").read_text()


def test_push_uploads_the_written_files_only(run, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **options: calls.append((name, options)))
    monkeypatch.setattr(HfApi, "upload_folder", lambda self, **options: calls.append(options))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "private.txt").write_text("mine")
    words = ("--formats", "safetensors", "--examples", 0, "--push", "hf://owner/name")
    exported(run, tmp_path / "out", *words)
    files = ["model.safetensors", "export.json", "README.md"]
    uploaded = {"repo_id": "owner/name", "folder_path": tmp_path / "out", "allow_patterns": files}
    assert calls == [("owner/name", {"exist_ok": True}), uploaded]
    assert "Uploaded to hf://owner/name." in capsys.readouterr().out
    assert "import-weights hf://owner/name --net" in (tmp_path / "out" / "README.md").read_text()
    exported(run, tmp_path / "dry", *words, "--dry_run")
    text = capsys.readouterr().out
    assert "Not uploaded to hf://owner/name (--dry_run): model.safetensors, export.json, README.md." in text
    assert "## Robustness" in text
    assert len(calls) == 2


def test_a_refused_upload_keeps_the_files(run, tmp_path, monkeypatch):
    def refuse(self, name, **options):
        raise OSError("401 Client Error.\nInvalid token")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    words = ("--formats", "safetensors", "--examples", 0, "--push")
    with pytest.raises(ValueError, match=r"hf://o/n cannot be written: 401 Client Error. Invalid token. Log in by"):
        exported(run, tmp_path / "out", *words, "hf://o/n")
    assert (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(ValueError, match="--push must be hf://OWNER/NAME, got owner/name"):
        exported(run, tmp_path / "other", *words, "owner/name")
    assert not (tmp_path / "other").exists()
