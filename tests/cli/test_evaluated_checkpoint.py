"""Evaluations use the given checkpoint, and never untrained weights by accident."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.cli_runs import status, write_experiment
from helpers.resume_helpers import content

import lightning_paf
from lightning_paf.cli.evaluated_checkpoint import arrange, evaluated_checkpoint, evaluated_weights
from lightning_paf.evaluation import EvaluationResult
from lightning_paf.loading import load_run
from lightning_paf.runs.weights_origin import WeightsOrigin
from lightning_paf.utils.discovery import modules_with
from lightning_paf.utils.hashing import weights_fingerprint

STEM = "pgd_linf_8-255"
RANDOM = "untrained (random weights)"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return Path(write_experiment(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """A run with `best.ckpt` of epoch 0 and `last.ckpt` of epoch 1."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    best = ["--checkpoint.monitor", "epoch", "--checkpoint.mode", "min", "--checkpoint.filename", "best"]
    assert status("fit", "-c", tiny, "--run", run, "--trainer.max_epochs", 2, *best) == 0
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy that a test can change; also a run that was moved."""
    return shutil.copytree(trained, tmp_path / "copy")


@pytest.fixture(scope="module")
def tested(trained, tmp_path_factory) -> Path:
    """A copy whose last and best checkpoints were tested; `run / test` is not changed."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("tested") / "run")
    for word in ("last", "best"):
        assert status("test", "--run", run, "--ckpt_path", word) == 0
    return run


def results(run: Path) -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in (run / "test").glob("*.json")}


def evaluated(run: Path) -> list[tuple[str, int | None]]:
    """Return checkpoint and step of every result of a run."""
    return [(found["checkpoint"]["file"], found["checkpoint"]["global_step"]) for found in results(run).values()]


def refusal(capsys, *words: str | Path) -> str:
    """Return the one-line error of a command."""
    assert status(*words) in (1, 2)
    output = capsys.readouterr().err
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if "error: " in line]
    return line


def filled(text: str, paths: dict[str, Path]) -> str:
    """Replace the names of paths."""
    for name, path in paths.items():
        text = re.sub(rf"\b{name}\b", str(path), text)
    return text


# ------------------------------------------------------------------ which checkpoint


ORDERS = {
    "--ckpt_path LAST -c CONFIG": True,
    "-c CONFIG --ckpt_path LAST": True,
    "--ckpt=LAST --conf=CONFIG": False,
    "--ckpt_path LAST": True,
    "--ckpt_path last -c CONFIG": False,
    "--ckpt_path auto --run RUN": False,
    "--run RUN --ckpt_path last -c TINY": False,
    "--ckpt_path last -c TINY -c CONFIG": True,
}


@pytest.mark.parametrize(("words", "old"), ORDERS.items())
def test_the_given_checkpoint_is_evaluated_in_any_order(words, old, run, tiny):
    if old:  # written by a version that saved the key
        config = run / "config.yaml"
        config.write_text(config.read_text() + f"ckpt_path: {run / 'checkpoints' / 'best.ckpt'}\n")
    paths = {"LAST": run / "checkpoints" / "last.ckpt", "CONFIG": run / "config.yaml", "RUN": run, "TINY": tiny}
    assert status("test", *filled(words, paths).split(), "--val_attack.evidence", "false") == 0
    assert evaluated(run) == [("last.ckpt", 8)]


def test_other_commands_evaluate_the_given_checkpoint(run):
    words = ["--ckpt_path", run / "checkpoints" / "last.ckpt", "-c", run / "config.yaml"]
    assert status("validate", *words) == status("predict", *words) == 0
    assert "last.ckpt (step 8, epoch 1)" in (run / "validate" / "metrics.csv").read_text()
    assert str(np.load(run / "predict" / "predictions.npz")["checkpoint"]) == "last.ckpt (step 8, epoch 1)"


def test_options_override_a_configuration_that_follows(run, tiny, tmp_path):
    words = ["--run", tmp_path / "mine", "--ckpt_path", run / "checkpoints" / "last.ckpt", "-c", run / "config.yaml"]
    assert status("test", *words) == 0
    assert evaluated(tmp_path / "mine") == [("last.ckpt", 8)]
    assert not results(run)
    words = ["fit", "--trainer.max_epochs", "7", "-c", str(tiny), "--model.attack.eps", "-8/255", "--print_config"]
    assert arrange(words) == ["fit", "--config", str(tiny), *words[1:3], *words[5:]]


def test_best_is_the_recorded_one_in_a_moved_run(trained, run, capsys):
    assert status("test", "-c", run / "config.yaml", "--ckpt_path", "best") == 0
    assert evaluated(run) == [("best.ckpt", 4)]
    assert not results(trained)
    (run / "checkpoints" / "best.ckpt").unlink()
    error = refusal(capsys, "test", "--ckpt_path", "best", "--run", run)
    assert f"{run} must hold a checkpoint recorded as best by a monitored ModelCheckpoint, but there is none" in error


def test_two_best_checkpoints_are_refused(run, capsys):
    last = run / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    state = {"monitor": "val/acc", "best_model_path": "elsewhere/last.ckpt", "dirpath": "elsewhere"}
    saved["callbacks"]["ModelCheckpoint{'monitor': 'val/acc'}"] = state
    torch.save(saved, last)
    error = refusal(capsys, "test", "--ckpt_path", "best", "--run", run)
    assert f"must mean one checkpoint, got {run}/checkpoints/best.ckpt, {last}" in error


def test_checkpoints_in_subfolders_are_found_but_not_those_of_nested_runs(run):
    inside = run / "checkpoints" / "epoch=1-val"
    inside.mkdir()
    (run / "checkpoints" / "last.ckpt").rename(inside / "acc=0.5.ckpt")
    nested = shutil.copytree(run, run / "again")
    saved = torch.load(nested / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save({**saved, "global_step": 1000}, nested / "checkpoints" / "best.ckpt")
    assert evaluated_checkpoint("test", "last", run, False) == str(inside / "acc=0.5.ckpt")
    assert status("test", "--ckpt_path", inside / "acc=0.5.ckpt") == 0
    assert evaluated(run) == [("acc=0.5.ckpt", 8)]


def test_the_only_checkpoint_can_hold_weights_only(run):
    (run / "checkpoints" / "best.ckpt").unlink()
    last = run / "checkpoints" / "last.ckpt"
    saved = torch.load(last, weights_only=True)
    kept = ("state_dict", "pytorch-lightning_version", "global_step", "epoch")
    torch.save({key: saved[key] for key in kept}, last)
    assert status("test", "--ckpt_path", "last", "--run", run) == 0
    assert evaluated(run) == [("last.ckpt", 8)]


def test_a_saved_configuration_names_no_checkpoint(trained, tmp_path):
    words = ["-c", trained / "config.yaml", "--ckpt_path", trained / "checkpoints" / "last.ckpt"]
    assert status("fit", *words, "--trainer.max_epochs", 3, "--run", tmp_path / "next") == 0
    assert "ckpt_path" not in yaml.safe_load((tmp_path / "next" / "config.yaml").read_text())


# ------------------------------------------------------------------ no result without trained weights


REFUSED = [
    ("COMMAND", "COMMAND needs a checkpoint, got none. Pass --ckpt_path FILE"),
    ("COMMAND -c CONFIG", "COMMAND needs a checkpoint, got none"),
    ("COMMAND --run RUN", "COMMAND needs a checkpoint, got none"),
    ("COMMAND -c CONFIG --ckpt_path null", "COMMAND needs a checkpoint, got none"),
    ("COMMAND -c CONFIG --ckpt_path hpc", "must be a file, last, auto or best, got hpc"),
    ("COMMAND -c CONFIG --ckpt_path lats", "got lats, which does not exist"),
    ("COMMAND --ckpt_path last", "--ckpt_path last needs a run folder, got none"),
    ("COMMAND -c TINY --ckpt_path best", "--ckpt_path best needs a run folder, got none"),
    ("COMMAND -c CONFIG --run EMPTY --ckpt_path last", "EMPTY must hold a checkpoint, but there is none"),
    ("COMMAND -c CONFIG --ckpt_path BEGUN", "must hold trained weights, got BEGUN of step 0"),
    ("COMMAND -c CONFIG --untrained --ckpt_path last", "must be passed without a checkpoint, got --ckpt_path last"),
    ("COMMAND -c CONFIG --model.init LAST", "COMMAND needs a checkpoint, got none"),
    ("COMMAND -c CONFIG --COMMAND.ckpt_path LAST", "error: "),
]
ANALYSES = (
    "channel-activations concentration corruptions denoised-images gradient-masking input-sensitivity "
    "jacobian-spectrum saliency targets uncertainty"
)
TOOLS = {
    **{f"analyze {name}": "--ckpt CKPT" for name in ANALYSES.split()},
    "analyze min-max": "--ckpt CKPT",
    "analyze ladder": "--ckpt CKPT --out OUT.npz",
    "analyze protection": "--ckpt CKPT --protected 0",
    "analyze zero-stability": "--ckpt CKPT --figure OUT.png",
    "certify": "CKPT --sigma 0.5",
    "curve": "--ckpt CKPT",
    "export": "--ckpt CKPT --out OUT",
    "mean_sparse": "CKPT --out OUT",
    "report": "RESULT --ckpt CKPT",
    "sanity_check": "--ckpt CKPT",
    "synthesis_report": "POOL --ckpt CKPT",
    "verify": "EVIDENCE --ckpt CKPT",
}
"""Options of every command that loads a checkpoint."""
TYPED = {name: f"{name.replace('_', '-')} -c CONFIG {words}" for name, words in TOOLS.items()}
CASES = [
    *((words.replace("COMMAND", "test"), error.replace("COMMAND", "test")) for words, error in REFUSED),
    *(
        (words.replace("COMMAND", name), error.replace("COMMAND", name))
        for name in ("validate", "predict")
        for words, error in (REFUSED[0], REFUSED[9])
    ),
    *((words.replace("CKPT", "best"), "got best, which does not exist") for words in TYPED.values()),
    *((words.replace("CKPT", "BEGUN"), "must hold trained weights") for words in TYPED.values()),
    *((f"{words} --untrained".replace("CKPT", "LAST"), "untrained") for words in TYPED.values()),
    *(
        (words.replace("--ckpt CKPT", ""), "--ckpt")
        for name, words in TYPED.items()
        if "--ckpt" in words and name not in ("report", "analyze zero-stability")
    ),
    ("synthesize --from BEGUN --out OUT.npz", "must hold trained weights"),
    ("certify EMPTY --sigma 0.5", "EMPTY must hold a checkpoint, but there is none"),
    ("report EMPTY", "There is no result in EMPTY"),
    ("compare EMPTY EMPTY", "There is no result in EMPTY"),
]


def test_the_cases_include_every_command_that_loads_a_checkpoint():
    package = Path(lightning_paf.__file__).parent
    tools = {path.stem for path in (package / "commands").glob("*.py") if "load_run(" in path.read_text()}
    analyses = {f"analyze {name}" for name in modules_with("analyze", package / "analysis")} - {"analyze logistic"}
    assert tools - {"analyze", "demo", "synthesize"} | analyses == set(TOOLS)


@pytest.fixture(scope="module")
def paths(tested, tiny, tmp_path_factory) -> dict[str, Path]:
    """A tested run with a checkpoint of step 0, and other paths of the cases."""
    folder = tmp_path_factory.mktemp("cases")
    run = shutil.copytree(tested, folder / "run")
    last, begun = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "begun.ckpt"
    torch.save({**torch.load(last, weights_only=True), "global_step": 0}, begun)
    (folder / "empty").mkdir()
    named = {"TINY": tiny, "RUN": run, "CONFIG": run / "config.yaml", "LAST": last, "BEGUN": begun}
    named |= {"EVIDENCE": run / "test" / f"{STEM}.evidence.safetensors", "RESULT": run / "test" / f"{STEM}.json"}
    return named | {"OUT": folder / "out", "EMPTY": folder / "empty"}


@pytest.mark.parametrize(("words", "error"), CASES)
def test_no_command_evaluates_untrained_weights(words, error, paths, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = content(paths["RUN"])
    assert filled(error, paths) in refusal(capsys, *filled(words, paths).split())
    assert not list(tmp_path.iterdir())
    assert content(paths["RUN"]) == before


def test_a_checkpoint_is_required_before_the_data_is_read(trained, tmp_path, capsys):
    error = refusal(capsys, "test", "-c", trained / "config.yaml", "--data.root", tmp_path / "nowhere")
    assert "test needs a checkpoint" in error


def test_a_tool_ignores_the_checkpoint_in_an_old_configuration(run):
    config, last = run / "config.yaml", run / "checkpoints" / "last.ckpt"
    config.write_text(config.read_text() + f"ckpt_path: {run / 'checkpoints' / 'best.ckpt'}\n")
    weights = torch.load(last, weights_only=True)["state_dict"]
    loaded = load_run(str(last), str(config)).module.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())


# ------------------------------------------------------------------ untrained on purpose


def test_results_of_untrained_weights_are_marked(run, caplog):
    assert status("test", "--untrained", "-c", run / "config.yaml") == 0
    assert status("test", "--ckpt_path", "last", "--run", run) == 0
    untrained = {name: found for name, found in results(run).items() if name != f"{STEM}.json"}
    ((name, found),) = untrained.items()
    assert re.fullmatch(rf"{STEM}-[0-9a-f]{{8}}\.json", name), "the plain name is reserved for trained weights"
    assert found["checkpoint"]["file"] == RANDOM
    assert RANDOM in (run / "test" / name).with_suffix(".html").read_text()
    assert RANDOM in (run / "test" / "metrics.csv").read_text()
    assert f"{RANDOM}. Written:" in caplog.text
    assert results(run)[f"{STEM}.json"]["checkpoint"]["file"] == "last.ckpt"
    assert status("predict", "--untrained", "--run", run) == 0
    (path,) = (run / "predict").glob("*.npz")
    assert path.name.startswith("predictions-")
    assert str(np.load(path)["checkpoint"]) == RANDOM


def test_starting_weights_from_a_file_are_named(run, tmp_path):
    words = ["--untrained", "-c", run / "config.yaml", "--model.init", run / "checkpoints" / "best.ckpt"]
    assert status("test", *words, "--run", tmp_path) == 0
    ((_, found),) = results(tmp_path).items()
    assert found["checkpoint"]["file"] == "untrained (weights of --model.init best.ckpt)"
    assert found["fingerprints"]["model"] == weights_fingerprint(load_run(run / "checkpoints" / "best.ckpt").model)


def test_pretrained_weights_are_named():
    net = {"class_path": "TimmNet", "init_args": {"name": "resnet18"}, "dict_kwargs": {"pretrained": True}}
    assert evaluated_weights(None, {"net": net}).file == "untrained (pretrained weights)"
    assert evaluated_weights(None, {"net": {**net, "dict_kwargs": {"pretrained": False}}}).file == RANDOM


# ------------------------------------------------------------------ several results in one folder


CHANGES = {
    "samples": ["--val_attack.test_examples", "5"],
    "steps": ["--val_attack.attack.steps", "3"],
    "attack": ["--val_attack.attack", "FGSM"],
    "seed": ["--val_attack.seed", "1"],
    "blocks": ["--val_attack.batch_size", "7"],
    "stop": ["--val_attack.stop", "HalfWidth", "--val_attack.stop.half_width", "0.4"],
    "normalisation": ["--model.normalize", "false"],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_evaluation_replaces_nothing(change, tested, tmp_path, caplog):
    run = shutil.copytree(tested, tmp_path / "run")
    before = content(run / "test")
    assert status("test", "--run", run, "--ckpt_path", "last", *change) == 0
    after = content(run / "test")
    assert all(before[name] == after[name] for name in before if name.startswith(STEM))
    new = {name for name in after.keys() - before.keys() if name.startswith(STEM)}
    (identity,) = {found["identity"][:8] for name, found in results(run).items() if name in new}
    assert new == {f"{STEM}-{identity}{end}" for end in (".json", ".html", ".evidence.safetensors")}
    assert f"{run}/test/{STEM}.json belongs to another evaluation and was kept" in caplog.text
    assert f"{run}/test/{STEM}-{identity}.evidence.safetensors" in caplog.text


def test_a_repeated_evaluation_has_the_same_names(tested):
    assert status("test", "--run", tested, "--ckpt_path", "last") == 0
    assert sorted(evaluated(tested)) == [("best.ckpt", 4), ("last.ckpt", 8)]
    with (tested / "test" / "metrics.csv").open() as table:
        checkpoints = [row["checkpoint"] for row in csv.DictReader(table)]
    names = ["last.ckpt (step 8, epoch 1)", "best.ckpt (step 4, epoch 0)"]
    assert checkpoints == [*names, names[0]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (f"{STEM}.json", '{"name": "pgd", "attack": {}, "verdicts": "1", "seconds": 0}'),
        (f"{STEM}.evidence.safetensors", "evidence"),
        (f"{STEM}.json", "[]"),
    ],
)
def test_files_of_unknown_identity_are_kept(name, text, run):
    (run / "test").mkdir()
    (run / "test" / name).write_text(text)
    assert status("test", "--run", run, "--ckpt_path", "last") == 0
    assert (run / "test" / name).read_text() == text
    (path,) = (run / "test").glob(f"{STEM}-*.json")
    assert EvaluationResult.load(path).weights == WeightsOrigin("last.ckpt", 8, 1)


def test_predictions_of_another_checkpoint_are_kept(run):
    for word in ("last", "best", "last"):
        assert status("predict", "--run", run, "--ckpt_path", word) == 0
    found = {path.name: str(np.load(path)["checkpoint"]) for path in (run / "predict").glob("*.npz")}
    assert found.pop("predictions.npz") == "last.ckpt (step 8, epoch 1)"
    assert list(found.values()) == ["best.ckpt (step 4, epoch 0)"]


def test_report_compare_and_status_name_the_checkpoints(tested, tmp_path, capsys):
    run = shutil.copytree(tested, tmp_path / "run")
    for path in (run / "test").glob("*.html"):
        path.unlink()
    assert status("report", run) == 0
    written = "".join(path.read_text() for path in (run / "test").glob("*.html"))
    assert all(name in written for name in ("last.ckpt (step 8, epoch 1)", "best.ckpt (step 4, epoch 0)"))
    (other,) = (run / "test").glob(f"{STEM}-*.json")
    capsys.readouterr()
    assert status("compare", run / "test" / f"{STEM}.json", other) == 0
    assert f"B: {other}, best.ckpt (step 4, epoch 0)" in capsys.readouterr().out
    assert status("status", run) == 0
    output = capsys.readouterr().out
    assert "PGD linf 8/255, npz, last.ckpt" in output
    assert "PGD linf 8/255, npz, best.ckpt" in output


@pytest.mark.parametrize("slot", ["val_attack", "autoattack"])
def test_a_name_that_is_a_path_is_refused_in_one_line(slot, trained, capsys):
    words = [f"--{slot}", "RobustEval", f"--{slot}.attack", "FGSM", f"--{slot}.name", "../../evil"]
    error = refusal(capsys, "test", "--run", trained, "--ckpt_path", "last", *words)
    assert "got '../../evil'. Pass --SLOT.name autoattack." in error


@pytest.mark.parametrize("command", ["fit", "test"])
def test_two_evaluations_with_one_name_are_refused(command, tiny, run, tmp_path, capsys):
    """With one name, the metric would be the mean of both."""
    second = ["--autoattack", "RobustEval", "--autoattack.attack", "FGSM", "--autoattack.attack.eps", "2/255"]
    where = ["-c", tiny, "--run", tmp_path / "new"] if command == "fit" else ["--run", run, "--ckpt_path", "last"]
    error = refusal(capsys, command, *where, *second)
    assert "Evaluations must have different names, got 2 with name=pgd. Pass --SLOT.name pgd2" in error
    assert status(command, *where, *second, "--autoattack.name", "pgd2") == 0
