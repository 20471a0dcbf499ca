"""Files of an evaluation."""

from dataclasses import replace

import pytest
from helpers.evaluation_worker import attack
from helpers.state_fakes import undisturbed

from lightning_paf.evaluation.evidence import read
from lightning_paf.evaluation.evidence.write import text_hash
from lightning_paf.evaluation.files import ResultFiles

CONFIG = "# lightning_paf==1.0.0\nseed: 1\n"


@pytest.mark.parametrize("folder", ["checkpoints", "checkpoints/best", "."])
def test_evidence_has_the_configuration_of_the_run_for_a_checkpoint_in_any_subfolder(folder, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    result = replace(undisturbed(), checkpoint=tmp_path / folder / "last.ckpt")
    files = ResultFiles.of(tmp_path / "test", "pgd", attack()).write(result)
    assert read(files.evidence).metadata["config"] == text_hash(CONFIG)
