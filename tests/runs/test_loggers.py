"""TensorBoard of a resumed run, tables on a full disk, and optional loggers."""

import errno
from importlib.util import find_spec

import pytest
from helpers.cli_runs import status, write_experiment
from helpers.fakes import CONFIGS
from helpers.resume_helpers import RecordingLogger, at_step
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_paf.runs import loggers as run_loggers
from lightning_paf.runs.identity import read_identity
from lightning_paf.runs.loggers import EXTRAS, loggers


def steps(run, tag: str) -> list[int]:
    return [event.step for event in EventAccumulator(str(run)).Reload().Scalars(tag)]


def test_a_resumed_run_logs_nothing_twice_to_tensorboard(tmp_path):
    words = ["fit", "-c", write_experiment(tmp_path), "--trainer.max_epochs", "2", "--run", tmp_path / "run"]
    words += ["--periodic.every_n_train_steps", "3"]
    with pytest.raises(RuntimeError, match="stopped before step 5"):
        status(*words, *at_step("FailsAt", 5))
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    assert len(list((tmp_path / "run").glob("events.*"))) == 1
    assert status(*words, "--ckpt_path", "auto") == 0
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert "hp_metric" not in events.Tags()["scalars"] or len(events.Scalars("hp_metric")) == 1
    assert steps(tmp_path / "run", "val/acc") == [3, 7]
    assert steps(tmp_path / "run", "train/loss") == [3, 7]
    assert steps(tmp_path / "run", "epoch") == sorted(steps(tmp_path / "run", "epoch"))


def test_new_columns_on_a_full_disk_leave_the_table_unchanged(tmp_path, monkeypatch):
    table, _ = loggers(tmp_path / "run", None)
    table.log_metrics({"a": 1.0}, 0)
    table.save()
    before = (tmp_path / "run" / "metrics.csv").read_bytes()

    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_loggers, "write_whole", full)
    table.log_metrics({"b": 1.0}, 1)
    with pytest.raises(OSError, match=r"Metrics could not be written to .*No space left .*checkpoints are unchanged"):
        table.save()
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


@pytest.fixture
def logged() -> dict[str, list]:
    for kept in RecordingLogger.logged.values():
        kept.clear()
    return RecordingLogger.logged


def test_a_table_without_steps_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    table, _ = loggers(tmp_path, None)
    with pytest.raises(ValueError, match=r"metrics\.csv must be a table with a step in every row"):
        table.experiment  # noqa: B018


def test_another_logger_receives_all_metrics_and_the_configuration(logged, tmp_path):
    logger = ["--trainer.logger", "helpers.resume_helpers.RecordingLogger", "--trainer.logger.project", "paf"]
    assert status("fit", "-c", write_experiment(tmp_path), *logger, "--run", tmp_path / "run") == 0
    metrics = {name for _, row in logged["metrics"] for name in row}
    assert {"train/loss", "train/attack_success", "val/acc", "val/acc_pgd", "run/images_per_second"} <= metrics
    (config,) = [params for params in logged["hyperparams"] if "data" in params]
    assert config["data"]["batch_size"] == 16
    assert config["model"]["net"]["class_path"].endswith("SmallConvNet")
    assert not {"ckpt_path", "run"} & config.keys()
    assert {"metrics.csv", "config.yaml"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_fit_resume_and_test_log_to_one_run(logged, tmp_path):
    logger = ["--trainer.logger", "helpers.resume_helpers.RecordingLogger"]
    words, run = ["fit", "-c", write_experiment(tmp_path), *logger, "--ckpt_path", "auto", "--run"], tmp_path / "run"
    assert status(*words, run) == 0
    assert status(*words, run, "--trainer.max_epochs", "2") == 0
    assert status("test", "-c", run / "config.yaml", "--ckpt_path", "last", "--autoattack", "null") == 0
    ((identity, folder),) = set(logged["runs"])
    assert folder == str(run)
    assert len([params for params in logged["hyperparams"] if "data" in params]) == 1
    assert read_identity(run)["RecordingLogger"] == identity
    assert identity not in (run / "config.yaml").read_text()


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_package_is_named_with_its_extra(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lightning_paf.runs.loggers.find_spec", lambda module: None)
    words = ["fit", "-c", write_experiment(tmp_path), "--run", tmp_path / "run", "--trainer.logger"]
    for logger in (name, CONFIGS / "logger" / f"{EXTRAS[name]}.yaml"):
        assert status(*words, logger) == 1
        error = capsys.readouterr().err
        assert f"--trainer.logger {name} needs the package {EXTRAS[name]}" in error
        assert f"pip install 'lightning-paf[{EXTRAS[name]}]'" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", EXTRAS)
def test_the_extra_exists(name):
    assert f"\n{EXTRAS[name]} = [" in (CONFIGS.parent / "pyproject.toml").read_text()
    assert (CONFIGS / "logger" / f"{EXTRAS[name]}.yaml").is_file()


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_logs_a_run(tmp_path):
    words = ["--trainer.logger", str(CONFIGS / "logger" / "mlflow.yaml")]
    words += ["--trainer.logger.tracking_uri", f"sqlite:///{tmp_path}/mlflow.db"]
    assert status("fit", "-c", write_experiment(tmp_path), *words, "--run", tmp_path / "run") == 0
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("lightning_paf").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["data/batch_size"] == "16"
    assert run.data.metrics["run/images_per_second"] > 0
