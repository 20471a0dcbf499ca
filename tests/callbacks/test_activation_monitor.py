"""Logged parameters, warnings and plots of the activations."""

import math
import warnings

import pytest
import torch
from helpers.fakes import TinyNet, images
from helpers.trainers import trainer
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_paf.callbacks import activation_monitor
from lightning_paf.callbacks.activation_monitor import ActivationMonitor
from lightning_paf.callbacks.averaging import WarmupEMA
from lightning_paf.nn.activations import PELU, PReLU, PSiLU, PSoftplus, PSSiLU, ReLU
from lightning_paf.nn.activations.plot import ActivationSite, draw_activations, inputs_of


class Module(LightningModule):
    """Training of alpha alone, by a step of +1 in each epoch of one batch."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.model = TinyNet()
        self.model.activation = activation
        self.rest = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        alphas = [value.sum() for name, value in self.named_parameters() if name.endswith("alpha")]
        return -sum(alphas, self.rest.sum())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def data() -> DataLoader:
    return DataLoader(TensorDataset(*images(8)), batch_size=8)


def logged(folder, module: Module, *callbacks: Callback, **options) -> dict[str, float]:
    """Train, and return the logged metrics."""
    run = trainer(folder, *(callbacks or [ActivationMonitor(picture=False)]), **options)
    run.fit(module, data(), data())
    return {name: value.item() for name, value in run.callback_metrics.items()}


def pictures(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


@pytest.fixture
def drawn(monkeypatch) -> list[list[ActivationSite]]:
    """Record the sites of every figure, which is not drawn."""
    figures: list[list[ActivationSite]] = []
    monkeypatch.setattr(activation_monitor, "draw_activations", lambda sites, title: figures.append(list(sites)))
    monkeypatch.setattr(activation_monitor, "figure_png", lambda figure: b"")
    return figures


def test_parameters_and_shape_are_logged(tmp_path):
    module = Module(PSSiLU(alpha=2.0, beta=0.2))
    metrics = logged(tmp_path, module)
    shape = module.model.activation.shape()
    assert metrics["activation/alpha"] == pytest.approx(3.0)
    assert metrics["activation/beta"] == pytest.approx(0.2)
    assert metrics["activation/max_curvature"] == pytest.approx(3 / (2 * 0.8))
    assert metrics["activation/max_slope"] == pytest.approx(shape.max_slope)
    assert metrics["activation/mean_on_negative"] == pytest.approx(shape.mean_on_negative)


def test_the_logged_shape_is_that_of_the_averaged_weights(tmp_path):
    metrics = logged(tmp_path, Module(PSiLU()), WarmupEMA(), ActivationMonitor(picture=False), max_epochs=2)
    decay = 2 / 11
    assert metrics["activation/alpha"] == pytest.approx(decay * 2 + (1 - decay) * 3)


def test_an_activation_without_parameters_has_no_initial_curve(tmp_path, drawn):
    metrics = logged(tmp_path, Module(ReLU()), ActivationMonitor())
    assert metrics == {"activation/max_slope": 1.0, "activation/mean_on_negative": 0.0}, "infinite ones are omitted"
    ((site,),) = drawn
    assert site.initial is None
    assert site.title == "max curvature ∞"
    figure = draw_activations([site], "ReLU")
    assert [line.get_label() for line in figure.axes[0].lines] == ["now"]


def test_several_activations_are_named_and_channels_averaged(tmp_path):
    module = Module(PSiLU(2.0).per_channel(4))
    module.model = nn.Sequential(module.model, PELU())
    with torch.no_grad():
        module.model[0].activation.alpha += torch.arange(4)
    metrics = logged(tmp_path, module, ActivationMonitor())
    assert metrics["activation/0.activation/alpha"] == pytest.approx(2 + 1.5 + 1)
    assert metrics["activation/1/alpha"] == pytest.approx(2.0)
    assert "activation.png" in pictures(tmp_path)


def test_every_nth_epoch_and_the_last_have_a_picture(tmp_path):
    trainer(tmp_path, ActivationMonitor(every_n_epochs=2), max_epochs=3).fit(Module(PSiLU()), data(), data())
    epochs = [f"activations/epoch_{epoch:04d}.png" for epoch in (1, 2)]
    assert pictures(tmp_path) == ["activation.png", *epochs]
    latest = (tmp_path / "activation.png").read_bytes()
    assert latest == (tmp_path / epochs[-1]).read_bytes() != (tmp_path / epochs[0]).read_bytes()


def test_nothing_is_drawn_in_the_sanity_check_or_outside_fit(tmp_path, drawn):
    at_start = []
    watch = Callback()
    watch.on_train_start = lambda trainer, pl_module: at_start.append(len(drawn))
    trainer(tmp_path, ActivationMonitor(), watch, num_sanity_val_steps=1).fit(Module(PSiLU()), data(), data())
    assert at_start == [0]
    assert len(drawn) == 1
    trainer(tmp_path, ActivationMonitor()).validate(Module(PSiLU()), data(), verbose=False)
    assert len(drawn) == 1


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.PReLU()])
def test_activations_of_torch_are_ignored(tmp_path, activation):
    assert logged(tmp_path, Module(activation), ActivationMonitor()) == {}
    assert pictures(tmp_path) == []


def test_the_initial_curve_is_restored(tmp_path, drawn):
    first = trainer(tmp_path / "a", ActivationMonitor(), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    first.fit(Module(PSiLU(alpha=1.5)), data(), data())
    resumed = trainer(tmp_path / "b", ActivationMonitor(), max_epochs=2)
    resumed.fit(Module(PSiLU(alpha=9.0)), data(), data(), ckpt_path=first.checkpoint_callback.best_model_path)
    assert [site.initial.alpha.item() for (site,) in drawn] == [1.5, 1.5]
    assert drawn[1][0].learned.alpha.item() == 3.5


def test_a_monitor_does_not_change_the_training(tmp_path):
    class Draws(Module):
        def on_train_epoch_start(self) -> None:
            self.drawn = torch.rand(1)

    states = []
    for callbacks in ([], [ActivationMonitor()]):
        torch.manual_seed(0)
        module = Draws(PSiLU())
        trainer(tmp_path, *callbacks, max_epochs=2).fit(module, data(), data())
        states.append({"drawn": module.drawn, **module.state_dict()})
        assert not module.model.activation._forward_pre_hooks
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_the_picture_is_logged_to_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, ActivationMonitor(), logger=logger, log_every_n_steps=1).fit(Module(PSiLU()), data(), data())
    events = EventAccumulator(logger.log_dir).Reload()
    assert [event.step for event in events.Images("activation")] == [1]
    assert [event.value for event in events.Scalars("activation/alpha")] == [2.0]
    assert (tmp_path / "lightning_logs" / "version_0" / "activation.png").exists()


@pytest.mark.parametrize(
    ("activation", "change", "messages"),
    [
        (PSSiLU, {"beta": -0.85}, ["|beta| of activation activation is 0.85"]),
        (PSoftplus, {"alpha": 0.01}, ["|alpha| of activation activation has collapsed to 0.01"]),
        (PReLU, {"alpha": 0.01}, []),  # starts at 0
    ],
)
def test_a_large_beta_and_a_collapsed_alpha_are_warned_of_once(activation, change, messages, tmp_path):
    def set_parameter(trainer, pl_module) -> None:
        with torch.no_grad():
            for name, value in change.items():
                getattr(pl_module.model.activation, name).fill_(value)

    watch = Callback()
    watch.on_validation_epoch_start = set_parameter
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callbacks = (watch, ActivationMonitor(picture=False))
        logged(tmp_path, Module(activation()), *callbacks, max_epochs=3, num_sanity_val_steps=0)
    found = [str(warning.message) for warning in caught if "of activation" in str(warning.message)]
    assert len(found) == len(messages)
    assert all(message in text for message, text in zip(messages, found, strict=True))


@pytest.mark.parametrize("option", ["every_n_epochs", "max_examples"])
def test_numbers_below_one_are_refused(option):
    with pytest.raises(ValueError, match=f"--monitor.{option} 1"):
        ActivationMonitor(**{option: 0})


def test_the_histogram_weights_calls_by_their_size():
    activation = ReLU()

    def forward() -> None:
        activation(torch.zeros(30, 100))
        activation(torch.ones(10, 100))
        activation(torch.full((3,), math.nan))

    sample = inputs_of({"all": activation, "never": PSiLU()}, forward)
    assert list(sample) == ["all"]
    assert sample["all"].mean().item() == pytest.approx(0.25, abs=1e-3)
    assert not activation._forward_pre_hooks


def test_hooks_are_removed_after_an_error():
    activation = ReLU()

    def forward() -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        inputs_of({"only": activation}, forward)
    assert not activation._forward_pre_hooks


def test_the_figure_has_the_curves_over_the_histogram():
    channels = PSiLU().per_channel(3)
    inputs = torch.randn(1000) * 4
    sites = [ActivationSite(f"site {i}", channels, PSiLU().per_channel(3), inputs) for i in range(3)]
    figure = draw_activations(sites, "headline")
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["site 0", "site 1", "site 2"]
    x, y = panels[0].lines[0].get_data()
    assert torch.allclose(torch.from_numpy(y), torch.nn.functional.silu(torch.from_numpy(x)), atol=1e-6)
    low, high = panels[0].get_xlim()
    assert ((inputs > low) & (inputs < high)).float().mean().item() == pytest.approx(0.99, abs=0.005)
    assert [text.get_text() for text in figure.legends[0].get_texts()][:2] == ["now", "at the start"]
    assert all(axes.get_xlabel() for axes in panels[1:])
