import math
import warnings
from collections.abc import Callable

import pytest
import torch
from helpers.fakes import TinyNet, images
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_paf.callbacks import activation_monitor
from lightning_paf.callbacks.activation_monitor import ActivationMonitor
from lightning_paf.callbacks.averaging import WarmupEMA
from lightning_paf.nn.activations import PELU, Activation, PReLU, PSiLU, PSoftplus, PSSiLU, ReLU
from lightning_paf.nn.activations.plot import ActivationSite, draw_activations, inputs_of


class Two(nn.Module):
    """Two activations, one of them per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.tiny = TinyNet()
        self.tiny.activation = PSiLU(2.0).per_channel(4)
        self.late = PELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.late(self.tiny(x))


class Module(LightningModule):
    """Trains alpha alone, by a step of +1 each epoch of one batch."""

    def __init__(self, activation: nn.Module, net: nn.Module | None = None) -> None:
        super().__init__()
        self.model = net or TinyNet()
        if net is None:
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


def data(n: int = 8) -> DataLoader:
    return DataLoader(TensorDataset(*images(n)), batch_size=8)


def trainer(tmp_path, *callbacks: Callback, **kwargs) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    kwargs = {"enable_checkpointing": False, "max_epochs": 1, **quiet, **kwargs}
    return Trainer(
        accelerator="cpu", default_root_dir=tmp_path, callbacks=list(callbacks), inference_mode=False, **kwargs
    )


def logged(tmp_path, module: Module, *callbacks: Callback, **kwargs) -> dict[str, float]:
    fit = trainer(tmp_path, *(callbacks or [ActivationMonitor(picture=False)]), **kwargs)
    fit.fit(module, data(), data())
    return {name: value.item() for name, value in fit.callback_metrics.items()}


def pictures(tmp_path) -> list[str]:
    return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))


@pytest.fixture
def drawn(monkeypatch) -> list[list[ActivationSite]]:
    """What the monitor asks to be drawn."""
    asked: list[list[ActivationSite]] = []

    def spy(sites, headline):
        asked.append(list(sites))
        return draw_activations(sites, headline)

    monkeypatch.setattr(activation_monitor, "draw_activations", spy)
    return asked


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


def test_infinite_quantities_are_left_out(tmp_path):
    metrics = logged(tmp_path, Module(ReLU()))
    assert metrics == {"activation/max_slope": 1.0, "activation/mean_on_negative": 0.0}


def test_an_activation_without_parameters_is_drawn_without_a_start(tmp_path, drawn):
    logged(tmp_path, Module(ReLU()), ActivationMonitor())
    ((site,),) = drawn
    assert site.initial is None
    assert site.title == "max curvature ∞"
    figure = draw_activations([site], "ReLU")
    assert [line.get_label() for line in figure.axes[0].lines] == ["now"]


def test_several_activations_are_named_and_channels_averaged(tmp_path):
    net = Two()
    with torch.no_grad():
        net.tiny.activation.alpha += torch.arange(4)
    metrics = logged(tmp_path, Module(nn.Identity(), net), ActivationMonitor())
    assert metrics["activation/tiny.activation/alpha"] == pytest.approx(2 + 1.5 + 1)
    assert metrics["activation/late/alpha"] == pytest.approx(2.0)
    assert "activation.png" in pictures(tmp_path)


def test_pictures_of_every_nth_and_of_the_last_epoch(tmp_path):
    trainer(tmp_path, ActivationMonitor(every_n_epochs=2), max_epochs=5).fit(Module(PSiLU()), data(), data())
    epochs = [f"activations/epoch_{epoch:04d}.png" for epoch in (1, 3, 4)]
    assert pictures(tmp_path) == ["activation.png", *epochs]
    latest = (tmp_path / "activation.png").read_bytes()
    assert latest == (tmp_path / epochs[-1]).read_bytes() != (tmp_path / epochs[0]).read_bytes()


def test_nothing_in_the_sanity_check_or_outside_fit(tmp_path):
    class Look(Callback):
        found: list[str] | None = None

        def on_train_start(self, trainer, pl_module):
            self.found = pictures(tmp_path)

    look = Look()
    trainer(tmp_path, ActivationMonitor(), look, num_sanity_val_steps=1).fit(Module(PSiLU()), data(), data())
    assert look.found == []
    (tmp_path / "activation.png").unlink()
    trainer(tmp_path, ActivationMonitor()).validate(Module(PSiLU()), data(), verbose=False)
    assert "activation.png" not in pictures(tmp_path)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.PReLU()])
def test_a_network_without_our_activations_is_left_alone(tmp_path, activation):
    assert logged(tmp_path, Module(activation), ActivationMonitor()) == {}
    assert pictures(tmp_path) == []


def test_the_curve_at_the_start_survives_a_resume(tmp_path, drawn):
    first = trainer(tmp_path / "a", ActivationMonitor(), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    first.fit(Module(PSiLU(alpha=1.5)), data(), data())
    resumed = trainer(tmp_path / "b", ActivationMonitor(), max_epochs=2)
    resumed.fit(Module(PSiLU(alpha=9.0)), data(), data(), ckpt_path=first.checkpoint_callback.best_model_path)
    shown = [(site.initial.alpha.item(), site.learned.alpha.item()) for (site,) in drawn]
    assert shown == [(1.5, 2.5), (1.5, 3.5)]


def test_the_training_is_the_same_with_and_without_a_monitor(tmp_path):
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


def test_the_picture_reaches_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    trainer(tmp_path, ActivationMonitor(), logger=logger, log_every_n_steps=1).fit(Module(PSiLU()), data(), data())
    events = EventAccumulator(logger.log_dir).Reload()
    assert [event.step for event in events.Images("activation")] == [1]
    assert [event.value for event in events.Scalars("activation/alpha")] == [2.0]
    assert (tmp_path / "lightning_logs" / "version_0" / "activation.png").exists()


def warned(tmp_path, activation: Activation, change: Callable[[Activation], None], epochs: int = 3) -> list[str]:
    class Change(Callback):
        def on_validation_epoch_start(self, trainer, pl_module):
            with torch.no_grad():
                change(pl_module.model.activation)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callbacks = (Change(), ActivationMonitor(picture=False))
        trainer(tmp_path, *callbacks, max_epochs=epochs, num_sanity_val_steps=0).fit(Module(activation), data(), data())
    return [str(warning.message) for warning in caught if "of activation" in str(warning.message)]


def test_a_large_beta_is_warned_of_once(tmp_path):
    (message,) = warned(tmp_path, PSSiLU(), lambda activation: activation.beta.fill_(-0.85))
    assert "|beta| of activation activation is 0.85" in message
    assert "--model.activation.penalty_weight" in message


def test_a_collapsed_alpha_is_warned_of_once(tmp_path):
    (message,) = warned(tmp_path, PSoftplus(), lambda activation: activation.alpha.fill_(0.01))
    assert "collapsed to 0.01" in message


def test_an_alpha_that_starts_at_zero_has_not_collapsed(tmp_path):
    assert warned(tmp_path, PReLU(), lambda activation: activation.alpha.fill_(0.01)) == []


@pytest.mark.parametrize("option", ["every_n_epochs", "max_examples"])
def test_numbers_below_one_are_refused(option):
    with pytest.raises(ValueError, match=f"--monitor.{option} 1"):
        ActivationMonitor(**{option: 0})


def test_the_histogram_weighs_calls_by_their_size():
    activation = ReLU()

    def forward() -> None:
        activation(torch.zeros(30, 100))
        activation(torch.ones(10, 100))
        activation(torch.full((3,), math.nan))

    sample = inputs_of({"all": activation, "never": PSiLU()}, forward)
    assert list(sample) == ["all"]
    assert sample["all"].mean().item() == pytest.approx(0.25, abs=1e-3)
    assert not activation._forward_pre_hooks


def test_hooks_are_removed_when_the_network_fails():
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
