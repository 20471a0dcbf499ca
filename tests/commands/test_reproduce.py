"""`reproduce` with an experiment of two variants that takes seconds."""

import contextlib
import io
import json
import logging
import re
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.fakes import CONFIGS
from helpers.plateau import EPS, plateau_samples, shorten

from lightning_paf.attacks import PGD, AutoAttack
from lightning_paf.commands import reproduce
from lightning_paf.experiments import Claim, Experiment, Variant, find_experiment, run
from lightning_paf.experiments.experiment import Measurement
from lightning_paf.experiments.page import section

EXPERIMENT = Experiment(
    "An experiment for the test",
    (
        Variant("natural", ("--model.objective", "Natural")),
        Variant("tuned", ("--model.init", "{natural}", "--trainer.max_epochs", "2")),
    ),
    (Claim("Tuning helps |w|", "tuned", "natural", "pgd", -9.0), Claim("The same", "tuned", "natural", "clean", -9.0)),
    ("--model.net.width", "4", "--data.train_examples", "128", "--model.attack.steps", "1"),
    {"constant": lambda run, x, y: 0.5, "pairs": lambda run, x, y: torch.ones(2 * len(y))},
    eps=0.02,  # the model is robust on some images only
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The experiment, run twice in this process: folder, output, and times of the results after each run."""
    folder, printed = tmp_path_factory.mktemp("experiment"), io.StringIO()
    words = ["small", "--budget", "smoke", "--out", str(folder / "out"), "--json", str(folder / "kept" / "small.json")]
    words += ["--search-precision", "bf16"]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        for module in (reproduce, run):
            patch.setattr(module, "find_experiment", lambda name: EXPERIMENT)
        patch.setattr(reproduce, "ProcessPoolExecutor", InThisProcess)
        patch.setattr(run, "AutoAttack", partial(AutoAttack, version="custom", attacks=["apgd-ce"]))
        patch.chdir(CONFIGS.parent)
        assert reproduce.main(words) == 0
        files = sorted((folder / "out").rglob("measured.json"))
        before = [file.stat().st_mtime_ns for file in files]
        assert reproduce.main(words) == 0
        again = [file.stat().st_mtime_ns for file in files]
    return SimpleNamespace(folder=folder, printed=printed.getvalue(), before=before, again=again)


class InThisProcess:
    """Executor that runs each task when it is submitted."""

    def __init__(self, *arguments, **options) -> None:
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass

    def submit(self, function, argument):
        future = Future()
        future.set_result(function(argument))
        return future


def test_variants_are_trained_evaluated_and_compared(done):
    found = json.loads((done.folder / "kept" / "small.json").read_text())
    assert set(found["variants"]) == {"natural", "tuned"}
    assert set(found["variants"]["tuned"]) == {"clean", "pgd", "autoattack", "constant", "pairs"}
    assert [claim["conclusion"] for claim in found["claims"]] == ["reproduced", "reproduced"]
    assert "Tuning helps |w|" in done.printed
    assert "fit -c" in (done.folder / "out" / "small-smoke" / "tuned-1" / "log.txt").read_text()


def test_the_precision_of_the_search_is_an_option(done):
    found = json.loads((done.folder / "kept" / "small.json").read_text())
    assert found["command"].endswith("--search-precision bf16")
    identities = [path.read_text() for path in (done.folder / "out").rglob("state/*/*.json")]
    assert identities
    assert all(json.loads(text)["precision"] == "bf16" for text in identities)


@pytest.mark.filterwarnings("ignore::UserWarning")  # two classes, zero gradients
def test_strong_is_measured_in_the_evaluation_of_autoattack(tmp_path, monkeypatch):
    shorten(monkeypatch)
    monkeypatch.setattr(run, "margin_pgd", lambda eps: PGD(eps, step_size=eps / 2, steps=5))
    net, samples = plateau_samples()
    monkeypatch.setattr(run, "load_run", lambda *given: SimpleNamespace(model=net, samples=lambda: samples))
    experiment = Experiment("", EXPERIMENT.variants, (), eps=EPS)

    def found(**options):
        task = run.Task("small", "natural", 0, tmp_path, Path(), (), 4, **options)
        return {
            name: values.tolist() for name, values in run._evaluate(task, experiment, EXPERIMENT.variants[0]).items()
        }

    standard, strong = found(), found(strong=True)
    assert standard["autoattack"] == [True, False, True, False]
    assert strong == standard | {"strong": [False, False, True, False]}
    assert len(list((tmp_path / "natural-0" / "state").glob("autoattack*"))) == 2


def test_only_the_option_strong_changes_the_settings_of_finished_work(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "find_experiment", lambda name: EXPERIMENT)
    monkeypatch.setattr(run, "_command", lambda words: None)
    monkeypatch.setattr(run, "_evaluate", lambda task, *_: evaluations.append(task.strong) or {"clean": [1]})
    evaluations, settings = [], tmp_path / "natural-0" / "settings.json"
    for strong in (False, False, True, True):
        run.perform(
            run.Task("small", "natural", 0, tmp_path, CONFIGS / "experiments" / "digits.yaml", (), 8, strong=strong)
        )
        assert ("strong" in json.loads(settings.read_text())) == strong
    assert evaluations == [False, True]


def test_a_page_says_where_strong_changes_the_order():
    numbers = {"ReLU": {"autoattack": [0.5, 0.6], "strong": [0.5, 0.5]}, "SiLU": {"autoattack": [0.5], "strong": [0.5]}}
    result = {"variants": numbers, "plain": [], "claims": [], "method": "m", "title": "t", "seeds": 2, "note": ""}
    result |= {"eps": 0.2, "examples": 10, "machine": "a machine", "shown": []}
    lines = section(result, Path("folder"))
    assert "| variant | autoattack | strong |" in lines
    assert "Strong AutoAttack changes the order of ReLU and SiLU." in lines
    for of in numbers.values():
        del of["strong"]
    assert not any("order" in line for line in section(result, Path("folder")))


def test_finished_work_is_kept(done):
    assert len(done.before) == 4
    assert done.again == done.before


def test_a_task_starts_when_its_dependencies_are_finished(monkeypatch):
    """The tasks have different durations: the last one that was started always finishes first."""
    seen = []

    class Pool(InThisProcess):
        def submit(self, function, task):
            seen.append(("started", task.variant, task.seed))
            return Future()

    def wait(running, return_when):
        future, task = list(running.items())[-1]
        seen.append(("finished", task.variant, task.seed))
        future.set_result(None)
        return SimpleNamespace(done={future})

    monkeypatch.setattr(reproduce, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(reproduce, "wait", wait)
    tasks = [SimpleNamespace(variant=variant, seed=seed) for seed in (0, 1) for variant in ("natural", "tuned")]
    reproduce._perform(tasks, EXPERIMENT, jobs=2)
    started = [entry for entry in seen if entry[0] == "started"]
    assert started[:2] == [("started", "natural", 0), ("started", "natural", 1)]
    assert len(started) == 4
    for seed in (0, 1):
        assert seen.index(("finished", "natural", seed)) < seen.index(("started", "tuned", seed))
    assert seen.index(("started", "tuned", 1)) < seen.index(("finished", "natural", 0)), "seeds are independent"


def test_a_logger_of_one_task_writes_to_the_log_of_the_next(tmp_path):
    logger, handlers = logging.getLogger("of a task"), []
    for number in (1, 2):
        with run._into(tmp_path / f"{number}.txt"):
            handlers = handlers or [logging.StreamHandler()]
            logger.handlers = handlers
            logger.error("task %d", number)
    assert [(tmp_path / f"{number}.txt").read_text() for number in (1, 2)] == ["task 1\n", "task 2\n"]


def test_other_settings_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "find_experiment", lambda name: EXPERIMENT)
    monkeypatch.setattr(run, "_command", lambda words: trained.append(words))
    monkeypatch.setattr(run, "_evaluate", lambda task, experiment, variant: {"clean": [next(answers)]})
    config, answers, trained = CONFIGS / "experiments" / "digits.yaml", iter(range(9)), []

    def clean(*options: str, examples: int = 8) -> float:
        task = run.Task("small", "natural", 0, tmp_path, config, options, examples)
        run.perform(task)
        return run.measured(task)["clean"].item()

    assert [clean(), clean(), clean(examples=9), clean(examples=9)] == [0, 0, 1, 1]
    assert len(trained) == 1, "the same training, evaluated in two ways"
    assert clean("--trainer.max_epochs", "1") == 2
    assert len(trained) == 2


def test_chosen_variants_come_with_those_that_they_need_and_their_claims():
    paf = find_experiment("paf")
    assert reproduce._chosen(paf, None) is paf
    some = reproduce._chosen(paf, ["PSSiLU", "ReLU"])
    assert [variant.name for variant in some.variants] == ["ReLU", "PSSiLU"]
    assert {claim.text for claim in some.claims} >= {"a) PSSiLU is more robust than ReLU"}
    assert all({variant for variant, _ in claim.sides} <= {"PSSiLU", "ReLU"} for claim in some.claims)
    assert "only 2 of 18 variants" in some.title
    assert len(reproduce._chosen(EXPERIMENT, ["tuned"]).variants) == 2
    with pytest.raises(ValueError, match=r"--variants must be among natural, tuned, got tune\. Pass some of them"):
        reproduce._chosen(EXPERIMENT, ["tune"])


def test_trainings_of_a_configuration_have_their_own_folder(tmp_path):
    def folder(*words: str) -> str:
        return reproduce._folder(reproduce._parse(["paf", "--out", str(tmp_path), *words])).name

    assert folder() == "paf"
    assert folder("--config", "experiments/cifar10_small", "--budget", "smoke") == "paf-cifar10_small-smoke"


def test_a_second_source_is_made_once_and_only_for_the_default_configuration(tmp_path, monkeypatch):
    experiment = Experiment("", EXPERIMENT.variants, (), pool=("synthesize", "--out", "{pool}"))
    made = []
    monkeypatch.setattr("lightning_paf.__main__.main", lambda words: made.append(words) or Path(words[-1]).touch())

    def words(*typed: str) -> list[str]:
        return reproduce._data(reproduce._parse(["paf", *typed]), experiment, tmp_path)

    pool = str(tmp_path / "pool.npz")
    assert words() == words() == ["--data.synthetic", pool]
    assert made == [["synthesize", "--out", pool]]
    assert words("--config", "other") == []
    assert words("--data.synthetic", "mine.npz") == ["--data.synthetic", "mine.npz"]


def test_the_command_of_a_result_has_no_paths_of_data():
    typed = ["paf", "--data.root", "/private", "--examples", "9", "--config", "experiments/cifar10_small"]
    assert reproduce._typed(reproduce._parse(typed), 5) == (
        "lightning-paf reproduce paf --budget cpu --seeds 5 --config experiments/cifar10_small --data.root ROOT "
        "--examples 9"
    )


def test_a_failed_task_is_reported_in_one_line(tmp_path, monkeypatch, capsys):
    def fail(words):
        raise RuntimeError("lightning-paf fit ended with status 1.")

    for module in (reproduce, run):
        monkeypatch.setattr(module, "find_experiment", lambda name: EXPERIMENT)
    monkeypatch.setattr(run, "_command", fail)
    monkeypatch.setattr(reproduce, "ProcessPoolExecutor", Failing)
    monkeypatch.chdir(CONFIGS.parent)
    assert reproduce.main(["small", "--out", str(tmp_path)]) == 1
    assert re.search(r"error: natural, seed \d: lightning-paf fit ended with .*\. Read ", capsys.readouterr().err)
    assert not list(tmp_path.rglob("trained"))


class Failing(InThisProcess):
    """Executor whose futures hold the error of a task."""

    def shutdown(self, cancel_futures):
        pass

    def submit(self, function, argument):
        future = Future()
        try:
            future.set_result(function(argument))
        except RuntimeError as error:
            future.set_exception(error)
        return future


@pytest.mark.parametrize("option", ["--seeds", "--examples", "--jobs"])
@pytest.mark.parametrize("number", ["0", "-3"])
def test_numbers_that_allow_no_comparison_are_refused(option, number, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "find_experiment", lambda name: EXPERIMENT)
    monkeypatch.chdir(CONFIGS.parent)
    with pytest.raises(ValueError, match=rf"argument {option}: must be at least \d, got {number}"):
        reproduce.main(["small", option, number, "--out", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="argument --seeds: must be at least 2, got 1"):
        reproduce.main(["small", "--seeds", "1", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_number_of_images_is_not_that_of_a_metric_with_more_values(done):
    measured = json.loads(next((done.folder / "out").rglob("measured.json")).read_text())
    found = json.loads((done.folder / "kept" / "small.json").read_text())
    assert found["examples"] == len(measured["clean"]) == len(measured["pairs"]) / 2


def test_an_experiment_states_how_its_runs_are_measured(tmp_path, monkeypatch, capsys):
    """One score per image and seed instead of accuracies."""
    measurement = Measurement("denoiser", ("psnr",), lambda values, n: {"psnr": values[:n]}, "PSNR in dB")
    claims = (Claim("a exceeds b", "a", "b", "psnr", by=0.9),)
    options = {"plain": ("psnr",), "shown": ("psnr",), "measurement": measurement}
    experiment = Experiment("Fake", (Variant("a"), Variant("b")), claims, **options)

    def load(checkpoint, config, device, options, kind):
        assert kind == "denoiser"
        return [28.0, 30.0, 35.0] if "/b-" in str(checkpoint) else [29.0, 31.01, 36.0]

    for module in (reproduce, run):
        monkeypatch.setattr(module, "find_experiment", lambda name: experiment)
    monkeypatch.setattr(run, "_command", lambda words: None)
    monkeypatch.setattr(run, "load_run", load)
    monkeypatch.setattr(reproduce, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.chdir(CONFIGS.parent)
    words = ["fake", "--seeds", "2", "--out", str(tmp_path)]
    assert reproduce.main([*words, "--json", str(tmp_path / "kept" / "x.json")]) == 0
    found = json.loads((tmp_path / "kept" / "x.json").read_text())
    assert (found["eps"], found["examples"], found["variants"]["b"]) == (None, 3, {"psnr": [31.0, 31.0]})
    assert found["claims"][0]["conclusion"] == "reproduced"
    assert "over 2 seeds, PSNR in dB" in " ".join(capsys.readouterr().out.split())
    assert reproduce.main(["--table", str(tmp_path / "kept")]) == 0
    assert "over 2 seeds, PSNR in dB; 3 test images;" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--strong must be omitted for fake, which runs no AutoAttack"):
        reproduce.main([*words, "--strong"])


def test_the_page_has_a_row_for_every_result(done, capsys):
    assert reproduce.main(["--table", str(done.folder / "kept")]) == 0
    printed = capsys.readouterr().out
    command = "lightning-paf reproduce small --budget smoke --seeds 2 --search-precision bf16"
    assert f"| An experiment for the test | **reproduced** | 2 reproduced | `{command}` |" in printed
    assert r"| Tuning helps \|w\| (expected) | pgd |" in printed
    assert "(kept/small.png)" in printed
    assert "| TRADES (Zhang et al., ICML 2019) | not run yet | | `lightning-paf reproduce trades` |" in printed


def test_an_empty_folder_makes_no_page(tmp_path):
    with pytest.raises(ValueError, match="must hold results"):
        reproduce.main(["--table", str(tmp_path)])
