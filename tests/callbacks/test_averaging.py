import pickle
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_paf.callbacks.averaging import WarmupDecay, WarmupEMA
from lightning_paf.nn.activations import PSiLU


class Counter(LightningModule):
    """A weight that every step raises by 1; the second layer holds the first one's weight too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = PSiLU(alpha=1.0)
        self.second = self.first
        self.seen_in_validation: list[float] = []
        self.seen_in_test: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -self.second.alpha.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen_in_validation.append(float(self.second.alpha))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen_in_test.append(float(self.second.alpha))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Normed(LightningModule):
    """BatchNorm, momentum SGD and a regression: everything that resuming has to restore."""

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


def trainer(tmp_path, *callbacks: Callback, **kwargs) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    kwargs = {"enable_checkpointing": False, "max_epochs": 1, **quiet, **kwargs}
    return Trainer(
        accelerator="cpu", default_root_dir=tmp_path, callbacks=list(callbacks), inference_mode=False, **kwargs
    )


def steps(n: int) -> DataLoader:
    return DataLoader(TensorDataset(torch.zeros(n, 1)))


def regression() -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 3, generator=generator), torch.randn(24, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def average_of_counter(n: int, decay: float) -> float:
    """The weight is t + 1 after step t; the first step is copied."""
    average = 2.0
    for t in range(1, n):
        d = min(decay, (1 + t) / (10 + t))
        average = d * average + (1 - d) * (t + 2)
    return average


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.1), (1, 2 / 11), (8, 0.5), (90, 0.91), (1790, 0.995), (9999, 0.995)]
)
def test_the_decay_rises_to_its_bound(step, expected):
    assert float(WarmupDecay(0.995).at(step)) == pytest.approx(expected)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.995])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_average_is_the_closed_form_and_a_shared_weight_is_averaged_once(tmp_path, n, decay):
    module = Counter()
    trainer(tmp_path, WarmupEMA(decay)).fit(module, steps(n))
    assert module.first.alpha.item() == pytest.approx(average_of_counter(n, decay), rel=1e-6)


def test_validation_sees_the_average_and_the_training_goes_on_from_the_weights(tmp_path):
    module = Counter()
    trainer(tmp_path, WarmupEMA(), max_epochs=3, num_sanity_val_steps=0).fit(module, steps(2), steps(1))
    assert module.seen_in_validation == pytest.approx([average_of_counter(n, 0.995) for n in (2, 4, 6)])


def test_accumulated_gradients_count_as_one_step(tmp_path):
    module = Counter()
    trainer(tmp_path, WarmupEMA(), accumulate_grad_batches=2).fit(module, steps(6))
    assert module.first.alpha.item() == pytest.approx(average_of_counter(3, 0.995))


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


def test_a_checkpoint_holds_the_average_and_test_uses_it(tmp_path):
    average = average_of_counter(5, 0.995)
    fit = trainer(tmp_path, WarmupEMA(), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    fit.fit(Counter(), steps(5))
    path = fit.checkpoint_callback.best_model_path
    checkpoint = torch.load(path, weights_only=True)
    assert float(checkpoint["state_dict"]["first.alpha"]) == pytest.approx(average)
    assert float(checkpoint["current_model_state"]["first.alpha"]) == 6

    for tester in (fit, trainer(tmp_path, WarmupEMA()), trainer(tmp_path)):
        module = Counter()
        tester.test(module, steps(1), ckpt_path=path, verbose=False)
        assert module.seen_in_test == pytest.approx([average])


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_outside_fit_it_says_nothing(tmp_path, stage):
    fit = trainer(tmp_path, WarmupEMA(), ModelCheckpoint(tmp_path), enable_checkpointing=True)
    fit.fit(Counter(), steps(3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = getattr(trainer(tmp_path, WarmupEMA()), stage)
        run(Counter(), steps(1), ckpt_path=fit.checkpoint_callback.best_model_path, verbose=False)
    assert not [str(warning.message) for warning in caught if "verag" in str(warning.message)]


@pytest.mark.parametrize(("every", "updates"), [("step", 18), ("epoch", 3)])
def test_resuming_continues_the_average_exactly(tmp_path, every, updates):
    def run(name: str, epochs: int, ckpt_path: str | None = None) -> dict:
        checkpoints = ModelCheckpoint(tmp_path / name, filename="last", save_top_k=1)
        callbacks = (WarmupEMA(0.9, every=every), checkpoints)
        fit = trainer(tmp_path, *callbacks, max_epochs=epochs, enable_checkpointing=True)
        fit.fit(Normed(), regression(), regression(), ckpt_path=ckpt_path)
        return torch.load(checkpoints.best_model_path, weights_only=True)

    whole = run("whole", 3)
    run("part", 1)
    resumed = run("resumed", 3, str(tmp_path / "part" / "last.ckpt"))
    assert resumed["averaging_state"]["n_averaged"] == updates
    for state in ("state_dict", "current_model_state"):
        for name, value in whole[state].items():
            assert torch.equal(value, resumed[state][name]), (state, name)
    assert not torch.equal(whole["state_dict"]["net.0.weight"], whole["current_model_state"]["net.0.weight"])


def test_a_checkpoint_in_the_middle_of_a_validation_is_not_turned_around(tmp_path):
    class Interrupt(Callback):
        def on_validation_batch_end(self, trainer, *args):
            trainer.save_checkpoint(tmp_path / "signal.ckpt")

    ema = WarmupEMA()
    fit = trainer(tmp_path, ema, Interrupt(), num_sanity_val_steps=0, enable_checkpointing=True)
    fit.fit(Counter(), steps(4), steps(1))
    checkpoint = torch.load(tmp_path / "signal.ckpt", weights_only=True)
    assert float(checkpoint["state_dict"]["first.alpha"]) == pytest.approx(average_of_counter(4, 0.995))
    assert float(checkpoint["current_model_state"]["first.alpha"]) == 5


def test_it_survives_pickling():
    copy = pickle.loads(pickle.dumps(WarmupEMA(0.9)))
    rule = copy._kwargs["multi_avg_fn"]
    average = [torch.zeros(2), torch.zeros(1, dtype=torch.long)]
    rule(average[:1], [torch.ones(2)], torch.tensor(8))
    rule(average[1:], [torch.tensor([7])], torch.tensor(8))
    assert average[0].tolist() == [0.5, 0.5]
    assert average[1].item() == 7


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"--averaging\.decay 0\.995"):
        WarmupEMA(decay)


def test_checkpoints_without_callback_states_are_refused(tmp_path):
    checkpoints = ModelCheckpoint(tmp_path, save_weights_only=True)
    with pytest.raises(ValueError, match=r"--checkpoint\.save_weights_only false"):
        trainer(tmp_path, WarmupEMA(), checkpoints, enable_checkpointing=True).fit(Counter(), steps(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_average_lives_where_the_model_is_trained(tmp_path):
    devices = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *args):
            devices.append({p.device.type for p in ema._average_model.parameters()})

    ema = WarmupEMA()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    Trainer(accelerator="gpu", devices=1, max_epochs=1, callbacks=[ema, Watch()], **quiet).fit(Counter(), steps(2))
    assert devices == [{"cuda"}] * 2


def test_the_average_is_a_copy_for_the_first_share_of_the_training(tmp_path):
    module = Counter()
    trainer(tmp_path, WarmupEMA(0.995, copy_for=0.5)).fit(module, steps(10))
    average = 6.0  # a copy after the fifth of ten steps
    for t in range(5):
        d = (1 + t) / (10 + t)
        average = d * average + (1 - d) * (t + 7)
    assert module.first.alpha.item() == pytest.approx(average, rel=1e-6)


def test_the_decay_may_be_constant(tmp_path):
    module = Counter()
    trainer(tmp_path, WarmupEMA(0.75, grows=False)).fit(module, steps(3))
    assert module.first.alpha.item() == pytest.approx(0.75 * (0.75 * 2 + 0.25 * 3) + 0.25 * 4)


def test_the_average_may_be_of_epochs_and_validation_sees_the_one_just_over(tmp_path):
    module = Counter()
    ema = WarmupEMA(0.75, grows=False, every="epoch")
    trainer(tmp_path, ema, max_epochs=3, num_sanity_val_steps=0).fit(module, steps(4), steps(1))
    first, second = 0.75 * 5 + 0.25 * 9, 0.75 * (0.75 * 5 + 0.25 * 9) + 0.25 * 13
    assert module.seen_in_validation == pytest.approx([5, first, second])
    assert module.first.alpha.item() == pytest.approx(second)


def test_an_average_of_epochs_copies_for_a_share_of_the_epochs(tmp_path):
    module = Counter()
    trainer(tmp_path, WarmupEMA(0.75, grows=False, copy_for=0.5, every="epoch"), max_epochs=4).fit(module, steps(2))
    assert module.first.alpha.item() == pytest.approx(0.75 * (0.75 * 5 + 0.25 * 7) + 0.25 * 9)
    endless = trainer(tmp_path, WarmupEMA(copy_for=0.5, every="epoch"), max_epochs=-1, max_steps=3)
    with pytest.raises(ValueError, match=r"copy_for=0\.5 is a share of the epochs"):
        endless.fit(Counter(), steps(2))


def test_a_share_outside_its_range_is_refused():
    with pytest.raises(ValueError, match=r"copy_for=1. Pass e.g. --averaging.copy_for 0.025"):
        WarmupEMA(copy_for=1)
