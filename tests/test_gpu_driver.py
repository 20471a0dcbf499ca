"""The driver of all measurements on a GPU: requirements, results, time limits and resuming."""

import json
import subprocess
import sys
import time
from fractions import Fraction
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers.cli_runs import built, write_experiment

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _search_path(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)


@pytest.fixture
def steps():
    return import_module("gpu_steps")


@pytest.fixture
def gpu():
    return import_module("gpu")


@pytest.fixture
def job(steps, tmp_path):
    return steps.Job("cpu", tmp_path / "data", None, tmp_path / "out", tmp_path / "work", limit=60, minutes=1)


def run(steps, job, *chosen):
    report = steps.Report()
    report.run(chosen, job)
    return report, [row[1] for row in report.rows]


def test_a_step_with_a_result_is_not_repeated(steps, job):
    calls = []

    def count(job):
        calls.append(1)
        job.write("count", {"calls": len(calls)})

    step = steps.Step("count", count)
    assert run(steps, job, step)[1] == run(steps, job, step)[1] == ["done"]
    assert len(calls) == 1
    content = json.loads(job.result("count").read_text())
    assert (content["calls"], content["machine"]["torch"]) == (1, torch.__version__)
    job.result("count").unlink()
    run(steps, job, step)
    assert len(calls) == 2


def test_a_result_with_failures_is_repeated_and_blocks_later_steps(steps, job, capsys):
    def fail(job):
        job.write("fail", {"failed": ["test_a"]})
        raise steps.FailedError("1 of 2 tests")

    chosen = steps.Step("fail", fail), steps.Step("later", None, after=("fail",))
    for _ in range(2):
        report, states = run(steps, job, *chosen)
        assert states == ["failed", "skipped"]
    assert report.print(job.out) == 1
    printed = capsys.readouterr().out
    assert "1 of 2 tests" in printed
    assert "needs the step fail" in printed
    assert "1 skipped, 1 failed" in printed


def test_an_exception_does_not_end_the_other_steps(steps, job):
    def broken(job):
        raise KeyError("speed")

    report, states = run(steps, job, steps.Step("broken", broken), steps.Step("next", lambda job: None))
    assert states == ["failed", "done"]
    assert report.rows[0][3] == "KeyError: 'speed'"


def test_missing_packages_and_data_are_named(steps, tmp_path):
    job = steps.Job("cuda", None, None, tmp_path, tmp_path, limit=1, minutes=1)
    chosen = steps.Step("a", None, packages=("torch", "no_such_package")), steps.Step("b", None, data=True)
    report, states = run(steps, job, *chosen)
    assert states == ["skipped", "skipped"]
    assert report.rows[0][3] == "needs the package no_such_package"
    assert "DATA=DIR" in report.rows[1][3]
    assert report.print(tmp_path) == 0


ENDLESS = "import time; print('started', flush=True); time.sleep(60)"


def test_a_program_is_ended_at_the_time_limit(steps, tmp_path, capsys):
    job = steps.Job("cpu", None, None, tmp_path, tmp_path, limit=0.5, minutes=1)
    started = time.perf_counter()
    report, states = run(steps, job, steps.Step("slow", lambda job: job.check("slow", "-c", ENDLESS)))
    assert states == ["unfinished"]
    assert time.perf_counter() - started < 10
    assert (tmp_path / "logs" / "slow.log").read_text() in ("started\n", "")
    assert report.print(tmp_path) == 75
    assert "repeat the command" in capsys.readouterr().out


def test_an_interrupted_step_ends_its_program_and_the_rest(steps, job, monkeypatch):
    processes = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            processes.append(self)
            self.stdout.readline()
            self.stdout = interrupting()

    def interrupting():
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(steps.subprocess, "Popen", Interrupted)
    slow = steps.Step("slow", lambda job: job.check("slow", "-c", ENDLESS))
    assert run(steps, job, slow, steps.Step("next", None))[1] == ["unfinished", "unfinished"]
    assert processes[0].poll() is not None


@pytest.mark.parametrize(("status", "state"), [(0, "done"), (3, "failed"), (75, "unfinished")])
def test_the_state_follows_from_the_exit_status(steps, job, status, state):
    step = steps.Step("exit", lambda job: job.check("exit", "-c", f"import sys; sys.exit({status})"))
    assert run(steps, job, step)[1] == [state]


def test_the_results_of_failed_tests_are_kept(gpu, job, monkeypatch, steps):
    def pytest_run(self, name, *words, **environment):
        assert environment == {"PAF_TEST_DEVICE": "cpu"}
        cases = '<testcase classname="a" name="x"/><testcase classname="a" name="y"><failure/></testcase>'
        job.work.mkdir()
        Path(words[words.index("--junitxml") + 1]).write_text(f"<testsuite>{cases}</testsuite>")
        return 1

    monkeypatch.setattr(steps.Job, "python", pytest_run)
    with pytest.raises(steps.FailedError, match="1 of 2 tests"):
        gpu.tests(job)
    content = json.loads(job.result("tests").read_text())
    assert (content["passed"], content["tests"], content["failed"]) == (1, ["a::x"], ["a::y"])
    assert not job.is_done("tests")


@pytest.mark.parametrize("pool", [False, True])
def test_the_training_on_a_gpu_is_a_valid_command(gpu, steps, tmp_path, monkeypatch, pool):
    """All options but those that need the device."""
    write_experiment(tmp_path, num_classes=10)
    images = tmp_path / "images"
    calls = []
    monkeypatch.setattr(steps.Job, "check", lambda self, name, *words: calls.append(words))
    job = steps.Job("cuda", images, images / "test.npz" if pool else None, tmp_path, tmp_path / "work", 1, 1)
    gpu.fit(job, "fit_relu", "relu", epochs=20, images=5120)
    (python, package, fit, *words) = calls[0]
    assert (python, package, fit) == ("-m", "lightning_paf", "fit")
    cli = built(*words, "--trainer.accelerator", "cpu")
    assert cli.trainer.max_epochs == 20
    assert (cli.datamodule.batch_size, cli.model.speed.compile) == (256, True)
    assert cli.model.model.net.fc.in_features == 512


def test_the_number_of_images_follows_from_the_speed(gpu, steps, tmp_path, monkeypatch):
    job = steps.Job("cuda", tmp_path, None, tmp_path, tmp_path, 1, minutes=5)
    monkeypatch.setattr(gpu, "fit", lambda job, name, activation, epochs, images: tmp_path)
    monkeypatch.setattr(gpu, "measured", lambda run, metric: [100.0, 4000.0])
    monkeypatch.setattr(steps.measure, "machine", lambda device: {})
    gpu.rate(job)
    plan = json.loads(job.result("rate").read_text())["plan"]
    assert plan["images"] % 256 == 0
    seconds = plan["epochs"] * plan["images"] / 4000
    assert 0.8 * 300 < seconds < 0.9 * 300


def test_without_a_card_one_sentence_names_the_rehearsal(gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "DEVICE=cpu" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "speed"], "invalid choice"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--limit", "0"], "positive"),
    ],
)
def test_wrong_options_are_refused(gpu, words, message, capsys):
    with pytest.raises(SystemExit):
        gpu.main(words)
    assert message in capsys.readouterr().err


def test_a_rehearsal_writes_elsewhere_and_has_images(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    job = gpu.job_of(gpu.parse(["--device", "cpu"]))
    assert job.out == tmp_path / "build" / "gpu-rehearsal" / "results"
    assert (job.data / "train.npz").is_file()
    card = gpu.job_of(gpu.parse([]))
    assert (card.out, card.data) == (tmp_path / "docs" / "results" / "gpu", None)


def test_a_benchmark_leaves_a_result(gpu, steps, job, monkeypatch):
    def in_this_process(self, name, program, *words):
        monkeypatch.setattr(sys, "argv", [program, *map(str, words)])
        import_module(Path(program).stem).main()

    monkeypatch.setattr(steps.Job, "check", in_this_process)
    step = next(step for step in gpu.STEPS if step.name == "utilisation_wrn28_10")
    assert run(steps, job, step)[1] == ["done"]
    content = json.loads(job.result(step.name).read_text())
    assert (content["program"], content["settings"]["net"]) == ("utilisation.py", "wrn28_10")


def test_the_full_comparison_with_the_reference_is_a_valid_command(gpu, steps, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(gpu, "benchmark", lambda program, cuda, cpu, name, job: calls.append(cuda))
    gpu.ratio(steps.Job("cuda", tmp_path, None, tmp_path, tmp_path, limit=500, minutes=1))
    monkeypatch.setattr(sys, "argv", ["autoattack.py", "--device", "cuda", *map(str, calls[0])])
    options = import_module("autoattack").parse()
    assert (options.case, options.eps, options.seconds) == ("resnet18", Fraction("0.75") / 255, 400)
