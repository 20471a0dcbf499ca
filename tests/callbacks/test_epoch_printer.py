"""The line of an epoch, printed where there is no progress bar."""

import re
from types import SimpleNamespace

import pytest
import torch
from helpers.cli_runs import built, status, write_experiment

from lightning_paf.callbacks import EpochPrinter, Throughput


def names(*words: str) -> set[str]:
    return {type(callback).__name__ for callback in built(*words).trainer.callbacks}


BAR = "RichProgressBar"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_experiment(tmp_path_factory.mktemp("tiny"))


def test_a_run_without_a_bar_prints_a_line_an_epoch(tiny, tmp_path, capsys):
    options = ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2", "--monitor", "ActivationMonitor"]
    assert status("fit", "-c", tiny, *options, "--monitor.picture", "false", "--run", tmp_path) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    begin = [rf"epoch {epoch}/3  step {4 * epoch}  loss \d\.\d{{3}}  train \d+\.\d %  " for epoch in (1, 2, 3)]
    number = r"-?\d[\d.e-]*"
    validated = rf"clean \d+\.\d %  robust\(pgd\) \d+\.\d %  alpha {number}  beta {number}  "
    pace = r"[\d,]+ img/s"
    assert re.fullmatch(rf"{begin[0]}{pace}  eta .* (s|min)", lines[0])
    assert re.fullmatch(rf"{begin[1]}{validated}{pace}  eta .* (s|min)", lines[1])
    assert re.fullmatch(rf"{begin[2]}{pace}", lines[2]), "what is not of this epoch is left out"
    assert len(lines) == 3


@pytest.mark.parametrize(("terminal", "words", "expected"), [
    (True, ["null"], {BAR}),
    (False, ["null"], {"EpochPrinter"}),
    (True, ["false"], {"EpochPrinter"}),
    (False, ["true"], {BAR}),
])  # fmt: skip
def test_a_bar_or_lines(terminal, words, expected, tiny, monkeypatch):
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: terminal, write=len, flush=lambda: None))
    assert names("-c", tiny, "--trainer.enable_progress_bar", *words) & {BAR, "EpochPrinter"} == expected


def test_a_bar_of_your_own_is_kept(tiny):
    own = ["--trainer.callbacks+=TQDMProgressBar", "--trainer.enable_progress_bar", "null"]
    assert names("-c", tiny, *own) & {BAR, "TQDMProgressBar", "EpochPrinter"} == {"TQDMProgressBar"}


def epoch_of(line: EpochPrinter, metrics: dict[str, float], validated: bool = True, **facts) -> None:
    trainer = SimpleNamespace(
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        current_epoch=2,
        max_epochs=15,
        global_step=1200,
        sanity_checking=False,
        is_global_zero=True,
    )
    vars(trainer).update(facts)
    if validated:
        line.on_validation_end(trainer, None)
    line.on_train_epoch_end(trainer, None)
    line.on_train_epoch_start(trainer, None)


def test_the_whole_line(monkeypatch, capsys):
    throughput = Throughput()
    throughput.latest = {"run/images_per_second": 12345.4}
    monkeypatch.setattr(throughput, "seconds_left", lambda step: 3720.0)
    metrics = {"train/loss": 1.234, "train/acc_adv": 0.41, "val/acc": 0.812, "val/acc_pgd20": 0.451}
    epoch_of(EpochPrinter(throughput), metrics | {"activation/alpha": 1.23, "activation/beta": 0.0})
    assert capsys.readouterr().out == (
        "epoch 3/15  step 1200  loss 1.234  train 41.0 %  clean 81.2 %  robust(pgd20) 45.1 %  alpha 1.23  beta 0  "
        "12,345 img/s  eta 1 h 02 min\n"
    )


def test_many_activations_are_a_span_and_what_is_missing_is_left_out(capsys):
    metrics = {f"activation/stage{stage}.act/alpha": 1.0 + stage for stage in range(3)}
    epoch_of(EpochPrinter(Throughput()), metrics, max_epochs=-1)
    assert capsys.readouterr().out == "epoch 3  step 1200  alpha 1..3\n"


def test_only_the_first_process_prints(capsys):
    epoch_of(EpochPrinter(Throughput()), {"train/loss": 1.0}, is_global_zero=False)
    assert capsys.readouterr().out == ""


def test_the_sanity_check_is_no_validation(capsys):
    line = EpochPrinter(Throughput())
    epoch_of(line, {"train/loss": 1.0, "val/acc": 0.5}, sanity_checking=True)
    assert capsys.readouterr().out == "epoch 3/15  step 1200  loss 1.000\n"
