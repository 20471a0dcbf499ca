"""Weight averages in closed form, in checkpoints and in validation."""

import pickle
import warnings

import pytest
import torch
from helpers.trainers import trainer
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_paf.callbacks.averaging import WarmupDecay, WarmupEMA
from lightning_paf.nn.activations import PSiLU


class Counter(LightningModule):
    """A weight that every step raises by 1, shared by two layers; it is t + 1 after step t."""

    def __init__(self) -> None:
        super().__init__()
        self.first = PSiLU(alpha=1.0)
        self.second = self.first
        self.validated: list[float] = []
        self.tested: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -self.second.alpha.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(float(self.second.alpha))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.tested.append(float(self.second.alpha))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Normed(LightningModule):
    """A regression with BatchNorm and momentum SGD, whose states a resume has to restore."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.net(batch[0])[:, 0], batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def steps(n: int) -> DataLoader:
    return DataLoader(TensorDataset(torch.zeros(n, 1)))


def regression() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 3, generator=generator), torch.randn(24, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def average_of_counter(n: int, decay: float = 0.995, copies: int = 0) -> float:
    """Average of the weight of `Counter` after n steps; the first step is copied."""
    average = 2.0
    for step in range(1, n):
        t = step - copies
        d = min(decay, (1 + t) / (10 + t)) if t >= 0 else 0
        average = d * average + (1 - d) * (step + 2)
    return average


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (8, 0.5), (90, 0.91), (1790, 0.995), (9999, 0.995)])
def test_the_decay_rises_to_its_bound(step, expected):
    assert float(WarmupDecay(0.995).at(step)) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "options"), [(1, {}), (7, {"decay": 0.3}), (7, {}), (10, {"copy_for": 0.5})])
def test_the_average_is_the_closed_form_and_a_shared_weight_is_averaged_once(tmp_path, n, options):
    module = Counter()
    trainer(tmp_path, WarmupEMA(**options)).fit(module, steps(n))
    expected = average_of_counter(n, options.get("decay", 0.995), copies=5 if "copy_for" in options else 0)
    assert module.first.alpha.item() == pytest.approx(expected, rel=1e-6)


def test_validation_uses_the_average_and_training_the_weights(tmp_path):
    module = Counter()
    trainer(tmp_path, WarmupEMA(), max_epochs=3, num_sanity_val_steps=0).fit(module, steps(2), steps(1))
    assert module.validated == pytest.approx([average_of_counter(n) for n in (2, 4, 6)])


def test_accumulated_gradients_count_as_one_step(tmp_path):
    module = Counter()
    trainer(tmp_path, WarmupEMA(), accumulate_grad_batches=2).fit(module, steps(6))
    assert module.first.alpha.item() == pytest.approx(average_of_counter(3))


@pytest.mark.parametrize("use_buffers", [True, False])
def test_statistics_are_averaged_or_copied_and_counters_are_copied(tmp_path, use_buffers):
    running = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            running.append(pl_module.net[1].running_mean.clone())

    module = Normed()
    trainer(tmp_path, WarmupEMA(0.5, use_buffers=use_buffers), Watch()).fit(module, regression())
    expected = running[0] if use_buffers else running[-1]
    if use_buffers:
        for t, current in enumerate(running[1:], start=1):
            expected = expected.lerp(current, 1 - float(WarmupDecay(0.5).at(t)))
    assert torch.allclose(module.net[1].running_mean, expected)
    assert module.net[1].num_batches_tracked == len(running) == 6


def test_a_checkpoint_holds_the_average_and_other_commands_use_it_silently(tmp_path):
    run = trainer(tmp_path, WarmupEMA(), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    run.fit(Counter(), steps(5))
    path = run.checkpoint_callback.best_model_path
    checkpoint = torch.load(path, weights_only=True)
    assert float(checkpoint["state_dict"]["first.alpha"]) == pytest.approx(average_of_counter(5))
    assert float(checkpoint["current_model_state"]["first.alpha"]) == 6
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for tester in (run, trainer(tmp_path, WarmupEMA()), trainer(tmp_path)):
            module = Counter()
            tester.test(module, steps(1), ckpt_path=path, verbose=False)
            tester.validate(module, steps(1), ckpt_path=path, verbose=False)
            assert module.tested == module.validated == pytest.approx([average_of_counter(5)])
    assert not [str(warning.message) for warning in caught if "verag" in str(warning.message)]


@pytest.mark.parametrize(("every", "updates"), [("step", 18), ("epoch", 3)])
def test_resuming_continues_the_average_exactly(tmp_path, every, updates):
    def run(name: str, epochs: int, ckpt_path: str | None = None) -> dict:
        checkpoints = ModelCheckpoint(tmp_path / name, filename="last", save_top_k=1)
        callbacks = (WarmupEMA(0.9, every=every), checkpoints)
        fit = trainer(tmp_path, *callbacks, max_epochs=epochs, enable_checkpointing=True)
        fit.fit(Normed(), regression(), regression(), ckpt_path=ckpt_path)
        return torch.load(checkpoints.best_model_path, weights_only=True)

    uninterrupted = run("uninterrupted", 3)
    run("part", 1)
    resumed = run("resumed", 3, str(tmp_path / "part" / "last.ckpt"))
    assert resumed["averaging_state"]["n_averaged"] == updates
    for state in ("state_dict", "current_model_state"):
        for name, value in uninterrupted[state].items():
            assert torch.equal(value, resumed[state][name]), (state, name)
    averaged, current = (resumed[state]["net.0.weight"] for state in ("state_dict", "current_model_state"))
    assert not torch.equal(averaged, current)


def test_a_checkpoint_saved_during_a_validation_holds_both(tmp_path):
    class Interrupt(Callback):
        def on_validation_batch_end(self, trainer, *args):
            trainer.save_checkpoint(tmp_path / "signal.ckpt")

    run = trainer(tmp_path, WarmupEMA(), Interrupt(), num_sanity_val_steps=0, enable_checkpointing=True)
    run.fit(Counter(), steps(4), steps(1))
    checkpoint = torch.load(tmp_path / "signal.ckpt", weights_only=True)
    assert float(checkpoint["state_dict"]["first.alpha"]) == pytest.approx(average_of_counter(4))
    assert float(checkpoint["current_model_state"]["first.alpha"]) == 5


def test_it_can_be_pickled():
    rule = pickle.loads(pickle.dumps(WarmupEMA(0.9)))._kwargs["multi_avg_fn"]
    average = [torch.zeros(2), torch.zeros(1, dtype=torch.long)]
    rule(average[:1], [torch.ones(2)], torch.tensor(8))
    rule(average[1:], [torch.tensor([7])], torch.tensor(8))
    assert average[0].tolist() == [0.5, 0.5]
    assert average[1].item() == 7


@pytest.mark.parametrize(("option", "value"), [("decay", -0.1), ("decay", 1.0), ("copy_for", 1)])
def test_values_outside_their_range_are_refused(option, value):
    with pytest.raises(ValueError, match=rf"{option} must be in \[0, 1\), got {value}. Pass --averaging\.{option}"):
        WarmupEMA(**{option: value})


def test_checkpoints_of_weights_only_are_refused(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.raises(ValueError, match=r"--checkpoint\.save_weights_only false"):
        trainer(tmp_path, WarmupEMA(), checkpoints, enable_checkpointing=True).fit(Counter(), steps(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_average_is_on_the_device_of_the_training():
    devices = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *args):
            devices.append({p.device.type for p in ema._average_model.parameters()})

    ema = WarmupEMA()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    Trainer(accelerator="gpu", devices=1, max_epochs=1, callbacks=[ema, Watch()], **quiet).fit(Counter(), steps(2))
    assert devices == [{"cuda"}] * 2


def test_the_decay_can_be_constant(tmp_path):
    module = Counter()
    trainer(tmp_path, WarmupEMA(0.75, grows=False)).fit(module, steps(3))
    assert module.first.alpha.item() == pytest.approx(0.75 * (0.75 * 2 + 0.25 * 3) + 0.25 * 4)


def test_epochs_can_be_averaged_and_validation_includes_the_current_one(tmp_path):
    module = Counter()
    ema = WarmupEMA(0.75, grows=False, every="epoch")
    trainer(tmp_path, ema, max_epochs=3, num_sanity_val_steps=0).fit(module, steps(4), steps(1))
    first, second = 0.75 * 5 + 0.25 * 9, 0.75 * (0.75 * 5 + 0.25 * 9) + 0.25 * 13
    assert module.validated == pytest.approx([5, first, second])
    assert module.first.alpha.item() == pytest.approx(second)


def test_an_average_of_epochs_copies_for_a_fraction_of_the_epochs(tmp_path):
    module = Counter()
    trainer(tmp_path, WarmupEMA(0.75, grows=False, copy_for=0.5, every="epoch"), max_epochs=4).fit(module, steps(2))
    assert module.first.alpha.item() == pytest.approx(0.75 * (0.75 * 5 + 0.25 * 7) + 0.25 * 9)
    endless = trainer(tmp_path, WarmupEMA(copy_for=0.5, every="epoch"), max_epochs=-1, max_steps=3)
    with pytest.raises(ValueError, match=r"max_epochs must be set for copy_for=0\.5"):
        endless.fit(Counter(), steps(2))
