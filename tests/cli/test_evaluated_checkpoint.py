"""Evaluations are about the checkpoint that was typed, never about weights that nobody has trained."""

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

import lightning_paf
from lightning_paf.attacks import PGD
from lightning_paf.callbacks import RobustEval
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
    """A run with `best.ckpt` of epoch 0, whose accuracy nothing later exceeds, and `last.ckpt` of epoch 1."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    best = ["--checkpoint.monitor", "epoch", "--checkpoint.mode", "min", "--checkpoint.filename", "best"]
    assert status("fit", "-c", tiny, "--run", run, "--trainer.max_epochs", 2, *best) == 0
    return run


@pytest.fixture
def run(trained, tmp_path) -> Path:
    """A copy that a test may change; it is also a run that was moved."""
    return shutil.copytree(trained, tmp_path / "copy")


def results(run: Path) -> dict[str, dict]:
    return {path.name: json.loads(path.read_text()) for path in (run / "test").glob("*.json")}


def evaluate(run: Path) -> list[tuple[str, int | None]]:
    """Checkpoint and step of every result of a run."""
    return [(content["checkpoint"]["file"], content["checkpoint"]["global_step"]) for content in results(run).values()]


def refused(capsys, *words: str | Path) -> str:
    """The one line with which a command refuses its options."""
    assert status(*words) in (1, 2)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    (line,) = [line for line in said.err.splitlines() if "error: " in line]
    return line


# ------------------------------------------------------------------ which checkpoint


ORDERS = [
    "--ckpt_path LAST -c CONFIG",
    "-c CONFIG --ckpt_path LAST",
    "--ckpt_path=LAST --config=CONFIG",
    "--ckpt LAST --conf CONFIG",
    "--ckpt_path LAST",
    "--ckpt_path last -c CONFIG",
    "--ckpt_path auto --run RUN",
    "--run RUN --ckpt_path last -c TINY",
    "--ckpt_path last -c TINY -c CONFIG",
]


@pytest.mark.parametrize("words", ORDERS)
@pytest.mark.parametrize("old", [False, True])
def test_the_typed_checkpoint_is_evaluated_whatever_the_order(words, old, run, tiny):
    if old:  # written by a version that saved the key
        config = run / "config.yaml"
        config.write_text(config.read_text() + f"ckpt_path: {run / 'checkpoints' / 'best.ckpt'}\n")
    places = {"LAST": run / "checkpoints" / "last.ckpt", "CONFIG": run / "config.yaml", "RUN": run, "TINY": tiny}
    for name, place in places.items():
        words = re.sub(rf"\b{name}\b", str(place), words)
    assert status("test", *words.split()) == 0
    assert evaluate(run) == [("last.ckpt", 8)]


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_other_commands_evaluate_the_typed_checkpoint_too(command, run):
    assert status(command, "--ckpt_path", run / "checkpoints" / "last.ckpt", "-c", run / "config.yaml") == 0
    if command == "validate":
        assert "last.ckpt (step 8, epoch 1)" in (run / "validate" / "metrics.csv").read_text()
    else:
        assert str(np.load(run / "predict" / "predictions.npz")["checkpoint"]) == "last.ckpt (step 8, epoch 1)"


def test_a_typed_run_wins_over_a_configuration_that_follows(run, tmp_path):
    words = ["--run", tmp_path / "mine", "--ckpt_path", run / "checkpoints" / "last.ckpt", "-c", run / "config.yaml"]
    assert status("test", *words) == 0
    assert evaluate(tmp_path / "mine") == [("last.ckpt", 8)]
    assert not results(run)


def test_a_typed_option_wins_over_a_configuration_that_follows(tiny):
    words = ["fit", "--trainer.max_epochs", "7", "-c", str(tiny), "--model.attack.eps", "-8/255", "--print_config"]
    arranged = arrange(words)
    assert arranged[:3] == ["fit", "--config", str(tiny)]
    assert arranged[3:] == [*words[1:3], *words[5:]]


def test_best_is_the_one_that_was_recorded_in_a_run_that_was_moved(trained, run):
    assert status("test", "-c", run / "config.yaml", "--ckpt_path", "best") == 0
    assert evaluate(run) == [("best.ckpt", 4)]
    assert not results(trained)


def test_best_that_the_copy_lacks_is_not_taken_from_the_original(run, capsys):
    (run / "checkpoints" / "best.ckpt").unlink()
    assert f"recorded as best in {run}, but there is none" in refused(
        capsys, "test", "--ckpt_path", "best", "--run", run
    )


def test_two_best_checkpoints_are_named(run, capsys):
    last = run / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    state = {"monitor": "val/acc", "best_model_path": "elsewhere/last.ckpt", "dirpath": "elsewhere"}
    content["callbacks"]["ModelCheckpoint{'monitor': 'val/acc'}"] = state
    torch.save(content, last)
    said = refused(capsys, "test", "--ckpt_path", "best", "--run", run)
    assert f"must mean one checkpoint, got {run}/checkpoints/best.ckpt, {last}" in said


def test_words_look_into_folders_of_the_run_and_not_into_runs_below(run, tmp_path, capsys):
    inside = run / "checkpoints" / "epoch=1-val"
    inside.mkdir()
    (run / "checkpoints" / "last.ckpt").rename(inside / "acc=0.5.ckpt")
    below = shutil.copytree(run, run / "again")
    content = torch.load(below / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save({**content, "global_step": 1000}, below / "checkpoints" / "best.ckpt")
    assert evaluated_checkpoint("test", "last", run, False) == str(inside / "acc=0.5.ckpt")
    assert status("test", "--ckpt_path", inside / "acc=0.5.ckpt") == 0
    assert evaluate(run) == [("acc=0.5.ckpt", 8)]


def test_the_newest_checkpoint_may_hold_weights_alone(run):
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.unlink() if path.stem == "best" else keep_weights(path)
    assert status("test", "--ckpt_path", "last", "--run", run) == 0
    assert evaluate(run) == [("last.ckpt", 8)]


def keep_weights(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    kept = ("state_dict", "pytorch-lightning_version", "global_step", "epoch")
    torch.save({key: content[key] for key in kept}, path)


def test_the_saved_configuration_names_no_checkpoint(trained, tmp_path):
    words = ["-c", trained / "config.yaml", "--ckpt_path", trained / "checkpoints" / "last.ckpt"]
    assert status("fit", *words, "--trainer.max_epochs", 3, "--run", tmp_path / "next") == 0
    assert "ckpt_path" not in yaml.safe_load((tmp_path / "next" / "config.yaml").read_text())


# ------------------------------------------------------------------ no checkpoint, no number


NOTHING = [
    ("COMMAND", "COMMAND needs a checkpoint, got none. Pass --ckpt_path FILE"),
    ("COMMAND -c CONFIG", "COMMAND needs a checkpoint, got none"),
    ("COMMAND -c TINY", "COMMAND needs a checkpoint, got none"),
    ("COMMAND --run RUN", "COMMAND needs a checkpoint, got none"),
    ("COMMAND -c CONFIG --ckpt_path null", "COMMAND needs a checkpoint, got none"),
    ("COMMAND -c CONFIG --ckpt_path hpc", "must be a file, last, auto or best, got hpc"),
    ("COMMAND -c CONFIG --ckpt_path lats", "there is no file lats"),
    ("COMMAND --ckpt_path last", "--ckpt_path last is resolved in a run folder, got none"),
    ("COMMAND -c TINY --ckpt_path best", "--ckpt_path best is resolved in a run folder, got none"),
    ("COMMAND -c CONFIG --run EMPTY --ckpt_path last", "names a checkpoint in EMPTY, but there is none"),
    ("COMMAND -c CONFIG --run EMPTY --ckpt_path best", "names a checkpoint in EMPTY, but there is none"),
    ("COMMAND -c CONFIG --ckpt_path BEGUN", "must hold trained weights to be evaluated, got BEGUN of step 0"),
    ("COMMAND -c CONFIG --untrained --ckpt_path last", "takes no checkpoint, got --ckpt_path last"),
    ("COMMAND -c CONFIG --model.init LAST", "COMMAND needs a checkpoint, got none"),
    ("COMMAND -c CONFIG --COMMAND.ckpt_path LAST", "error: "),
]
EVALUATING = ("test", "validate", "predict")
TOOLS = {
    "certify": "CKPT --sigma 0.5",
    "analyze concentration": "--ckpt CKPT",
    "curve": "--ckpt CKPT",
    "export": "--ckpt CKPT --out OUT",
    "analyze ladder": "--ckpt CKPT --out OUT.npz",
    "analyze min-max": "--ckpt CKPT",
    "analyze protection": "--ckpt CKPT --protected 0",
    "report": "RESULT --ckpt CKPT",
    "analyze saliency": "--ckpt CKPT",
    "sanity_check": "--ckpt CKPT",
    "verify": "EVIDENCE --ckpt CKPT",
}
"""Options of every tool that loads a checkpoint; those without one are filled in by the walk."""
NO_FILE = [("last", "there is no file last"), ("best", "there is no file best"), ("BEGUN", "must hold trained weights")]
WALK = [
    *(
        (words.replace("COMMAND", name), said.replace("COMMAND", name))
        for name in EVALUATING
        for words, said in NOTHING
    ),
    *(
        (f"{name.replace('_', '-')} {words} -c CONFIG".replace("CKPT", ckpt), said)
        for name, words in TOOLS.items()
        for ckpt, said in NO_FILE
    ),
    *(
        (f"{name.replace('_', '-')} -c CONFIG {words} --untrained".replace("CKPT", "LAST"), "untrained")
        for name, words in TOOLS.items()
    ),
    *(
        (f"{name.replace('_', '-')} -c CONFIG {words}".replace("--ckpt CKPT", ""), "--ckpt")
        for name, words in TOOLS.items()
        if "--ckpt" in words and name != "report"
    ),
    ("certify EMPTY --sigma 0.5", "there is no file EMPTY"),
    ("report EMPTY", "There is no result in EMPTY"),
    ("compare EMPTY EMPTY", "There is no result in EMPTY"),
]


def test_the_walk_knows_every_tool_that_loads_a_checkpoint():
    package = Path(lightning_paf.__file__).parent
    tools = {path.stem for path in (package / "commands").glob("*.py") if "load_run(" in path.read_text()}
    analyses = {f"analyze {name}" for name in modules_with("analyze", package / "analysis")} - {"analyze logistic"}
    assert tools - {"analyze"} | analyses == set(TOOLS)


@pytest.fixture(scope="module")
def places(trained, tiny, tmp_path_factory) -> dict[str, Path]:
    """A tested copy of the run, a checkpoint of step 0 in it, and other paths of the walk."""
    folder = tmp_path_factory.mktemp("walk")
    run = shutil.copytree(trained, folder / "run")
    last, begun = run / "checkpoints" / "last.ckpt", run / "checkpoints" / "begun.ckpt"
    assert status("test", "--ckpt_path", last) == 0
    torch.save({**torch.load(last, weights_only=True), "global_step": 0}, begun)
    (folder / "empty").mkdir()
    evidence = run / "test" / f"{STEM}.evidence.safetensors"
    return {
        "TINY": tiny,
        "RUN": run,
        "CONFIG": run / "config.yaml",
        "LAST": last,
        "BEGUN": begun,
        "OUT": folder / "out",
    } | {"EVIDENCE": evidence, "RESULT": run / "test" / f"{STEM}.json", "EMPTY": folder / "empty"}


@pytest.mark.parametrize(("words", "said"), WALK)
def test_no_command_gives_a_number_without_trained_weights(words, said, places, tmp_path, monkeypatch, capsys):
    """No checkpoint, one of step 0, words, and a typed configuration in any order."""
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in places["RUN"].rglob("*") if path.is_file()}
    for name, place in places.items():
        words, said = (re.sub(rf"\b{name}\b", str(place), text) for text in (words, said))
    assert said in refused(capsys, *words.split())
    assert not list(tmp_path.iterdir())
    assert {path: path.read_bytes() for path in places["RUN"].rglob("*") if path.is_file()} == before


def test_refusals_come_before_the_data_is_read(trained, tmp_path, capsys):
    said = refused(capsys, "test", "-c", trained / "config.yaml", "--data.root", tmp_path / "nowhere")
    assert "test needs a checkpoint" in said


def test_a_tool_loads_the_typed_checkpoint_whatever_an_old_configuration_names(run):
    config, last = run / "config.yaml", run / "checkpoints" / "last.ckpt"
    config.write_text(config.read_text() + f"ckpt_path: {run / 'checkpoints' / 'best.ckpt'}\n")
    weights = torch.load(last, weights_only=True)["state_dict"]
    loaded = load_run(last, config).module.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())


# ------------------------------------------------------------------ untrained on purpose


def test_untrained_weights_are_evaluated_on_purpose_and_say_so(run, caplog):
    assert status("test", "--untrained", "-c", run / "config.yaml") == 0
    assert status("test", "--ckpt_path", "last", "--run", run) == 0
    untrained = {name: content for name, content in results(run).items() if name != f"{STEM}.json"}
    ((name, content),) = untrained.items()
    assert re.fullmatch(rf"{STEM}-[0-9a-f]{{8}}\.json", name), "the plain name is left to a trained one"
    assert content["checkpoint"]["file"] == RANDOM
    assert RANDOM in (run / "test" / name).with_suffix(".html").read_text()
    assert RANDOM in (run / "test" / "metrics.csv").read_text()
    assert f"{RANDOM}. Written:" in caplog.text
    assert results(run)[f"{STEM}.json"]["checkpoint"]["file"] == "last.ckpt"


def test_untrained_predictions_never_get_the_plain_name(run):
    assert status("predict", "--untrained", "--run", run) == 0
    (path,) = (run / "predict").glob("*.npz")
    assert path.name.startswith("predictions-")
    assert str(np.load(path)["checkpoint"]) == RANDOM


def test_starting_weights_from_a_file_are_named(run, tmp_path):
    words = ["--untrained", "-c", run / "config.yaml", "--model.init", run / "checkpoints" / "best.ckpt"]
    assert status("test", *words, "--run", tmp_path) == 0
    ((_, content),) = results(tmp_path).items()
    assert content["checkpoint"]["file"] == "untrained (weights of --model.init best.ckpt)"
    assert content["fingerprints"]["model"] == weights_fingerprint(load_run(run / "checkpoints" / "best.ckpt").model)


def test_pretrained_weights_are_named():
    net = {"class_path": "TimmNet", "init_args": {"name": "resnet18"}, "dict_kwargs": {"pretrained": True}}
    assert evaluated_weights(None, {"net": net}).file == "untrained (pretrained weights)"
    assert evaluated_weights(None, {"net": {**net, "dict_kwargs": {"pretrained": False}}}).file == RANDOM


# ------------------------------------------------------------------ results beside each other


def files(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "test").glob(f"{STEM}*")}


CHANGES = {
    "checkpoint": ["--ckpt_path", "best"],
    "samples": ["--val_attack.test_examples", "5"],
    "steps": ["--val_attack.attack.steps", "3"],
    "attack": ["--val_attack.attack", "FGSM"],
    "seed": ["--val_attack.seed", "1"],
    "blocks": ["--val_attack.batch_size", "7"],
    "stop": ["--val_attack.stop", "HalfWidth", "--val_attack.stop.half_width", "0.4"],
    "normalisation": ["--model.normalize", "false"],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_evaluation_replaces_nothing(change, run, caplog):
    base = ["test", "--run", run, "--ckpt_path", "last"]
    assert status(*base) == 0
    first = files(run)
    assert set(first) == {f"{STEM}.json", f"{STEM}.html", f"{STEM}.evidence.safetensors"}
    caplog.clear()
    assert status(*base, *change) == 0
    both = files(run)
    assert first.items() <= both.items()
    identity = next(content["identity"] for name, content in results(run).items() if name != f"{STEM}.json")
    assert set(both) - set(first) == {
        f"{STEM}-{identity[:8]}{end}" for end in (".json", ".html", ".evidence.safetensors")
    }
    assert f"{run}/test/{STEM}.json belongs to another evaluation and was kept" in caplog.text
    assert f"{run}/test/{STEM}-{identity[:8]}.evidence.safetensors" in caplog.text


def test_the_same_evaluation_again_has_the_same_names(run, caplog):
    for _ in range(2):
        for word in ("last", "best"):
            assert status("test", "--run", run, "--ckpt_path", word) == 0
    assert sorted(evaluate(run)) == [("best.ckpt", 4), ("last.ckpt", 8)]
    rows = list(csv.DictReader((run / "test" / "metrics.csv").open()))
    assert [row["checkpoint"] for row in rows] == ["last.ckpt (step 8, epoch 1)", "best.ckpt (step 4, epoch 0)"] * 2


@pytest.mark.parametrize("lies_there", ["old result", "evidence alone", "no JSON"])
def test_results_of_unknown_identity_are_kept(lies_there, run):
    (run / "test").mkdir()
    old = {
        "old result": (f"{STEM}.json", '{"name": "pgd", "attack": {}, "verdicts": "1", "seconds": 0}'),
        "evidence alone": (f"{STEM}.evidence.safetensors", "evidence"),
        "no JSON": (f"{STEM}.json", "[]"),
    }[lies_there]
    (run / "test" / old[0]).write_text(old[1])
    assert status("test", "--run", run, "--ckpt_path", "last") == 0
    assert (run / "test" / old[0]).read_text() == old[1]
    (path,) = (run / "test").glob(f"{STEM}-*.json")
    assert EvaluationResult.load(path).weights == WeightsOrigin("last.ckpt", 8, 1)


def test_predictions_of_another_checkpoint_are_kept(run):
    for word in ("last", "best", "last"):
        assert status("predict", "--run", run, "--ckpt_path", word) == 0
    found = {path.name: str(np.load(path)["checkpoint"]) for path in (run / "predict").glob("*.npz")}
    assert found.pop("predictions.npz") == "last.ckpt (step 8, epoch 1)"
    assert list(found.values()) == ["best.ckpt (step 4, epoch 0)"]


def test_reports_of_several_checkpoints_are_made_again_each_with_its_own(run, capsys):
    for word in ("last", "best"):
        assert status("test", "--run", run, "--ckpt_path", word) == 0
    assert status("test", "--run", run, "--untrained") == 0
    for path in (run / "test").glob("*.html"):
        path.unlink()
    assert status("report", run) == 0
    written = "".join(path.read_text() for path in (run / "test").glob("*.html"))
    assert all(name in written for name in ("last.ckpt (step 8, epoch 1)", "best.ckpt (step 4, epoch 0)", RANDOM))


def test_comparison_and_status_name_the_checkpoints(run, capsys):
    for word in ("last", "best"):
        assert status("test", "--run", run, "--ckpt_path", word) == 0
    (other,) = (run / "test").glob(f"{STEM}-*.json")
    assert status("compare", run / "test" / f"{STEM}.json", other) == 0
    assert f"B: {other}, best.ckpt (step 4, epoch 0)" in capsys.readouterr().out
    assert status("status", run) == 0
    said = capsys.readouterr().out
    assert "PGD linf 8/255, last.ckpt" in said
    assert "PGD linf 8/255, best.ckpt" in said


# ------------------------------------------------------------------ names


BAD_NAMES = ["../../evil", "a/b", "", ".hidden", "..", "a b", "a\\b", "x" * 65, "a\n"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_is_no_path(name):
    with pytest.raises(ValueError, match="name must be 1 to 64 letters, digits"):
        RobustEval(PGD(), name)


@pytest.mark.parametrize("slot", ["val_attack", "autoattack"])
def test_a_name_that_is_a_path_is_refused_in_one_line(slot, run, capsys):
    words = [f"--{slot}", "RobustEval", f"--{slot}.attack", "FGSM", f"--{slot}.name", "../../evil"]
    said = refused(capsys, "test", "--run", run, "--ckpt_path", "last", *words)
    assert "got '../../evil'. Pass --SLOT.name autoattack." in said


@pytest.mark.parametrize("command", ["fit", "test"])
def test_two_evaluations_of_one_name_are_refused(command, tiny, run, tmp_path, capsys):
    """The metric would be the mean of both."""
    second = ["--autoattack", "RobustEval", "--autoattack.attack", "FGSM", "--autoattack.attack.eps", "2/255"]
    where = ["-c", tiny, "--run", tmp_path / "new"] if command == "fit" else ["--run", run, "--ckpt_path", "last"]
    said = refused(capsys, command, *where, *second)
    assert "Evaluations must have different names, got 2 with name=pgd. Pass --SLOT.name pgd2" in said
    assert status(command, *where, *second, "--autoattack.name", "pgd2") == 0
