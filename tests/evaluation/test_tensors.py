"""`lightning_paf.evaluate` writes the files of `test`, for any module."""

import re

import numpy as np
import pytest
import torch
from helpers.evaluation_worker import attack, model, samples
from helpers.state_fakes import same
from torch import nn

import lightning_paf
from lightning_paf.evaluation import Evaluation, EvaluationResult, Samples
from lightning_paf.evaluation.evidence import read

STEM = "worstof_linf_0.1"


def data():
    return samples().fetch(samples().ids)


def test_the_files_are_those_of_test_and_the_evaluation_resumes(tmp_path):
    lines, net = [], model().train()
    settings = {"attack": attack(), "out": tmp_path / "mine", "seed": 3, "block_size": 4, "progress": lines.append}
    first = lightning_paf.evaluate(net, *data(), **settings)
    assert net.training
    assert same(first, Evaluation(model(), attack(), samples(), 3, 4).run())
    files = {path.name for path in (tmp_path / "mine").iterdir()}
    assert files == {f"{STEM}.json", f"{STEM}.evidence.safetensors", f"{STEM}.html", "state"}
    assert "Written: " in lines[-1]
    saved = EvaluationResult.load(tmp_path / "mine" / f"{STEM}.json")
    assert (saved.outcomes.tolist(), saved.identity) == (first.outcomes.tolist(), first.identity)
    assert len(read(tmp_path / "mine" / f"{STEM}.evidence.safetensors")) == 23
    next((tmp_path / "mine" / "state").rglob("*.record")).unlink()
    lightning_paf.evaluate(net, *data(), **settings)
    assert sum("misclassified; robust so far" in line for line in lines) == 18 + 1


def test_another_evaluation_does_not_replace_the_files(tmp_path):
    for seed in (0, 1):
        lightning_paf.evaluate(model(), *data(), attack(), tmp_path, seed=seed, name="mine")
    names = sorted(path.name for path in tmp_path.glob("*.json"))
    assert re.fullmatch(r"mine_linf_0\.1-[0-9a-f]{8}\.json mine_linf_0\.1\.json", " ".join(names))


def test_a_precision_by_the_device_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    found = lightning_paf.evaluate(model(), *data(), attack(), tmp_path, precision="auto")
    assert found.precision == "bf16"
    assert found.identity == lightning_paf.evaluate(model(), *data(), attack(), tmp_path, precision="bf16").identity
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    with pytest.raises(ValueError, match="Pass precision=bf16 to resume, or fp32 to start again"):
        lightning_paf.evaluate(model(), *data(), attack(), tmp_path, precision="auto")
    assert lightning_paf.evaluate(model(), *data(), attack(), precision="auto").precision == "fp32"


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = data()
    result = lightning_paf.evaluate(model(), x.double(), y, lightning_paf.PGD(0.1, step_size=0.05), block_size=7)
    assert result.evaluated == 23
    assert result.name == "pgd"
    assert not list(tmp_path.iterdir())


def test_modules_without_parameters_work():
    class Bright(nn.Module):
        def forward(self, x):
            level = x.flatten(1).mean(1)
            return torch.stack([0.5 - level, level - 0.5], 1)

    x = torch.tensor([0.1, 0.48, 0.9]).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    result = lightning_paf.evaluate(Bright(), x, torch.tensor([0, 0, 0]), lightning_paf.PGD(0.05, step_size=0.02))
    assert result.outcomes.tolist() == [1, 2, 3]


X, Y = data()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (255 * X).byte()}, "x must be floating-point images .* got torch.uint8"),
        ({"x": X[0]}, r"shape \(n, C, H, W\)"),
        ({"x": X[:0], "y": Y[:0]}, "n >= 1"),
        ({"x": 2 * X}, r"within \[0, 1\], got pixels from"),
        ({"x": torch.full_like(X, torch.nan)}, "must be finite"),
        ({"x": X.numpy()}, "x and y must be tensors, got ndarray and Tensor"),
        ({"y": Y.tolist()}, "x and y must be tensors, got Tensor and list"),
        ({"y": Y[:5]}, "y must be class labels"),
        ({"y": Y + 9}, "labels from 9"),
        ({"y": Y.float()}, r"int64, from 0, got torch.float32 of shape \(8,\)"),
        ({"model": nn.Identity()}, r"of shape \(8, 1, 4, 4\)"),
        ({"block_size": 0}, "block_size must be at least 1"),
    ],
)
def test_invalid_input_is_refused_before_the_evaluation(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        lightning_paf.evaluate(**{"model": model(), "x": X, "y": Y, "attack": attack(), "out": tmp_path, **change})
    assert not list(tmp_path.iterdir())


def test_samples_of_tensors_keep_their_order():
    x, y = Samples.of(X, Y).fetch(np.array([3, 1]))
    assert torch.equal(x, X[[3, 1]])
    assert torch.equal(y, Y[[3, 1]])
