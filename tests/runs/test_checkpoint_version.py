"""Checkpoints of other versions of the package."""

from pathlib import Path

import pytest
import torch
from helpers.cli_runs import status, write_experiment
from helpers.resume_helpers import content

from lightning_paf import __version__
from lightning_paf.runs.checkpoint_version import LAYOUT, check_checkpoint_version
from lightning_paf.runs.checkpoints import check_checkpoint, newest_checkpoint
from lightning_paf.runs.identity import read_identity


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[list, Path]:
    """The command of a run, and its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    words = ["fit", "-c", write_experiment(folder), "--run", folder / "run"]
    assert status(*words) == 0
    return words, folder / "run" / "checkpoints" / "last.ckpt"


def rewrite(last: Path, **change) -> None:
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["lightning_paf"] = {"version": __version__, "layout": LAYOUT, **change}
    torch.save(checkpoint, last)


def test_the_version_is_in_checkpoint_and_configuration(trained):
    _, last = trained
    written = torch.load(last, weights_only=True)["lightning_paf"]
    assert written == {"version": __version__, "layout": LAYOUT, "run": read_identity(last.parent.parent)["run"]}
    assert (last.parent.parent / "config.yaml").read_text().startswith(f"# lightning_paf=={__version__}\n")


@pytest.mark.parametrize("change", [{"version": "7.0.1"}, {"layout": LAYOUT + 1}])
def test_a_checkpoint_of_a_newer_version_is_refused(change, trained, capsys):
    words, last = trained
    rewrite(last, **change)
    before = content(last.parent.parent)
    capsys.readouterr()
    assert status(*words, "--ckpt_path", "auto") == 1
    assert status("test", "--ckpt_path", last) == 1
    version = change.get("version", __version__)
    message = f"of lightning_paf {__version__} or older, got {last} of {version}. Install lightning_paf {version}"
    assert capsys.readouterr().err.count(message) == 2
    assert content(last.parent.parent) == before


@pytest.mark.parametrize("version", ["0.0.9", "unknown"])
def test_another_version_is_warned_of(version, trained):
    _, last = trained
    rewrite(last, version=version)
    with pytest.warns(UserWarning, match=f"last.ckpt was written by lightning_paf {version}, and this is"):
        check_checkpoint(str(last))
    with pytest.warns(UserWarning, match=f"last.ckpt was written by lightning_paf {version}, and this is"):
        assert newest_checkpoint([last.parent]) == last


def test_imported_weights_have_no_version():
    check_checkpoint_version({"state_dict": {}}, "weights.ckpt")
