"""Training and evaluation of denoisers through the command line."""

import contextlib
import csv
import io
import json
import re
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from helpers.cli_runs import built, status
from helpers.every_task import denoising
from PIL import Image

from lightning_paf.evaluation.denoising import NOISES, observations, scores
from lightning_paf.evaluation.statistics import mean_interval
from lightning_paf.experiments.methods import hat_denoising
from lightning_paf.functional.image_quality import psnr
from lightning_paf.loading import load_run
from lightning_paf.nets.dncnn import DnCNN
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.objectives.denoising import HybridAT, VanillaAT
from lightning_paf.tasks import Denoising

LAST = "checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return denoising(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert status("fit", "-c", tiny, "--run", folder) == 0
    (folder.parent / "printed").write_text(printed.getvalue())
    return folder


def test_a_run_logs_psnr(run):
    with (run / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["val/psnr"]]
    assert len(rows) == 2
    lines = [line for line in (run.parent / "printed").read_text().splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert all(re.search(r"  psnr \d\d\.\d\d dB  psnr\(obsatk\) \d\d\.\d\d dB  ", line) for line in lines)
    assert all(10 < float(row[name]) < 40 for row in rows for name in ("val/psnr", "val/psnr_adv"))


def test_a_run_is_tested(run, caplog):
    assert status("test", "--ckpt_path", run / LAST) == 0
    (line,) = [line for line in caplog.messages if line.startswith("gaussian_25: PSNR ")]
    assert len(line) <= 80
    content = json.loads((run / "test" / "denoising.json").read_text())
    assert set(content["results"]) == {f"{noise}_{sigma}" for noise in NOISES for sigma in (15, 25)}
    assert content["samples"] == ["0.png", "1.png", "2.png"]
    assert content["weights"]["global_step"] == 8
    found = content["results"]["gaussian_25"]["psnr"]
    assert found["low"] < found["value"] < found["high"]
    assert found["value"] == pytest.approx(np.mean(found["values"]))
    with Image.open(run / "test" / "denoising.png") as image:
        assert image.size[0] > 1000


def test_photographs_with_real_noise_are_tested(run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for scene, suffix in product("ab", ("real", "mean")):
        pixels = (100 + (suffix == "real") * rng.integers(-20, 20, (24, 26))).astype(np.uint8)
        (tmp_path / scene).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / scene / f"{scene}_{suffix}.png")
    words = ("test", "--ckpt_path", run / LAST, "--data.test_dir", tmp_path, "--run", tmp_path / "run")
    assert status(*words, "--data.pairs", "[real, mean]") == 0
    content = json.loads((tmp_path / "run" / "test" / "denoising.json").read_text())
    assert content["samples"] == ["a_mean.png", "b_mean.png"]
    assert set(content["results"]) == {"real"}
    expected = -10 * np.log10(20**2 / 3 / 255**2)  # uniform noise
    assert content["results"]["real"]["noisy_psnr"]["value"] == pytest.approx(expected, abs=0.5)
    assert (tmp_path / "run" / "test" / "denoising.png").is_file()
    for pairs, message in (
        ("[GT, mean]", "fit no noisy photograph. Pass --data.pairs"),
        ("[real, GT]", "a_GT.png, got none. Copy it, or remove the noisy one."),
        ("real", "Pass a list in brackets"),
    ):
        assert status(*words, "--data.pairs", pairs) in (1, 2)
        assert message in " ".join(capsys.readouterr().err.split())
    Image.fromarray(np.zeros((24, 24), np.uint8)).save(tmp_path / "a" / "a_mean.png")
    assert status(*words, "--data.pairs", "[real, mean]") == 1
    assert "must have the size of" in " ".join(capsys.readouterr().err.split())


def test_two_runs_are_drawn_side_by_side(run, tmp_path, capsys):
    other = shutil.copytree(run, tmp_path / "other")
    words = ("analyze", "denoised-images", "--ckpt", run / LAST, other / LAST, "--out", tmp_path)
    assert status(*words, "--photograph", "1") == 0
    printed = capsys.readouterr().out
    assert re.search(r"other \(HybridAT\) +\d\d\.\d\d to \d\d\.\d\d", printed)
    assert max(map(len, printed.splitlines()[:5])) <= 80
    first, second = json.loads((tmp_path / "denoised-images.json").read_text())
    assert first.pop("run") != second.pop("run")
    assert first == second
    assert set(first) == {"gaussian_25", "obsatk_25"}
    with Image.open(tmp_path / "denoised-images.png") as image:
        assert image.size[0] > 1.9 * image.size[1]
    assert status(*words, "--photograph", "3") == 1
    assert "--photograph must be below the number of test photographs" in capsys.readouterr().err


def test_the_experiment_measures_what_the_test_does(run):
    loaded = load_run(run / LAST, kind="denoiser")
    assert status("test", "--ckpt_path", run / LAST) == 0
    tested = json.loads((run / "test" / "denoising.json").read_text())["results"]
    found = hat_denoising.scores(loaded, examples=2)
    assert set(found) == set(hat_denoising.METRICS)
    for name, result in tested.items():
        assert found[name] == pytest.approx(result["psnr"]["values"][:2], abs=1e-3)
    assert found["noisy_25"] == pytest.approx(tested["obsatk_25"]["noisy_psnr"]["values"][:2], abs=1e-3)
    assert found["strong_25"][0] <= found["obsatk_25"][0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--ckpt_path", "{last}"], "predict must have a classifier, got Denoising"),
        (["curve", "--ckpt", "{last}"], "a model of the kind classifier, got Denoising"),
        (["fit", "-c", "{tiny}", "--model.noise", "[-1, 25]"], "noise must be an increasing range in [0, 255]"),
        (["fit", "-c", "{tiny}", "--model.sigmas", "[-15]"], "sigmas must be grey levels"),
        (["fit", "-c", "{tiny}", "--model.sigmas", "[4]"], "sigmas must be grey levels from that of ObsAtk (5)"),
        (["fit", "-c", "{tiny}", "--model.level", "0"], "eps must be positive"),
        (["fit", "-c", "{tiny}", "--model.attack_steps", "0"], "steps must be at least 1, got 0"),
        (["fit", "-c", "{tiny}", "--data.train_dir", "absent"], "--data.train_dir must be a folder of photographs"),
        (["fit", "-c", "{tiny}", "--data.patch", "40"], "must have at least 40 x 40 pixels"),
        (["fit", "-c", "{tiny}", "--checkpoint.monitor", "val/acc"], "one of val/psnr, val/psnr_adv"),
        (
            ["fit", "-c", "{tiny}", "--model.net", "SmallConvNet"],
            "model.net must be a network without classes, got SmallConvNet. Pass one of the task's with --model.net.",
        ),
        (["fit", "-c", "{tiny}", "--model.net", "Foo"], "net=Foo names no known class. Known: DnCNN."),
        (["fit", "-c", "{tiny}", "--model.net", "DnCN"], "Did you mean DnCNN? Known: DnCNN."),
        (
            ["fit", "-c", "{tiny}", "--model.objective", "TRADES"],
            "objective=TRADES names no known class. Known: HybridAT, NormalTraining, VanillaAT.",
        ),
        (["fit", "-c", "{tiny}", "--model.noise", "25"], "Got value: 25 Pass a list in brackets, such as '[15, 25]'."),
    ],
)
def test_bad_input_is_refused_in_one_line(words, message, tiny, run, capsys):
    assert status(*(word.format(last=run / LAST, tiny=tiny) for word in words)) in (1, 2)
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error
    assert error.count("Pass ") <= 1, "one remedy"
    assert not list(run.glob("predict*"))


def test_the_network_follows_the_data(tiny):
    cli = built("-c", tiny, "--data.channels", "3", "--model.objective", "VanillaAT", "--model.activation", "PSSiLU")
    module = cli.model
    assert module.model.net.layers[0].in_channels == 3
    assert isinstance(module.objective, VanillaAT)
    assert any(isinstance(layer, PSSiLU) for layer in module.modules())
    assert module.attack.radius == pytest.approx(5 / 255 * (3 * 12 * 12) ** 0.5)
    (group,) = {type(module.optimizer([torch.nn.Parameter(torch.zeros(1))]))}
    assert group is torch.optim.Adam


@pytest.mark.parametrize("recipe", ["photographs", "dncnn_b"])
def test_the_recipes_build(recipe):
    module = built("-c", f"denoising/{recipe}").model
    assert type(module) is Denoising
    assert isinstance(module.objective, HybridAT)


def test_noises_have_the_same_energy():
    torch.manual_seed(0)
    clean, net = 0.4 + 0.2 * torch.rand(1, 1, 64, 64), DnCNN(1, depth=3, width=4).eval()
    noisy = observations(net, clean, 25, 5 / 255, steps=5, seed=0)
    assert tuple(noisy) == NOISES
    sizes = {name: 255 * (x - clean).square().mean().sqrt().item() for name, x in noisy.items()}
    assert sizes["gaussian"] == pytest.approx(25, rel=0.03)
    assert sizes["uniform"] == pytest.approx(25, rel=0.03)
    assert 20 < sizes["obsatk"] <= 25.5
    again = observations(net, clean, 25, 5 / 255, steps=5, seed=0)
    assert all(torch.equal(noisy[name], again[name]) for name in NOISES)
    assert psnr(net(noisy["obsatk"]), clean) < psnr(net(observations(net, clean, 20, 5 / 255, 5, 0)["gaussian"]), clean)


def test_equal_images_have_finite_scores():
    image = torch.zeros(1, 1, 12, 12)
    assert scores(image, image, image)["psnr"] == 100


def test_the_interval_of_a_mean():
    """Student's quantile with 3 degrees of freedom is 3.182."""
    found = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert found.value == 2.5
    assert found.high - 2.5 == pytest.approx(3.1824 * (5 / 3 / 4) ** 0.5, rel=1e-4)
    with pytest.raises(ValueError, match="at least one value"):
        mean_interval([])
