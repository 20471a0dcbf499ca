"""The commands do what their help says: real runs, in this process."""

import csv
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.cli_runs import built, experiment, status, write_experiment
from helpers.fakes import CONFIGS
from helpers.resume_helpers import rows as rows_without_times

import lightning_paf
from lightning_paf.__main__ import GONE, TRAINING, _commands
from lightning_paf.attacks import PGD, AutoAttack
from lightning_paf.callbacks import RobustEval
from lightning_paf.cli.training import HelpfulParser


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return write_experiment(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """The folder of a run with everything on; tests read it, and write below it at most."""
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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def python(*words: str) -> subprocess.CompletedProcess:
    """Run in a fresh interpreter, as a user would."""
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60)


# ------------------------------------------------------------------ help


def test_the_help_needs_no_torch_and_so_takes_no_time():
    code = "import sys; from lightning_paf.__main__ import main; main(['--help']); print(*sorted(sys.modules))"
    shown = python("-c", code).stdout
    for command in ("fit", "validate", "test", "predict", "demo", "synthesize"):
        assert f"\n  {command} " in shown
    assert not {"torch", "lightning", "numpy", "jsonargparse"} & set(shown.split("\n")[-2].split())


def test_the_package_is_a_command_too():
    assert python("-m", "lightning_paf", "--version").stdout == f"{lightning_paf.__version__}\n"
    unknown = python("-m", "lightning_paf", "tset")
    assert unknown.returncode == 2
    assert "unknown command 'tset'. Did you mean test? Known: fit, validate, test, predict, analyze" in unknown.stderr


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",), ("help",)])
def test_no_command_is_a_question_for_help(words, capsys):
    assert status(*words) == 0
    assert "lightning-paf COMMAND --help" in capsys.readouterr().out


def test_an_unknown_command_unlike_any_other(capsys):
    assert status("xyz") == 2
    error = capsys.readouterr().err
    assert "'xyz'" in error
    assert "Did you mean" not in error


@pytest.mark.parametrize("command", GONE)
def test_a_removed_command_answers_with_its_replacement(command, capsys):
    assert status(command, "write", "--help") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lightning-paf: {command} is gone: `")


@pytest.mark.parametrize("full", ["--help.full", "--help-full"])
def test_the_full_help_of_a_command_is_that_of_the_classes(full, capsys):
    assert status("fit", full) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "What weight decay acts on",  # RobustModule
        "Fraction of real images in a batch",  # RobustDataModule
        "Run folder: config, metrics",  # the command line itself
        "--val_attack",
        "--trainer.max_epochs",
    ):
        assert text in shown


OF_CLASSES = {
    "--model.attack.eps": PGD,
    "--autoattack.attack.eps": AutoAttack,
    "--autoattack.test_examples": RobustEval,
}


@pytest.mark.parametrize("command", TRAINING)
def test_the_help_page_names_options_of_the_parser(command, capsys):
    assert status(command, "-c", "nowhere.yaml", "-h") == 0
    page = capsys.readouterr().out
    assert max(map(len, page.splitlines())) <= 80
    assert len(page.splitlines()) <= 60
    assert status(command, "--help.full") == 0
    full = capsys.readouterr().out
    options = set(re.findall(r"(?<= )--\w[\w.-]*", page)) - {"--help.full", "--print_config"}
    assert all(f"{option} " in full or f"{option}]" in full for option in options - OF_CLASSES.keys())
    for option in options & OF_CLASSES.keys():
        assert option.rpartition(".")[2] in inspect.signature(OF_CLASSES[option]).parameters


def test_one_parser_is_built_for_one_command(monkeypatch):
    built_for, add = [], HelpfulParser.add_lightning_class_args
    monkeypatch.setattr(
        HelpfulParser,
        "add_lightning_class_args",
        lambda self, *args, **kw: built_for.append(args) or add(self, *args, **kw),
    )
    assert status("fit", "--help.full") == 0
    assert [key for _, key in built_for] == ["trainer", "model", "data"]


def test_the_usage_text_fits_and_names_every_command_once(capsys):
    assert status() == 0
    usage = capsys.readouterr().out
    assert max(map(len, usage.splitlines())) <= 80
    shown = re.findall(r"^  ([a-z][a-z-]*)  ", usage, re.MULTILINE)
    assert sorted(shown) == sorted([*TRAINING, *_commands()])
    for group in ("train", "evaluate", "analyze", "tools"):
        assert f"\n{group}:\n  " in usage


@pytest.mark.parametrize("words", [("--print_shtab",), ("fit", "--print_shtab")])
def test_the_shell_completes_options_and_recipes(words, tmp_path, capsys):
    assert status(*words, "bash") == 0
    (tmp_path / "complete.sh").write_text(capsys.readouterr().out)
    typed = "COMP_WORDS=(lightning-paf fit {}); COMP_CWORD={}; _shtab_lightning_paf; echo ${{COMPREPLY[@]}}"
    lines = ["--model.obj", "--model.attack pgd10_l", "--model.activation pss"]
    script = "; ".join(typed.format(line, 1 + len(line.split())) for line in lines)
    done = subprocess.run(
        ["bash", "-c", f"source {tmp_path}/complete.sh; {script}"], capture_output=True, text=True, check=False
    )
    options, attacks, activations = done.stdout.splitlines()
    assert "--model.objective" in options.split()
    assert attacks.split() == ["pgd10_l2", "pgd10_linf", "pgd10_linf_paf", "pgd10_linf_train"]
    assert activations.split() == ["pssilu", "pssilufixed"]


def test_an_unknown_shell_is_refused(capsys):
    assert status("--print_shtab", "ksh") == 1
    assert "--print_shtab must be one of bash" in capsys.readouterr().err


def test_the_help_of_a_class(capsys):
    assert status("fit", "--model.attack.help", "PGD") == 0
    assert "Largest perturbation, in units of pixels in [0, 1]" in " ".join(capsys.readouterr().out.split())


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


def test_the_best_checkpoint_is_that_of_the_robust_accuracy(trained):
    accuracies = [float(row["val/acc_pgd"]) for row in rows(trained) if row["val/acc_pgd"]]
    assert len(accuracies) == 3
    best = load(trained / "checkpoints" / "best.ckpt")
    assert accuracies[best["epoch"]] == pytest.approx(max(accuracies))
    (monitored,) = [state for key, state in best["callbacks"].items() if "'monitor': 'val/acc_pgd'" in key]
    assert float(monitored["best_model_score"]) == pytest.approx(max(accuracies))


def test_the_last_checkpoint_is_the_last_epoch_also_beside_a_best_one(trained, tiny, tmp_path):
    assert load(last(trained))["epoch"] == 2
    never_better = ["--checkpoint.filename", "best", "--checkpoint.monitor", "epoch", "--checkpoint.mode", "min"]
    rarely = ["--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "3"]
    assert status("fit", "-c", tiny, *never_better, *rarely, "--run", tmp_path / "run") == 0
    assert load(tmp_path / "run" / "checkpoints" / "best.ckpt")["epoch"] == 0
    assert load(last(tmp_path / "run"))["epoch"] == 2


def test_the_checkpoint_holds_the_average_and_what_the_optimiser_works_on(trained):
    checkpoint = load(last(trained))
    average, current = checkpoint["state_dict"], checkpoint["current_model_state"]
    key = "model.net.fc.weight"
    assert not torch.equal(average[key], current[key])


def test_a_slot_is_emptied_by_null(trained):
    def names(*words):
        cli = built("-c", trained / "config.yaml", *words)
        return {type(callback).__name__ for callback in cli.trainer.callbacks}

    slots = {"averaging": "WarmupEMA", "monitor": "ActivationMonitor", "val_attack": "RobustEval"}
    slots |= {"checkpoint": "ModelCheckpoint"}
    assert names() >= set(slots.values())
    empty = [word for slot in slots for word in (f"--{slot}", "null")]
    assert not names(*empty) & set(slots.values())


def test_several_configs_merge_in_the_order_typed(tiny, tmp_path):
    (tmp_path / "wide.yaml").write_text("{model: {net: {init_args: {width: 6}}}, trainer: {max_epochs: 7}}")
    (tmp_path / "long.yaml").write_text("trainer: {max_epochs: 9}")
    words = ["--config", tiny, "--config", tmp_path / "wide.yaml", "--config", tmp_path / "long.yaml"]
    cli = built(*words, "--model.attack.eps", "2/255")
    assert cli.trainer.max_epochs == 9
    assert cli.model.model.net.features[0].out_channels == 6
    assert cli.model.attack.radius == 2 / 255
    # A configuration after an override wins over it.
    assert built("--trainer.max_epochs", "5", *words).trainer.max_epochs == 9


def test_groups_are_files(tiny, tmp_path):
    parts = yaml.safe_load(Path(tiny).read_text())
    words = []
    for group in ("trainer", "model", "data"):
        path = tmp_path / f"{group}.yaml"
        path.write_text(yaml.safe_dump(parts[group]))
        words += [f"--{group}", path]
    assert built(*words).model.hparams == built("-c", tiny).model.hparams


def test_the_printed_config_is_accepted_unchanged(tiny, tmp_path, capsys):
    assert status("fit", "-c", tiny, "--model.attack.eps", "12/255", "--averaging", "WarmupEMA", "--print_config") == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    assert status("fit", "-c", tmp_path / "printed.yaml", "--print_config") == 0
    assert capsys.readouterr().out == printed
    assert yaml.safe_load(printed)["model"]["attack"]["init_args"]["eps"] == "12/255"


def test_the_trainers_own_options(tiny, tmp_path):
    # Not limit_train_batches: `int | float` is read as a float where another library has made the union in that order.
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


def test_other_loggers_come_beside_those_of_the_run_folder(tiny, tmp_path):
    more = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", tmp_path / "more"]
    assert status("fit", "-c", tiny, *more, "--seed_everything", "true", "--run", tmp_path / "run") == 0
    assert {"config.yaml", "metrics.csv", "checkpoints"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert list((tmp_path / "more").rglob("metrics.csv"))
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert type(config["seed_everything"]) is int, "the seed that was drawn is written down"


def test_without_loggers_the_run_folder_is_the_same(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status("fit", "-c", tiny, "--trainer.logger", "false", "--run", tmp_path / "run") == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml", "checkpoints", "progress.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_lists_of_callbacks_stay_free_for_others(tiny):
    cli = built("-c", tiny, "--trainer.callbacks+=LearningRateMonitor", "--trainer.callbacks+=DeviceStatsMonitor")
    names = {type(callback).__name__ for callback in cli.trainer.callbacks}
    assert {"LearningRateMonitor", "DeviceStatsMonitor", "RobustEval", "ModelCheckpoint"} <= names


def test_the_network_has_the_classes_of_the_data(tmp_path):
    parts = experiment()
    parts["data"] = {"dataset": "cifar100", "real_fraction": 1.0}
    parts["model"]["net"] = {"class_path": "TimmNet", "init_args": {"name": "resnet10t"}}
    (tmp_path / "cifar100.yaml").write_text(yaml.safe_dump(parts))
    module = built("-c", tmp_path / "cifar100.yaml").model
    assert module.model.num_classes == module.model.head.out_features == 100


@pytest.mark.parametrize(
    ("net", "data", "channels"),
    [
        ("small", ["cifar10"], 3),
        ("resnet18", ["digits"], 1),
        ("small", ["npz", "--data.num_classes", "4"], 3),
        ("vgg16_bn", ["npz", "--data.num_classes", "4", "--data.channels", "1"], 1),
    ],
)
def test_the_network_has_the_channels_of_the_data(net, data, channels):
    module = built("-c", "demo/digits", "--model.net", net, "--data.dataset", *data).model
    first = next(layer for layer in module.model.net.modules() if isinstance(layer, torch.nn.Conv2d))
    assert first.in_channels == channels


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.net.in_channels", "3"], r"model\.net\.in_channels must be 1, as in the data, got 3\."),
        (["--model.net.init_args.num_classes=7"], r"num_classes must be 10, as in the data, got 7\. Leave --model"),
    ],
)
def test_typed_sizes_of_the_network_must_be_those_of_the_data(words, message):
    with pytest.raises(ValueError, match=message):
        built("-c", "demo/digits", "--model.net", "small", *words)


def test_gray_images_are_trained_and_tested(tmp_path):
    config = write_experiment(tmp_path)
    for path in (tmp_path / "images").glob("*.npz"):
        arrays = dict(np.load(path))
        np.savez(path, image=arrays["image"][..., :1], label=arrays["label"])
    assert status("fit", "-c", config, "--data.channels", "1", "--run", tmp_path / "run") == 0
    (tmp_path / "images" / "train.npz").unlink()
    assert status("test", "--ckpt_path", last(tmp_path / "run"), "--data.val_size", "1024") == 0
    assert status("predict", "--ckpt_path", last(tmp_path / "run")) == 0


def test_a_network_of_timm_by_its_name(tiny):
    module = built("-c", tiny, "--model.net", "TimmNet", "--model.net.name", "resnet10t").model
    assert type(module.model.net.net).__name__ == "ResNet"
    assert module.model.head.out_features == 3
    assert sum(key.endswith(".alpha") for key, _ in module.named_parameters()) == 1


# ------------------------------------------------------------------ continuing a run


def test_a_run_continues_where_it_stopped(copied):
    before = rows(copied)
    config = copied / "config.yaml"
    assert status("fit", "-c", config, "--ckpt_path", last(copied), "--trainer.max_epochs", "5", "--run", copied) == 0
    continued = load(last(copied))
    assert (continued["epoch"], continued["global_step"]) == (4, 20)
    after = rows(copied)
    assert after[: len(before)] == before
    assert {row["epoch"] for row in after[len(before) :]} == {"3", "4"}
    saved = yaml.safe_load(config.read_text())
    assert saved["trainer"]["max_epochs"] == 5
    assert "ckpt_path" not in saved, "a copy of the run would start at its end"


def test_a_continued_run_is_that_which_was_never_stopped(tiny, tmp_path):
    """`last` begins anew where there is nothing yet, so that the same command can be given again and again."""
    steady = ["--averaging", "WarmupEMA", "--model.schedule", "Constant", "--model.attack.start", "none"]
    for run, epochs in (("whole", "2"), ("parts", "1"), ("parts", "2")):
        words = ["--trainer.max_epochs", epochs, "--ckpt_path", "last", "--run", tmp_path / run]
        assert status("fit", "-c", tiny, *steady, *words) == 0
    whole, parts = load(last(tmp_path / "whole")), load(last(tmp_path / "parts"))
    assert whole["global_step"] == parts["global_step"] == 8
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(value, parts[key][name]) for name, value in whole[key].items())
    assert rows_without_times(tmp_path / "whole") == rows_without_times(tmp_path / "parts")


def test_a_second_run_in_the_same_folder_is_refused(tiny, trained, capsys):
    before = contents(trained)
    assert status("fit", "-c", tiny, "--run", trained) == 1
    error = capsys.readouterr().err
    assert f"A run folder holds one run, but {trained} already holds one. Pass another --run" in error
    assert "Traceback" not in error
    assert contents(trained) == before


def test_a_checkpoint_that_is_missing_at_the_start_leaves_the_folder_free(tiny, tmp_path, capsys):
    run = ["--run", tmp_path / "run"]
    assert status("fit", "-c", tiny, "--model.init", tmp_path / "none.ckpt", *run) == 1
    assert "Train it first, as the header of the recipe says" in capsys.readouterr().err
    assert status("fit", "-c", tiny, *run) == 0


def test_continuing_one_run_does_not_overwrite_another(tiny, trained, tmp_path, capsys):
    assert status("fit", "-c", tiny, "--run", tmp_path / "other") == 0
    before = contents(tmp_path / "other")
    assert status("fit", "-c", tiny, "--ckpt_path", last(trained), "--run", tmp_path / "other") == 1
    assert "already holds one" in capsys.readouterr().err
    assert contents(tmp_path / "other") == before


def test_a_checkpoint_may_begin_a_run_elsewhere(trained, tmp_path):
    words = ["--ckpt_path", last(trained), "--trainer.max_epochs", "4", "--run", tmp_path / "new"]
    assert status("fit", "-c", trained / "config.yaml", *words) == 0
    assert load(last(tmp_path / "new"))["epoch"] == 3


# ------------------------------------------------------------------ validate, test, predict


def test_test_finds_the_config_beside_the_checkpoint(trained, capsys):
    before = contents(trained)
    assert status("test", "--ckpt_path", last(trained)) == 0
    assert f"Configuration of the checkpoint: {trained}/config.yaml" in capsys.readouterr().err
    result = json.loads((trained / "test" / "pgd_linf_8-255.json").read_text())
    assert len(result["outcomes"]) == 22
    assert result["attack"]["eps"] == "8/255"
    assert before.items() <= contents(trained).items()


def test_test_with_the_config_of_fit(trained, tmp_path):
    words = ["--config", trained / "config.yaml", "--ckpt_path", last(trained), "--run", tmp_path]
    assert status("test", *words) == 0
    assert (tmp_path / "test" / "pgd_linf_8-255.json").is_file()


def test_a_run_folder_can_be_moved(copied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert status("test", f"--ckpt_path={last(copied)}") == 0
    assert (copied / "test" / "pgd_linf_8-255.json").is_file()


def test_autoattack_at_the_radius_that_was_typed(trained, tmp_path, caplog):
    attack = ["--autoattack", CONFIGS / "eval" / "autoattack.yaml", "--autoattack.attack.eps", "4/255"]
    quick = ["--autoattack.attack.version", "custom", "--autoattack.attack.attacks", "[apgd-ce]"]
    few = ["--autoattack.test_examples", "3", "--val_attack", "null", "--run", tmp_path]
    words = ["--config", trained / "config.yaml", "--ckpt_path", last(trained), *attack, *quick, *few]
    assert status("test", *words) == 0
    (file,) = (tmp_path / "test").glob("*.json")
    assert file.name == "autoattack_linf_4-255.json"
    result = json.loads(file.read_text())
    said = {key: result["attack"][key] for key in ("attack", "eps", "eps_value", "attacks")}
    assert said == {"attack": "AutoAttack", "eps": "4/255", "eps_value": 4 / 255, "attacks": ["apgd-ce"]}
    assert len(result["outcomes"]) == 3
    assert "AutoAttack linf eps 4/255" in caplog.text


def test_validate_judges_the_images_that_were_held_out(trained):
    assert status("validate", "--ckpt_path", last(trained)) == 0
    (row,) = rows(trained / "validate")
    final = [row for row in rows(trained) if row["val/acc_pgd"]][-1]
    assert {key: row[key] for key in ("val/acc", "val/acc_pgd")} == {
        key: final[key] for key in ("val/acc", "val/acc_pgd")
    }


def test_predict_writes_every_sample_once(tiny, trained):
    assert status("predict", "--ckpt_path", last(trained)) == 0
    found = np.load(trained / "predict" / "predictions.npz")
    expected = np.load(Path(tiny).parent / "images" / "test.npz")["label"]
    assert found["index"].tolist() == list(range(22))
    assert found["label"].tolist() == expected.tolist()
    assert found["probabilities"].sum(1) == pytest.approx(np.ones(22), abs=1e-5)
    assert (found["prediction"] == found["probabilities"].argmax(1)).all()


def test_a_saved_config_builds_without_running(trained):
    """For notebooks: options of the commands are in the file, though only commands know them."""
    before = contents(trained)
    assert built("-c", trained / "config.yaml").model.model.num_classes == 3
    assert contents(trained) == before
