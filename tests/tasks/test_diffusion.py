"""Training of diffusion models, alone and through the command line."""

import csv

import pytest
import torch
from helpers.cli_runs import built, status
from helpers.every_task import diffusion
from helpers.two_points import POINTS, SHAPE, WEIGHTS, ExactDenoiser, two_points
from torch import nn

from lightning_paf.loading import load_run
from lightning_paf.synthesis.samplers import DDIM, DDPM
from lightning_paf.synthesis.unet import UNet
from lightning_paf.tasks import Diffusion

LAST = "checkpoints/last.ckpt"


def task(net: nn.Module, **options) -> Diffusion:
    return Diffusion(net, "npz", num_classes=2, channels=1, **options)


class Dense(nn.Module):
    """A small network for images of four pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.time, self.label = nn.Embedding(50, 32), nn.Embedding(3, 32)
        self.read = nn.Linear(4, 32)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 4))

    def forward(self, x, t, labels):
        return self.rest(self.read(x.flatten(1)) + self.time(t) + self.label(labels)).view_as(x)


@pytest.mark.parametrize(("conditional", "prediction"), [(True, "epsilon"), (False, "v_prediction")])
def test_a_short_training_recovers_two_points(conditional, prediction):
    module = task(Dense(), conditional=conditional, train_steps=50, prediction=prediction)
    module.model.shape.copy_(torch.tensor(SHAPE))
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    rng = torch.Generator().manual_seed(0)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 400)
        loss = module.training_step(two_points(256, rng), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    labels = torch.multinomial(WEIGHTS, 500, replacement=True, generator=rng) if conditional else None
    images = module.generator(DDPM(50)).sample(500, labels, rng)
    distances = (images.flatten(1)[:, None] - POINTS[None, :, None]).abs().amax(2)
    assert (distances.amin(1) < 0.15).float().mean() > 0.9
    found = distances.argmin(1)
    if conditional:
        assert (found == labels).float().mean() > 0.98
    assert (found == 0).float().mean().item() == pytest.approx(WEIGHTS[0].item(), abs=0.08)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_of_the_exact_denoiser_is_the_least(prediction):
    module = task(nn.Identity(), prediction=prediction)
    x, y = two_points(500, torch.Generator().manual_seed(0))
    times, noise = torch.full((500,), 500), torch.randn(x.shape)
    signal = module.process.alphas_cumprod[500]
    exact = ExactDenoiser(module.process)

    def answer(x_t, t, labels):
        predicted = exact(x_t, t, labels)
        if prediction == "epsilon":
            return predicted
        clean = (x_t - (1 - signal).sqrt() * predicted) / signal.sqrt()
        return signal.sqrt() * predicted - (1 - signal).sqrt() * clean

    module.model.forward = answer
    known = module._losses(x, y, times, noise)
    assert known.shape == (500,)
    torch.testing.assert_close(known, torch.zeros(500), atol=1e-5, rtol=0)
    assert module._losses(x, torch.full_like(y, 2), times, noise).mean() > 0.01


class Recorder(nn.Module):
    """Keeps its arguments."""

    def forward(self, x, t, labels):
        self.t, self.labels = t, labels
        return torch.zeros_like(x, requires_grad=True)


@pytest.mark.parametrize(("options", "expected"), [({}, 0.1), ({"label_dropout": 0.0}, 0), ({"conditional": False}, 1)])
def test_labels_are_hidden_with_their_probability(options, expected):
    net = Recorder()
    x, y = two_points(4000, torch.Generator().manual_seed(0))
    module = task(net, **options)
    module.training_step((x, y), 0)
    hidden = net.labels == 2
    assert hidden.float().mean().item() == pytest.approx(expected, abs=0.02)
    assert torch.equal(net.labels[~hidden], y[~hidden])
    assert (net.t.min() < 20, net.t.max() > 980) == (True, True)
    module.training_step((x, nn.functional.one_hot(y, 2).float()), 0)
    assert set(net.labels.tolist()) <= {0, 1, 2}


def test_guidance_needs_label_dropout():
    task(Recorder()).generator(guidance=1.0)
    with pytest.raises(ValueError, match="without label dropout"):
        task(Recorder(), label_dropout=0.0).generator(guidance=1.0)
    with pytest.raises(ValueError, match="unconditional"):
        task(Recorder(), conditional=False).generator(guidance=1.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_dropout": 1.0}, r"label_dropout must be in \[0, 1\), got 1.0"),
        ({"samples_per_class": -1}, "samples_per_class must be at least 0, got -1"),
        ({"train_steps": 100, "sampler": DDIM(30)}, "steps of DDIM must divide the 100 training steps"),
        ({"train_steps": 10}, "train_steps must be at least 50, got 10"),
    ],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        task(Recorder(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"multipliers": ()}, "multipliers must be at least 1, got 0"),
        ({"attention_levels": (2,), "multipliers": (1, 2)}, r"attention_levels must be from 0 to 1 .* got \[2\]"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_sizes_of_the_network_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        UNet(**options)


def test_images_that_cannot_be_halved_are_refused():
    net = UNet(width=4, multipliers=(1, 1, 1), attention_levels=())
    with pytest.raises(ValueError, match=r"multiples of 4 for a UNet .* got \(6, 6\)"):
        net(torch.zeros(1, 3, 6, 6), torch.zeros(1), torch.zeros(1, dtype=torch.int64))


def test_the_network_of_cifar10_has_the_size_in_the_paper():
    with torch.device("meta"):
        cli = built("-c", "diffusion/cifar10")
    parameters = sum(p.numel() for p in cli.model.parameters()) - 11 * 4 * 128  # without the classes
    assert round(parameters / 1e6, 1) == 35.7


def test_the_recipe_of_digits_builds():
    cli = built("-c", "diffusion/digits")
    assert cli.model.generator(DDIM(50), guidance=1.0).shape == (1, 8, 8)
    assert 5e5 < sum(p.numel() for p in cli.model.parameters()) < 7e5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return diffusion(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    assert status("fit", "-c", tiny, "--run", folder) == 0
    return folder


def test_a_run_logs_losses_and_draws_samples(run):
    with (run / "metrics.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["val/loss"]]
    names = {name for name in rows[0] if name.startswith("val/loss_t")}
    assert names == {f"val/loss_t{time}" for time in (100, 300, 500, 700, 900)}
    assert len(rows) == 2
    assert {path.name for path in (run / "samples").iterdir()} == {"epoch_0000.png", "epoch_0001.png"}
    assert (run / "samples.png").read_bytes() == (run / "samples" / "epoch_0001.png").read_bytes()


def test_a_run_is_loaded_as_a_generator(run):
    loaded = load_run(run / LAST, kind="image generator")
    generator = loaded.module.generator(DDIM(2), guidance=1.0)
    assert (generator.shape, generator.num_classes) == ((3, 8, 8), 3)
    images = generator.sample(4, torch.arange(4) % 3, torch.Generator().manual_seed(0))
    assert images.shape == (4, 3, 8, 8)
    assert not images.requires_grad


def test_a_run_is_tested(run, capsys):
    assert status("test", "--ckpt_path", run / LAST) == 0
    assert "test/loss_t900" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["predict", "--ckpt_path", "{last}"], "predict must have a classifier, got Diffusion"),
        (["curve", "--ckpt", "{last}"], "a model of the kind classifier, got Diffusion"),
        (["sanity-check", "--ckpt", "{last}"], "a model of the kind classifier, got Diffusion"),
        (
            ["fit", "-c", "{tiny}", "--val_attack", "RobustEval", "--val_attack.attack", "PGD", "--run", "{run}2"],
            "The model must be a classifier for the evaluation pgd, got Diffusion",
        ),
        (["fit", "-c", "{tiny}", "--checkpoint.monitor", "val/acc"], "one of val/loss, val/loss_t100"),
        (["fit", "-c", "{tiny}", "--model.sampler.steps", "7"], "steps of DDIM must divide"),
        (["fit", "-c", "{tiny}", "--model.sampler", "Hein"], "Did you mean Heun? Known: DDIM, DDPM, Heun."),
    ],
)
def test_what_needs_a_classifier_is_refused(words, message, tiny, run, capsys):
    names = {"last": run / LAST, "tiny": tiny, "run": run}
    assert status(*(word.format(**names) for word in words)) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())


def test_weights_of_another_training_are_loaded(tiny, run):
    checkpoint = run / LAST
    module = built("-c", tiny, "--model.init", checkpoint).model
    expected = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())
