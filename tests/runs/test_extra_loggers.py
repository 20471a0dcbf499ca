"""Loggers of other projects, without their packages: a stand-in beside our own, and what a missing one is told."""

from importlib.util import find_spec

import pytest
from helpers.cli_runs import status, write_experiment
from helpers.fakes import CONFIGS
from lightning.pytorch.loggers import Logger
from lightning_paf.runs.extra_loggers import EXTRAS


class Recorder(Logger):
    """Remembers what it is told, as a logger with a server would send it."""

    told: dict[str, list] = {"hyperparams": [], "metrics": []}  # noqa: RUF012  # of all, to be found by the test

    def __init__(self, project: str = "none") -> None:
        super().__init__()
        self.project = project

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, params, *args, **kwargs):
        self.told["hyperparams"].append(params)

    def log_metrics(self, metrics, step=None):
        self.told["metrics"].append((step, dict(metrics)))


@pytest.fixture
def told() -> dict[str, list]:
    from test_extra_loggers import Recorder  # the class that the command line imports

    for kept in Recorder.told.values():
        kept.clear()
    return Recorder.told


def test_another_logger_hears_everything_beside_those_of_the_run(told, tmp_path):
    logger = ["--trainer.logger", "test_extra_loggers.Recorder", "--trainer.logger.project", "paf"]
    assert status("fit", "-c", write_experiment(tmp_path), *logger, "--run", tmp_path / "run") == 0
    metrics = {name for _, row in told["metrics"] for name in row}
    assert {"train/loss", "train/attack_success", "val/acc", "val/acc_pgd", "run/images_per_second"} <= metrics
    (config,) = [params for params in told["hyperparams"] if "data" in params]
    assert config["data"]["batch_size"] == 16
    assert config["model"]["net"]["class_path"].endswith("SmallConvNet")
    assert not {"ckpt_path", "run"} & config.keys()
    assert {"metrics.csv", "config.yaml"} <= {path.name for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("typed", ["{name}", "{folder}/logger/{module}.yaml"])
def test_a_missing_package_is_named_with_its_extra(name, typed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lightning_paf.runs.extra_loggers.find_spec", lambda module: None)
    words = ["--trainer.logger", typed.format(name=name, folder=CONFIGS, module=EXTRAS[name])]
    assert status("fit", "-c", write_experiment(tmp_path), *words, "--run", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert f"--trainer.logger {name} needs the package {EXTRAS[name]}" in error
    assert f"pip install 'lightning-paf[{EXTRAS[name]}]'" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", EXTRAS)
def test_the_extra_exists(name):
    pyproject = (CONFIGS.parent / "pyproject.toml").read_text()
    assert f"\n{EXTRAS[name]} = [" in pyproject
    assert (CONFIGS / "logger" / f"{EXTRAS[name]}.yaml").is_file()


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_takes_a_whole_run(tmp_path):
    words = ["--trainer.logger", str(CONFIGS / "logger" / "mlflow.yaml")]
    words += ["--trainer.logger.tracking_uri", f"sqlite:///{tmp_path}/mlflow.db"]
    assert status("fit", "-c", write_experiment(tmp_path), *words, "--run", tmp_path / "run") == 0
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("lightning_paf").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["data/batch_size"] == "16"
    assert run.data.metrics["run/images_per_second"] > 0
