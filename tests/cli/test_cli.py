"""Complete runs of the training commands, and merging of configurations."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.cli_runs import built, status, write_experiment
from helpers.devices import DEVICE, on_gpu
from helpers.fakes import CONFIGS
from helpers.resume_helpers import content
from helpers.resume_helpers import rows as rows_without_times

from lightning_paf.cli.evaluated_checkpoint import arrange


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_experiment(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """A run with all slots in use; tests only add files to it."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    slots = ["--averaging", "WarmupEMA", "--averaging.decay", "0.9", "--monitor", "ActivationMonitor"]
    best = ["--checkpoint.filename", "best", "--checkpoint.monitor", "val/acc_pgd", "--checkpoint.mode", "max"]
    assert status("fit", "-c", tiny, *slots, *best, "--trainer.max_epochs", "3", "--run", run) == 0
    return run


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copied"))


def last(run: Path) -> Path:
    return run / "checkpoints" / "last.ckpt"


def load(checkpoint: Path) -> dict:
    return torch.load(checkpoint, weights_only=True)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as lines:
        return list(csv.DictReader(lines))


# ------------------------------------------------------------------ fit


def test_a_run_folder_holds_config_metrics_checkpoints_and_the_picture(trained):
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (trained / "activation.png").read_bytes().startswith(b"\x89PNG")
    assert list(trained.glob("events.out.tfevents.*"))
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["trainer"]["max_epochs"] == 3
    assert config["averaging"]["init_args"]["decay"] == 0.9
    logged = set(rows(trained)[0])
    assert {"train/loss", "train/acc_adv", "val/acc", "val/acc_pgd", "activation/alpha", "activation/beta"} <= logged


def test_the_best_checkpoint_has_the_highest_robust_accuracy(trained):
    accuracies = [float(row["val/acc_pgd"]) for row in rows(trained) if row["val/acc_pgd"]]
    assert len(accuracies) == 3
    best = load(trained / "checkpoints" / "best.ckpt")
    assert accuracies[best["epoch"]] == pytest.approx(max(accuracies))
    (monitored,) = [state for key, state in best["callbacks"].items() if "'monitor': 'val/acc_pgd'" in key]
    assert float(monitored["best_model_score"]) == pytest.approx(max(accuracies))


def test_the_last_checkpoint_is_that_of_the_last_epoch(trained, tiny, tmp_path):
    assert load(last(trained))["epoch"] == 2
    never_better = ["--checkpoint.filename", "best", "--checkpoint.monitor", "epoch", "--checkpoint.mode", "min"]
    rarely = ["--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "2"]
    assert status("fit", "-c", tiny, *never_better, *rarely, "--run", tmp_path / "run") == 0
    assert load(tmp_path / "run" / "checkpoints" / "best.ckpt")["epoch"] == 0
    assert load(last(tmp_path / "run"))["epoch"] == 1


def test_the_checkpoint_holds_the_average_and_the_trained_weights(trained):
    checkpoint = load(last(trained))
    average, current = (checkpoint[key]["model.net.fc.weight"] for key in ("state_dict", "current_model_state"))
    assert not torch.equal(average, current)


def test_null_empties_a_slot(trained):
    def names(*words):
        cli = built("-c", trained / "config.yaml", *words)
        return {type(callback).__name__ for callback in cli.trainer.callbacks}

    slots = {"averaging": "WarmupEMA", "monitor": "ActivationMonitor", "val_attack": "RobustEval"}
    slots |= {"checkpoint": "ModelCheckpoint"}
    assert names() >= set(slots.values())
    empty = [word for slot in slots for word in (f"--{slot}", "null")]
    assert not names(*empty) & set(slots.values())


def test_configurations_are_merged_in_their_order(tiny, tmp_path):
    (tmp_path / "wide.yaml").write_text("{model: {net: {init_args: {width: 6}}}, trainer: {max_epochs: 7}}")
    (tmp_path / "long.yaml").write_text("trainer: {max_epochs: 9}")
    words = ["--config", tiny, "--config", tmp_path / "wide.yaml", "--config", tmp_path / "long.yaml"]
    cli = built("--trainer.max_epochs", "5", *words, "--model.attack.eps", "2/255")
    assert cli.trainer.max_epochs == 9
    assert cli.model.model.net.features[0].out_channels == 6
    assert cli.model.attack.radius == 2 / 255


def test_groups_can_be_files(tiny, tmp_path):
    parts = yaml.safe_load(Path(tiny).read_text())
    words = []
    for group in ("trainer", "model", "data"):
        path = tmp_path / f"{group}.yaml"
        path.write_text(yaml.safe_dump(parts[group]))
        words += [f"--{group}", path]
    assert built(*words).model.hparams == built("-c", tiny).model.hparams


def test_the_printed_configuration_is_accepted_unchanged(tiny, tmp_path, capsys):
    assert status("fit", "-c", tiny, "--model.attack.eps", "12/255", "--averaging", "WarmupEMA", "--print_config") == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    assert status("fit", "-c", tmp_path / "printed.yaml", "--print_config") == 0
    assert capsys.readouterr().out == printed
    assert yaml.safe_load(printed)["model"]["attack"]["init_args"]["eps"] == "12/255"


def test_options_of_the_trainer(tiny, tmp_path):
    # Not limit_train_batches: `int | float` is read as a float if another library has created the union in that order.
    limits = ["--trainer.max_steps", "1", "--trainer.limit_val_batches", "1", "--trainer.profiler", "simple"]
    assert status("fit", "-c", tiny, *limits, "--trainer.precision", "bf16-mixed", "--run", tmp_path / "run") == 0
    assert load(last(tmp_path / "run"))["global_step"] == 1
    assert status("fit", "-c", tiny, "--trainer.fast_dev_run", "true", "--run", tmp_path / "dry") == 0
    assert not (tmp_path / "dry").exists()


def test_without_a_run_folder_lightning_numbers_the_runs(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lightning_logs" / "version_0").mkdir(parents=True)
    assert status("fit", "-c", tiny) == 0
    assert last(tmp_path / "lightning_logs" / "version_1").is_file()
    assert (tmp_path / "lightning_logs" / "version_1" / "config.yaml").is_file()


def test_other_loggers_are_added_to_those_of_the_run_folder(tiny, tmp_path):
    more = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", tmp_path / "more"]
    assert status("fit", "-c", tiny, *more, "--seed_everything", "true", "--run", tmp_path / "run") == 0
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert list((tmp_path / "more").rglob("metrics.csv"))
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert type(config["seed_everything"]) is int, "the random seed is saved"


def test_a_device_is_saved_as_its_name(tiny, tmp_path):
    averaging = ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs", "0.01"]
    assert status("fit", "-c", tiny, *averaging, "--run", tmp_path / "run") == 0
    (callback,) = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["callbacks"]
    assert callback["init_args"]["device"] == "cpu"


def test_processes_can_be_spawned(tiny, tmp_path):
    assert status("fit", "-c", tiny, "--trainer.strategy", "ddp_spawn", "--run", tmp_path / "run") == 0
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_without_loggers_the_run_folder_is_the_same(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status("fit", "-c", tiny, "--trainer.logger", "false", "--run", tmp_path / "run") == 0
    found = {path.name for path in (tmp_path / "run").iterdir()}
    assert found == {"config.yaml", "checkpoints", "progress.json", "run.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_grey_images_are_trained_and_tested(tmp_path):
    config = write_experiment(tmp_path)
    for path in (tmp_path / "images").glob("*.npz"):
        arrays = dict(np.load(path))
        np.savez(path, image=arrays["image"][..., :1], label=arrays["label"])
    assert status("fit", "-c", config, "--data.channels", "1", "--run", tmp_path / "run") == 0
    (tmp_path / "images" / "train.npz").unlink()
    assert status("test", "--ckpt_path", last(tmp_path / "run"), "--data.val_size", "1024") == 0
    assert status("predict", "--ckpt_path", last(tmp_path / "run")) == 0


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("{epoch}-{val/acc_pgd:.3f}", "epoch=1-acc_pgd=0.500.ckpt"),
        ("best-{step:03d}", "best-step=008.ckpt"),
        ("{val/acc_pgd}", "acc_pgd=0.5.ckpt"),
    ],
)
def test_the_name_of_a_metric_makes_no_folder(filename, expected, tiny):
    own = json.dumps({"class_path": "ModelCheckpoint", "init_args": {"filename": filename, "monitor": "val/acc"}})
    cli = built("-c", tiny, "--checkpoint.filename", filename, f"--trainer.callbacks+={own}")
    named = [saver for saver in cli.trainer.checkpoint_callbacks if saver.filename not in ("last", "step={step}")]
    assert len(named) == 2
    for saver in named:
        assert saver.format_checkpoint_name({"epoch": 1, "step": 8, "val/acc_pgd": 0.5}) == expected


# ------------------------------------------------------------------ resuming


def test_a_run_resumes_in_its_folder(copied):
    before = rows(copied)
    config = copied / "config.yaml"
    assert status("fit", "-c", config, "--ckpt_path", last(copied), "--trainer.max_epochs", "5", "--run", copied) == 0
    resumed = load(last(copied))
    assert (resumed["epoch"], resumed["global_step"]) == (4, 20)
    after = rows(copied)
    assert after[: len(before)] == before
    assert {row["epoch"] for row in after[len(before) :]} == {"3", "4"}
    assert yaml.safe_load(config.read_text())["trainer"]["max_epochs"] == 5


def test_more_epochs_continue_a_finished_run_exactly(tiny, tmp_path):
    """`last` starts a new run in an empty folder, so the command can be repeated."""
    steady = ["--averaging", "WarmupEMA", "--model.schedule", "Constant", "--model.attack.start", "none"]
    for run, epochs in (("expected", "2"), ("parts", "1"), ("parts", "2")):
        words = ["--trainer.max_epochs", epochs, "--ckpt_path", "last", "--run", tmp_path / run]
        assert status("fit", "-c", tiny, *steady, *words) == 0
    expected, parts = load(last(tmp_path / "expected")), load(last(tmp_path / "parts"))
    assert expected["global_step"] == parts["global_step"] == 8
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, parts[key][name]) for name, value in expected[key].items())
    assert rows_without_times(tmp_path / "expected") == rows_without_times(tmp_path / "parts")


def test_a_moved_run_resumes_where_it_is(trained, copied):
    """Its configuration still names the old folder."""
    before = content(trained)
    words = ["fit", "-c", copied / "config.yaml", "--trainer.max_epochs", "4"]
    assert status(*words, "--ckpt_path", "auto") == 0
    assert load(last(copied))["epoch"] == 3
    assert yaml.safe_load((copied / "config.yaml").read_text())["run"] == str(copied)
    assert status(*words) == 1
    assert content(trained) == before


@pytest.mark.parametrize(("words", "expected"), [([], []), (["--ckpt_path", "auto"], ["--run=new"])])
def test_only_a_resume_uses_the_folder_of_a_configuration_without_run(words, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("new").mkdir()
    Path("new", "config.yaml").write_text("# lightning_paf==1\nseed_everything: 0\nrun: null\n")
    assert [word for word in arrange(["fit", "-c", "new/config.yaml", *words]) if word.startswith("--run")] == expected


def test_another_run_in_the_same_folder_is_refused(tiny, trained, copied, capsys):
    before = content(copied)
    for words in (["-c", tiny], ["-c", tiny, "--ckpt_path", last(trained)]):
        assert status("fit", *words, "--run", copied) == 1
        error = capsys.readouterr().err
        assert f"A run folder must hold one run, but {copied} already holds one. Pass another --run" in error
        assert "Traceback" not in error
    assert content(copied) == before


def test_a_missing_init_leaves_the_folder_free(tiny, tmp_path, capsys):
    run = ["--run", tmp_path / "run"]
    assert status("fit", "-c", tiny, "--model.init", tmp_path / "none.ckpt", *run) == 1
    assert "Train it first (command in the header of the recipe)" in capsys.readouterr().err
    assert status("fit", "-c", tiny, *run) == 0


def test_a_checkpoint_can_start_a_run_in_another_folder(trained, tmp_path):
    words = ["--ckpt_path", last(trained), "--trainer.max_epochs", "4", "--run", tmp_path / "new"]
    assert status("fit", "-c", trained / "config.yaml", *words) == 0
    assert load(last(tmp_path / "new"))["epoch"] == 3


# ------------------------------------------------------------------ validate, test, predict


def test_test_reads_the_configuration_of_the_run(copied, tmp_path, monkeypatch, capsys):
    before = content(copied)
    monkeypatch.chdir(tmp_path)
    assert status("test", f"--ckpt_path={last(copied)}") == 0
    assert f"Configuration of the checkpoint: {copied}/config.yaml" in capsys.readouterr().err
    result = json.loads((copied / "test" / "pgd_linf_8-255.json").read_text())
    assert len(result["outcomes"]) == 22
    assert result["attack"]["eps"] == "8/255"
    assert before.items() <= content(copied).items()


def test_autoattack_uses_the_given_radius(trained, tmp_path, caplog):
    attack = ["--autoattack", CONFIGS / "eval" / "autoattack.yaml", "--autoattack.attack.eps", "4/255"]
    quick = ["--autoattack.attack.version", "custom", "--autoattack.attack.attacks", "[apgd-ce]"]
    few = ["--autoattack.test_examples", "3", "--val_attack", "null", "--run", tmp_path]
    words = ["--config", trained / "config.yaml", "--ckpt_path", last(trained), *attack, *quick, *few]
    assert status("test", *words) == 0
    (file,) = (tmp_path / "test").glob("*.json")
    assert file.name == "autoattack_linf_4-255.json"
    result = json.loads(file.read_text())
    described = {key: result["attack"][key] for key in ("attack", "eps", "eps_value", "attacks")}
    assert described == {"attack": "AutoAttack", "eps": "4/255", "eps_value": 4 / 255, "attacks": ["apgd-ce"]}
    assert len(result["outcomes"]) == 3
    assert "AutoAttack linf eps 4/255" in caplog.text


@on_gpu
def test_a_network_is_trained_evaluated_and_verified_on_a_gpu(tiny, tmp_path):
    gpu = ["--trainer.accelerator", DEVICE, "--trainer.devices", "1"]
    bf16 = ["--trainer.precision", "bf16-mixed", "--trainer.benchmark", "true"]
    assert status("fit", "-c", tiny, *gpu, *bf16, "--averaging", "WarmupEMA", "--run", tmp_path) == 0
    quick = ["--autoattack.attack.version", "custom", "--autoattack.attack.attacks", "[apgd-ce,fab-t]"]
    search = ["--autoattack", "autoattack", "--autoattack.search_precision", "bf16", "--val_attack", "null"]
    assert status("test", "--ckpt_path", last(tmp_path), *gpu, *search, *quick) == 0
    evidence = tmp_path / "test" / "autoattack_linf_8-255.evidence.safetensors"
    assert status("verify", evidence, "--ckpt", last(tmp_path), "--device", DEVICE) == 0


def test_validate_repeats_the_last_validation(trained):
    assert status("validate", "--ckpt_path", last(trained)) == 0
    (row,) = rows(trained / "validate")
    final = [row for row in rows(trained) if row["val/acc_pgd"]][-1]
    assert [row[key] for key in ("val/acc", "val/acc_pgd")] == [final[key] for key in ("val/acc", "val/acc_pgd")]


def test_predict_writes_every_sample_once(tiny, trained, caplog):
    assert status("predict", "--ckpt_path", last(trained)) == 0
    assert f"Predictions: {trained / 'predict' / 'predictions.npz'}." in caplog.text
    found = np.load(trained / "predict" / "predictions.npz")
    expected = np.load(Path(tiny).parent / "images" / "test.npz")["label"]
    assert found["index"].tolist() == list(range(22))
    assert found["label"].tolist() == expected.tolist()
    assert found["probabilities"].sum(1) == pytest.approx(np.ones(22), abs=1e-5)
    assert (found["prediction"] == found["probabilities"].argmax(1)).all()


def test_a_saved_configuration_is_built_without_running(trained):
    """Notebooks use it; the file also holds options of the commands."""
    before = content(trained)
    assert built("-c", trained / "config.yaml").model.model.num_classes == 3
    assert content(trained) == before


def test_an_early_stop_and_the_size_of_the_network_are_logged(tiny, tmp_path, caplog):
    words = [
        "--trainer.callbacks+=EarlyStopping",
        "--trainer.callbacks.monitor",
        "val/acc",
        "--trainer.callbacks.mode",
        "max",
    ]
    words += ["--trainer.callbacks.stopping_threshold", "-1", "--trainer.max_epochs", "9"]
    words += ["--trainer.enable_model_summary", "null"]
    assert status("fit", "-c", tiny, *words, "--run", tmp_path) == 0
    assert "Network: SmallConvNet, 1,529 parameters" in caplog.text
    assert "EarlyStopping in epoch 1: Stopping threshold reached" in caplog.text
    assert "FLOPs" not in caplog.text


def test_an_error_of_torch_that_an_option_avoids_is_one_line(tiny, tmp_path, capsys):
    pruning = "--trainer.callbacks+=helpers.fakes.Pruning"
    assert status("fit", "-c", tiny, pruning, "--run", tmp_path) == 1
    error = capsys.readouterr().err
    assert "Pass --model.speed.channels_last false." in error
    assert "Traceback" not in error
