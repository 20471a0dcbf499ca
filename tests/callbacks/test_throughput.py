"""Times of a training: closed-form cases with a controlled clock, and a real run."""

import csv
from types import SimpleNamespace

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.fakes import images, tiny_classifier
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.attacks import FGSM, Recorded
from lightning_paf.attacks.base import call_context
from lightning_paf.callbacks import Throughput, throughput

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Clock:
    """A fake of the `time` module, advanced by the test."""

    def __init__(self) -> None:
        self.time = 0.0

    def perf_counter(self) -> float:
        return self.time


class Logger:
    def __init__(self) -> None:
        self.rows = []

    def log_metrics(self, metrics, step):
        self.rows.append((step, metrics))


def trainer(ranks: int = 1) -> SimpleNamespace:
    """A trainer whose ranks all do the same."""
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: value * ranks if reduce_op == "sum" else value)
    return SimpleNamespace(
        strategy=strategy,
        world_size=ranks,
        loggers=[Logger()],
        estimated_stepping_batches=10,
        global_step=0,
        current_epoch=3,
        sanity_checking=False,
    )


class Epoch:
    """Caller of the hooks of a trainer, with an advancing clock."""

    def __init__(self, clock: Clock, ranks: int = 1, device: torch.device = CPU) -> None:
        self.clock, self.trainer, self.callback = clock, trainer(ranks), Throughput()
        self.module = SimpleNamespace(device=device)
        self.callback.on_train_start(self.trainer, self.module)
        self.callback.on_train_epoch_start(self.trainer, self.module)

    def step(self, data: float, attack: float, update: float, batch: int = 8) -> None:
        self.clock.time += data
        x, y = torch.zeros(batch, 3, 8, 8), torch.zeros(batch)
        self.callback.on_train_batch_start(self.trainer, self.module, (x, y), 0)
        with call_context.get()():
            self.clock.time += attack
        self.clock.time += update
        self.trainer.global_step += 1
        self.callback.on_train_batch_end(self.trainer, self.module, None, (x, y), 0)

    def validate(self, seconds: float) -> None:
        self.callback.on_validation_start(self.trainer, self.module)
        self.clock.time += seconds
        self.callback.on_validation_end(self.trainer, self.module)

    def save(self, seconds: float) -> None:
        self.callback.on_save_checkpoint(self.trainer, self.module, {})
        self.clock.time += seconds

    def end(self) -> dict[str, float]:
        self.callback.on_train_epoch_end(self.trainer, self.module)
        return {name.removeprefix("run/"): value for name, value in self.callback.latest.items()}


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


def test_times_are_assigned_to_their_activity(clock):
    epoch = Epoch(clock)
    epoch.step(data=1, attack=3, update=2)
    epoch.step(data=0.5, attack=3, update=0.5)
    epoch.validate(5)
    found = epoch.end()
    assert found["seconds"] == 15
    seconds = {name: 15 * found[name] for name in ("data", "attack", "update", "validation")}
    assert seconds == pytest.approx({"data": 1.5, "attack": 6, "update": 2.5, "validation": 5})
    assert found["images_per_second"] == pytest.approx(16 / 10), "validation does not count"
    assert 0 < found["peak_rss_gib"] < 1000


def test_checkpoints_and_validations_are_not_waiting_for_data(clock):
    epoch = Epoch(clock)
    epoch.step(data=1, attack=1, update=1)
    epoch.save(4)
    epoch.step(data=1, attack=1, update=1)
    epoch.validate(2)
    epoch.step(data=1, attack=1, update=1)
    found = epoch.end()
    assert found["seconds"] == 15
    assert found["data"] * 15 == pytest.approx(1)
    assert found["validation"] * 15 == pytest.approx(2)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(*[st.floats(0, 100)] * 4), min_size=1, max_size=300))
def test_fractions_are_at_most_one_together(steps):
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(throughput, "time", clock)
        epoch = Epoch(clock)
        for data, attack, update, other in steps:
            epoch.step(data, attack, update + 1e-3)
            epoch.save(other)
        found = epoch.end()
    fractions = [found[name] for name in ("data", "attack", "update", "validation")]
    assert all(fraction >= -1e-5 for fraction in fractions)
    assert sum(fractions) <= 1 + 1e-5


def test_images_of_all_ranks_are_counted(clock):
    alone, together = (Epoch(clock, ranks) for ranks in (1, 4))
    alone.step(1, 2, 3)
    alone = alone.end()
    together.callback.on_train_epoch_start(together.trainer, together.module)
    together.step(1, 2, 3)
    together = together.end()
    assert together["images_per_second"] == pytest.approx(4 * alone["images_per_second"])
    assert {n: together[n] for n in ("seconds", "data", "attack")} == pytest.approx(
        {n: alone[n] for n in ("seconds", "data", "attack")}
    )


def test_every_epoch_is_one_separate_row(clock):
    epoch = Epoch(clock)
    epoch.step(1, 1, 1)
    epoch.end()
    epoch.callback.on_train_epoch_start(epoch.trainer, epoch.module)
    epoch.end()  # without a step
    ((step, row),) = epoch.trainer.loggers[0].rows
    assert step == 0
    assert {name for name in row if not name.startswith("run/")} == {"epoch"}
    assert row["epoch"] == 3


def test_the_time_left(clock):
    epoch = Epoch(clock)
    assert epoch.callback.seconds_left(0) is None
    epoch.step(1, 1, 0)
    epoch.step(1, 1, 0)
    epoch.validate(2)
    assert epoch.callback.seconds_per_step(2) == 3
    assert epoch.callback.seconds_left(2) == 24
    epoch.callback.steps = None
    assert epoch.callback.seconds_left(2) is None


class Event:
    """An event in the queue of a device that is `behind` the program, in seconds."""

    clock: Clock
    behind = 3.0
    waited = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream) -> None:
        self.reached = self.clock.time + self.behind

    def synchronize(self) -> None:
        Event.waited += max(0.0, self.reached - self.clock.time)
        self.clock.time = max(self.clock.time, self.reached)

    def elapsed_time(self, end: "Event") -> float:
        assert end.reached <= self.clock.time, "read before the device has reached it"
        return 1000 * (end.reached - self.reached)


def test_no_step_waits_for_a_device(clock, monkeypatch):
    Event.clock, Event.waited = clock, 0.0
    for name, fake in {
        "Event": Event,
        "current_stream": lambda device: None,
        "synchronize": lambda *args: pytest.fail("waits for the whole device"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    epoch = Epoch(clock)
    epoch.callback._clock = throughput._clock_of(CUDA)
    epoch.callback.on_train_epoch_start(epoch.trainer, epoch.module)
    for _ in range(1000):
        epoch.step(data=0.25, attack=0.5, update=0.25)
    assert Event.waited == 0
    assert len(epoch.callback._open) <= throughput._PENDING
    epoch.end()
    assert Event.waited == pytest.approx(Event.behind), "at the end of the epoch, for the last step"
    found = epoch.callback.latest
    assert found["run/seconds"] == pytest.approx(1003)
    assert found["run/attack"] * 1003 == pytest.approx(500, rel=1e-4)
    assert found["run/images_per_second"] == pytest.approx(8, rel=1e-4)


def test_a_run_logs_its_times(tmp_path):
    options = ["--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "2"]
    assert status("fit", "-c", write_experiment(tmp_path), *options, "--run", tmp_path / "run") == 0
    with (tmp_path / "run" / "metrics.csv").open(newline="") as table:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(table)]
    measured = [row for row in rows if "run/seconds" in row]
    assert [row["epoch"] for row in measured] == [0, 1]
    assert [row["step"] for row in measured] == [row["step"] for row in rows if "train/loss" in row]
    for row in measured:
        fractions = [row[f"run/{name}"] for name in ("attack", "update", "data", "validation")]
        assert 0.3 < sum(fractions) <= 1
        assert row["run/attack"] > 0
        assert row["run/images_per_second"] > 1
    assert measured[0]["run/validation"] == 0 < measured[1]["run/validation"]
    assert all(0 <= row["train/attack_success"] <= row["train/clean_acc"] for row in rows if "train/loss" in row)


@pytest.mark.parametrize("attack", [FGSM(), Recorded(FGSM())], ids=["attack", "recorded"])
def test_attacks_are_timed_within_steps_only(attack, clock):
    """Wrapped attacks are timed too (`AWP`), and none after a failed step."""
    epoch, model, (x, y) = Epoch(clock), tiny_classifier(), images(2)
    model.register_forward_hook(lambda *_: setattr(clock, "time", clock.time + 1))
    torch.manual_seed(0)
    before = attack(model, x, y)
    epoch.callback.on_train_batch_start(epoch.trainer, epoch.module, (x, y), 0)
    torch.manual_seed(0)
    assert torch.equal(attack(model, x, y), before)
    epoch.callback.on_exception(epoch.trainer, epoch.module, RuntimeError())
    attack(model, x, y)
    assert [activity for activity, *_ in epoch.callback._open].count("attack") == 1
