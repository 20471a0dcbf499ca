"""`synthesize` from runs of diffusion models and from published pipelines."""

import json

import numpy as np
import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers.cli_runs import status, trained_run

from lightning_paf.data.sources import read_dataset
from lightning_paf.specs import dataset_spec

SHORT = """
--data digits --trainer.limit_train_batches 2 --trainer.limit_val_batches 1 --trainer.max_epochs 1
"""
GENERATOR = """
--model Diffusion --model.net UNet --model.net.in_channels 1 --model.net.width 4 --model.net.multipliers [1]
--model.net.layers_per_block 1 --model.net.attention_levels [] --model.train_steps 50 --model.samples_per_class 0
"""
CLASSIFIER = """
--model.net SmallConvNet --model.net.in_channels 1 --model.net.width 2 --model.objective Natural --model.attack FGSM
"""


def train_generator(run, *options):
    assert status("fit", *GENERATOR.split(), *SHORT.split(), "--run", run, *options) == 0
    return run


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    return train_generator(tmp_path_factory.mktemp("conditional") / "run")


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory):
    return train_generator(tmp_path_factory.mktemp("unconditional") / "run", "--model.conditional", "false")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    run = tmp_path_factory.mktemp("classifier") / "run"
    assert status("fit", *CLASSIFIER.split(), *SHORT.split(), "--run", run) == 0
    return run


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A classifier of 8x8 colour images in three classes."""
    return trained_run(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, norm_num_groups=2, layers_per_block=1, **blocks)
    DDPMPipeline(unet, DDPMScheduler(100)).save_pretrained(folder)
    return folder


def run(source, out, *options):
    small = ["--count", "25", "--batch_size", "10", "--sampling_steps", "2", "--device", "cpu"]
    return status("synthesize", "--from", source, "--out", out, *small, *options)


def error_of(capsys, *words):
    assert run(*words) == 1
    *progress, error = capsys.readouterr().err.splitlines()
    assert error.startswith("lightning-paf: error: ")
    assert not any("Drawing" in line for line in progress)
    return error


def test_a_run_makes_a_pool_with_a_contact_sheet(conditional, tmp_path, capsys):
    from matplotlib.image import imread

    out = tmp_path / "new" / "pool.npz"
    assert run(conditional, out, "--guidance", "0.5", "--dataset", "digits") == 0
    captured = capsys.readouterr()
    assert "25 images (8, 8, 1) of 10 classes, from" in captured.out
    assert "DDIM with 2 steps; contact sheet:" in captured.out
    assert "Drawing images: 0 of 25" in captured.err
    with np.load(out) as pool:
        assert pool["image"].shape == (25, 8, 8, 1)
        assert np.bincount(pool["label"]).tolist() == [3] * 5 + [2] * 5
    assert {path.name for path in out.parent.iterdir()} == {"pool.npz", "pool.png"}
    sheet = imread(out.with_suffix(".png"))
    assert sheet.shape[1] / sheet.shape[0] == (15 * 8 + 4) / (10 * 10)


def test_seed_and_sampler_change_the_images(conditional, tmp_path):
    def images(name, *options):
        assert run(conditional / "checkpoints" / "last.ckpt", tmp_path / name, *options) == 0
        return np.load(tmp_path / name)["image"]

    first = images("a.npz")
    np.testing.assert_array_equal(first, images("b.npz"))
    for number, options in enumerate((["--seed", "1"], ["--sampler", "heun"], ["--sampler", "ddpm"])):
        assert (first != images(f"{number}.npz", *options)).any()


def test_proportions_and_filter(conditional, classifier, tmp_path, capsys):
    out, fractions = tmp_path / "pool.npz", ["0.19", "1/4", *["0.07"] * 8]
    assert (
        run(conditional, out, "--proportions", *fractions, "--filter", classifier, "--keep", "0.5", "--count", "100")
        == 0
    )
    assert np.bincount(np.load(out)["label"]).tolist() == [19, 25, *[7] * 8]
    printed = capsys.readouterr().out
    assert "the most certain of 200 for" in printed
    assert "Images of each class: 0: 19, 1: 25, 2: 7" in printed


def test_an_unconditional_run_and_a_pipeline_with_pseudo_labels(unconditional, pipeline, classifier, tmp_path, capsys):
    for number, source in enumerate((unconditional, pipeline)):
        assert run(source, tmp_path / f"{number}.npz", "--pseudo_label", classifier, "--filter", classifier) == 0
        labels = np.load(tmp_path / f"{number}.npz")["label"]
        assert len(labels) == 25
        printed = capsys.readouterr().out
        assert f"0: {(labels == 0).sum()}, 1: {(labels == 1).sum()}" in printed
        missing = ", ".join(str(label) for label in range(10) if label not in labels)
        assert f"No image of the classes {missing}." in printed or not missing


def test_an_interrupted_command_resumes(conditional, tmp_path, capsys, monkeypatch):
    out = tmp_path / "pool.npz"
    with monkeypatch.context() as patch:
        patch.setattr("lightning_paf.synthesis.pool._assemble", interrupt)
        assert run(conditional, out) == 130
    assert "Drawing images: 0 of 25" in capsys.readouterr().err
    parts = tmp_path / "pool.npz.parts"
    assert {path.name for path in parts.glob("block-*")} == {f"block-0000{number}.npz" for number in range(3)}
    assert "DDIM" in json.loads((parts / "identity.json").read_text())["sampler"]
    assert "sampler.steps is 5 here, 2 in the folder" in error_of(capsys, conditional, out, "--sampling_steps", "5")
    assert run(conditional, out) == 0
    assert not parts.exists()


def interrupt(*_):
    raise KeyboardInterrupt


def test_training_reads_the_pool(conditional, tmp_path):
    assert run(conditional, tmp_path / "pool.npz") == 0
    train_generator(tmp_path / "run", "--data.synthetic", tmp_path / "pool.npz", "--data.real_fraction", "0.5")


SOURCES = ("conditional", "unconditional", "classifier", "colours", "pipeline")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "unconditional --pseudo_label classifier --guidance 1",
            "guidance must be 0 for an unconditional model, got 1",
        ),
        ("pipeline --pseudo_label classifier --guidance 1", "guidance must be 0 for an unconditional model, got 1"),
        ("conditional --guidance -1", "guidance must be at least 0, got -1"),
        ("conditional --count 9", "--count must be at least 10, one for each class, got 9. Pass --count 10."),
        ("conditional --filter", "argument --filter: expected one argument"),
        ("conditional --keep 0.2", "--keep must come with --filter, got --keep 1/5."),
        ("conditional --filter classifier --keep 0", "argument --keep: must be above 0 and at most 1, got 0"),
        ("conditional --filter FOLDER/missing", "FOLDER/missing"),
        ("conditional --filter conditional", "must hold a model of the kind classifier, got Diffusion"),
        ("conditional --filter colours", "must have 10 classes, as the labels, got 3."),
        ("unconditional --pseudo_label colours", "must classify images of 1 x 8 x 8, those of --from"),
        ("unconditional", "must have a classifier for its labels, got"),
        ("pipeline", "must have a classifier for its labels, got"),
        ("conditional --pseudo_label classifier", "--pseudo_label must be left out for a class-conditional model"),
        (
            "conditional --proportions 0.5 0.5",
            "--proportions must be 10 numbers from 0 of sum 1, one for each class, got 2",
        ),
        ("unconditional --pseudo_label classifier --proportions 1", "must be of a class-conditional model, got 1"),
        ("conditional --dataset cifar10 --root FOLDER", "must hold a complete copy of the dataset"),
        ("conditional --sampling_steps 49", "steps of DDIM must divide the 50 training steps"),
        ("conditional --sampler ddpm --sampling_steps 51", "steps must be at most 50"),
        ("conditional --components 2", "--components must be left out for --from"),
        ("mixture", "--sampling_steps must be left out for --from mixture. Leave it out, or pass a run or pipeline"),
        ("classifier", "must hold a model of the kind image generator, got RobustModule"),
        ("FOLDER/missing", "no file or folder is called FOLDER/missing. FOLDER/missing must be a diffusion pipeline"),
        ("FOLDER", "FOLDER must hold a checkpoint"),
    ],
)
def test_bad_input_is_refused_before_sampling(words, message, tmp_path, request, capsys):
    empty, folder = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    source, *options = [
        request.getfixturevalue(word) if word in SOURCES else word.replace("FOLDER", str(empty))
        for word in words.split()
    ]
    assert message.replace("FOLDER", str(empty)) in error_of(capsys, source, folder / "pool.npz", *options)
    assert not folder.exists() or not list(folder.iterdir())


def test_real_images_of_another_size_are_refused(conditional, tmp_path, capsys, monkeypatch):
    digits = read_dataset(dataset_spec("digits"), None, download=False)
    small = digits._replace(train=type(digits.train)(digits.train.images[:, :4], digits.train.labels))
    monkeypatch.setattr("lightning_paf.data.sources.read_dataset", lambda *_, **__: small)
    message = error_of(capsys, conditional, tmp_path / "pool.npz", "--dataset", "digits")
    assert "--dataset must have images (H, W, C) = (8, 8, 1) and 10 classes" in message
    assert "got (4, 8, 1) and 10 from digits" in message


def test_an_existing_pool_is_kept_without_force(conditional, tmp_path, capsys):
    out = tmp_path / "pool.npz"
    out.write_text("mine")
    assert "pool.npz exists. Pass another --out, or --force" in error_of(capsys, conditional, out)
    assert out.read_text() == "mine"
    assert run(conditional, out, "--force") == 0
    assert len(np.load(out)["label"]) == 25
