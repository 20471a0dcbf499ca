"""`sanity-check` of a run that takes a second."""

import json

import pytest
import torch
from helpers.cli_runs import status, write_experiment

from lightning_paf.evaluation.checks import CHECKS, context, gradients

NAMES = [check.__name__.replace("_", "-") for check in CHECKS]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sanity")
    experiment = write_experiment(folder)
    # Three brightnesses: a model of them is learned in a few epochs, at a rate of 0.1 only with a limit on gradients.
    options = ("--trainer.max_epochs", "12", "--trainer.gradient_clip_val", "1")
    assert status("fit", "-c", experiment, "--run", folder / "run", *options) == 0
    return folder / "run" / "checkpoints" / "last.ckpt"


@pytest.fixture
def check(checkpoint, tmp_path, capsys, monkeypatch):
    """A function that checks a checkpoint and returns exit status, output and JSON file; its attacks are short."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(gradients, "_QUERIES", 30)
    monkeypatch.setattr(gradients, "_GROWTH_STEPS", 10)
    monkeypatch.setattr(context, "MANY_STEPS", 20)

    def run(*words, ckpt=checkpoint):
        code = status("sanity-check", "--ckpt", ckpt, "--json", tmp_path / "checks.json", *words)
        return code, capsys.readouterr().out, json.loads((tmp_path / "checks.json").read_text())

    return run


def test_all_checks_pass_on_a_sound_run_and_use_the_surrogate(check, checkpoint):
    code, printed, content = check("--surrogate", checkpoint)
    assert (code, "All checks passed" in printed) == (0, True)
    assert (content["passed"], content["eps"], content["norm"], content["examples"]) == (True, "8/255", "linf", 22)
    assert [result["name"] for result in content["checks"]] == NAMES
    assert not any(result["skipped"] for result in content["checks"])
    assert "the surrogate" in content["checks"][-1]["measured"]
    assert max(map(len, printed.splitlines())) <= 80
    words = {word for result in content["checks"] for word in (result["name"], *result["measured"].split())}
    assert words <= set(printed.replace("│", " ").split())


def test_a_failed_check_exits_with_its_hint(check, checkpoint):
    weights = torch.load(checkpoint, weights_only=True)
    weights["state_dict"][next(key for key in weights["state_dict"] if key.endswith("fc.weight"))] *= 0
    torch.save(weights, checkpoint.with_name("zero.ckpt"))
    words = ("--eps", "0.5", "--norm", "l2", "--examples", "20")
    code, printed, content = check(*words, ckpt=checkpoint.with_name("zero.ckpt"))
    assert code == 1
    assert "Check the checkpoint" in printed
    assert "1 of 8 checks failed" in printed
    assert (content["passed"], content["eps"], content["norm"], content["examples"]) == (False, "0.5", "l2", 20)
    assert [r["name"] for r in content["checks"] if r["passed"] is False] == ["clean-accuracy"]
    assert {r["skipped"] for r in content["checks"][8:]} == {"clean-accuracy failed"}
    assert printed.count("skipped") == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--eps", "8/0"), "must be above 0, got 8/0"),
        (("--eps", "inf"), "must be finite, got inf"),
        (("--examples", "5"), "--examples 100"),
        (("--json", "missing/checks.json"), "--json must be a file in an existing folder"),
    ],
)
def test_invalid_options_are_refused(options, message, checkpoint, capsys):
    assert status("sanity-check", "--ckpt", checkpoint, *options) == 1
    assert message in capsys.readouterr().err
