"""The command `certify`: table, files and invalid options."""

import json

import pytest
from helpers.cli_runs import status, write_experiment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certify")
    noise = ("--model.objective", "NoisyCE", "--model.objective.std", "0.1")
    assert status("fit", "-c", write_experiment(folder), *noise, "--run", folder / "run") == 0
    return folder / "run"


def certify(path, *options):
    return status("certify", path, "--device", "cpu", "--samples", "5", "40", *options)


def test_it_prints_a_table_and_writes_the_requested_files(run, tmp_path, capsys):
    out = tmp_path / "new"
    assert certify(run, "--sigma", "0.1", "--json", out / "a.json", "--figure", out / "a.png", "--examples", "4") == 0
    printed = capsys.readouterr().out
    for text in ("sigma 0.1, 5 + 40 samples, alpha 0.001", "\n0.05 ", "more samples needed", "of 4 test images"):
        assert text in printed
    assert "Clean accuracy of the smoothed classifier: " in printed
    assert "Note" not in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("Written: "))
    content = json.loads((out / "a.json").read_text())
    assert len(content["radii"]) == len(content["labels"]) == len(content["predictions"]) == 4
    assert (content["sigma"], content["n0"], content["n"]) == (0.1, 5, 40)
    assert (out / "a.png").read_bytes().startswith(b"\x89PNG")


def test_batch_size_changes_nothing_and_noise_other_than_that_of_the_training_is_reported(run, tmp_path, capsys):
    for size in ("7", "512"):
        options = ("--sigma", "0.3", "--batch_size", size, "--examples", "4", "--json", tmp_path / f"{size}.json")
        assert certify(run / "checkpoints" / "last.ckpt", *options) == 0
    first, second = (json.loads((tmp_path / f"{size}.json").read_text()) for size in ("7", "512"))
    assert first | {"batch_size": 0} == second | {"batch_size": 0}
    printed = capsys.readouterr().out
    assert "trains with noise of 0.1, but the network was smoothed with 0.3" in printed
    assert "--model.objective.std 0.3" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sigma", "0"), "sigma must be above 0 and finite, got sigma=0.0"),
        (("--sigma", "1", "--alpha", "1"), "alpha=1.0"),
        (("--sigma", "1", "--samples", "1", "0"), "n=0"),
        (("--sigma", "1", "--examples", "0"), "--examples: must be at least 1, got 0"),
    ],
)
def test_invalid_options_are_rejected_before_the_run_is_read(options, message, tmp_path, capsys):
    assert certify(tmp_path / "nowhere", *options) in (1, 2)
    assert message in capsys.readouterr().err


def test_bounds_of_margins_are_printed_and_written_next_to_the_evidence_of_a_test(tmp_path, capsys):
    options = ("-c", write_experiment(tmp_path), "--run", tmp_path / "run")
    assert status("fit", *options) == 0
    attack = ("--val_attack.attack.eps", "1/255", "--val_attack.certify", "ibp")
    assert status("test", "--ckpt_path", tmp_path / "run/checkpoints/last.ckpt", *attack) == 0
    capsys.readouterr()
    run = (tmp_path / "run", "--device", "cpu", "--examples", "4", "--norm", "linf", "--eps", "1/255")
    assert status("certify", *run, "--method", "crown-ibp") == 0
    printed = capsys.readouterr().out
    assert "linf, eps 1/255, 4 test images" in printed
    assert "certified by crown-ibp" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("Written: "))
    content = json.loads((tmp_path / "run" / "certified_crown-ibp_linf_1-255.json").read_text())
    assert len(content["margins"]) == len(content["labels"]) == 4
    assert content["certified"]["accuracy"] <= content["clean"]["accuracy"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "smoothing"), "--sigma must be given for smoothing"),
        (("--method", "crown", "--sigma", "1"), "--sigma must be given for smoothing, and only for it"),
        (("--sigma", "1", "--eps", "0.1"), "--eps and --norm linf must not be given for smoothing"),
        (("--eps", "0"), "--eps: must be above 0, got 0"),
        (("--eps", "1e400"), "--eps: must be finite, got 1e400"),
        (("--method", "magic"), "argument --method: invalid choice: 'magic'"),
        (("--figure", "a.png"), "--figure must be given with --method smoothing only"),
    ],
)
def test_options_of_the_methods_are_not_mixed(options, message, tmp_path, capsys):
    assert certify(tmp_path / "nowhere", *options) in (1, 2)
    assert message in capsys.readouterr().err
