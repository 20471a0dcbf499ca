"""The line of an epoch, printed if there is no progress bar."""

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


def test_a_run_without_a_bar_prints_one_line_per_epoch(tiny, tmp_path, capsys):
    options = ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2", "--monitor", "ActivationMonitor"]
    assert status("fit", "-c", tiny, *options, "--monitor.picture", "false", "--run", tmp_path) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    begin = [rf"epoch {epoch}/3  step {4 * epoch}  loss \d\.\d{{3}}  train \d+\.\d %  " for epoch in (1, 2, 3)]
    number = r"-?\d[\d.e-]*"
    validated = rf"clean \d+\.\d %  robust\(pgd\) \d+\.\d %  alpha {number}  beta {number}  "
    speed = r"[\d,]+ img/s"
    assert re.fullmatch(rf"{begin[0]}{speed}  eta .* (s|min)", lines[0])
    assert re.fullmatch(rf"{begin[1]}{validated}{speed}  eta .* (s|min)", lines[1])
    assert re.fullmatch(rf"{begin[2]}{speed}", lines[2]), "values of other epochs are omitted"
    assert len(lines) == 3


@pytest.mark.parametrize(("terminal", "words", "expected"), [
    (True, ["null"], {BAR}),
    (False, ["null"], {"EpochPrinter"}),
    (True, ["false"], {"EpochPrinter"}),
    (False, ["true"], {BAR}),
])  # fmt: skip
def test_a_terminal_gets_a_bar_and_a_file_gets_lines(terminal, words, expected, tiny, monkeypatch):
    monkeypatch.setattr("sys.stdout", SimpleNamespace(isatty=lambda: terminal, write=len, flush=lambda: None))
    assert names("-c", tiny, "--trainer.enable_progress_bar", *words) & {BAR, "EpochPrinter"} == expected


def test_another_bar_is_kept(tiny):
    other = ["--trainer.callbacks+=TQDMProgressBar", "--trainer.enable_progress_bar", "null"]
    assert names("-c", tiny, *other) & {BAR, "TQDMProgressBar", "EpochPrinter"} == {"TQDMProgressBar"}


def run_epoch(printer: EpochPrinter, metrics: dict[str, float], **attributes) -> None:
    """Call the hooks of an epoch with a validation."""
    trainer = SimpleNamespace(
        callback_metrics={name: torch.tensor(value) for name, value in metrics.items()},
        current_epoch=2,
        max_epochs=15,
        global_step=1200,
        sanity_checking=False,
        is_global_zero=True,
    )
    vars(trainer).update(attributes)
    printer.on_validation_end(trainer, None)
    printer.on_train_epoch_end(trainer, None)
    printer.on_train_epoch_start(trainer, None)


def test_the_complete_line(monkeypatch, capsys):
    throughput = Throughput()
    throughput.latest = {"run/images_per_second": 12345.4}
    monkeypatch.setattr(throughput, "seconds_left", lambda step: 3720.0)
    metrics = {"train/loss": 1.234, "train/acc_adv": 0.41, "val/acc": 0.812, "val/acc_pgd20": 0.451}
    run_epoch(EpochPrinter(throughput), metrics | {"activation/alpha": 1.23, "activation/beta": 0.0})
    assert capsys.readouterr().out == (
        "epoch 3/15  step 1200  loss 1.234  train 41.0 %  clean 81.2 %  robust(pgd20) 45.1 %  alpha 1.23  beta 0  "
        "12,345 img/s  eta 1 h 02 min\n"
    )


def test_several_activations_are_a_range_and_missing_values_are_omitted(capsys):
    metrics = {f"activation/stage{stage}.act/alpha": 1.0 + stage for stage in range(3)}
    run_epoch(EpochPrinter(Throughput()), metrics, max_epochs=-1)
    assert capsys.readouterr().out == "epoch 3  step 1200  alpha 1..3\n"


def test_only_the_first_process_prints(capsys):
    run_epoch(EpochPrinter(Throughput()), {"train/loss": 1.0}, is_global_zero=False)
    assert capsys.readouterr().out == ""


def test_the_sanity_check_is_not_a_validation(capsys):
    run_epoch(EpochPrinter(Throughput()), {"train/loss": 1.0, "val/acc": 0.5}, sanity_checking=True)
    assert capsys.readouterr().out == "epoch 3/15  step 1200  loss 1.000\n"
