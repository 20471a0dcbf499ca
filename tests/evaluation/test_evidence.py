import hashlib
import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.evidence_fakes import ATTACK, Judged, attacked, locks, refused, written
from helpers.fakes import tiny_classifier
from safetensors.numpy import load, save
from torch import nn

from lightning_paf.attacks import PGD
from lightning_paf.evaluation.evaluate import sub_attack_seed
from lightning_paf.evaluation.evidence.sealed_file import save_sealed
from lightning_paf.evaluation.evidence.write import eps_text, exact_logits, read_receipt
from lightning_paf.evaluation.samples import Samples


@pytest.fixture
def receipt(tmp_path):
    return written(tmp_path / "r.safetensors", *locks())


@pytest.fixture
def path(tmp_path, receipt):
    return tmp_path / "r.safetensors"


# --- what is written


def test_every_broken_sample_has_its_smallest_encoding(receipt):
    assert receipt.encoding.tolist() == [0, 1, 2, 3, 0, 0]
    assert receipt.adversarial.tolist() == [0, 1, 1, 1, 1, 1]
    assert receipt.manifest["counts"] == {
        "total": 6,
        "judged": 6,
        "robust": 1,
        "broken": 4,
        "clean_errors": 1,
        "without_proof": 1,
    }


def test_images_come_back_in_any_order(receipt):
    model, samples, judged = locks()
    x, y = samples.fetch(judged.ids)
    for places in ([0, 1, 2, 3, 4, 5], [3, 1], [2], [5, 0]):
        images = receipt.judged_images(np.array(places), x[places].numpy())
        logits = model(torch.from_numpy(images))
        assert (logits.argmax(1) != y[places]).tolist() == [place in (1, 2, 3, 5) for place in places]
    np.testing.assert_array_equal(receipt.judged_images(np.array([0, 5]), x[[0, 5]].numpy()), x[[0, 5]].numpy())


def test_the_manifest_says_what_was_done(receipt):
    manifest = receipt.manifest
    assert (manifest["norm"], manifest["eps"], manifest["attack"]) == ("linf", "8/255", ATTACK.describe())
    assert (manifest["seed"], manifest["block_size"], manifest["precision"]) == (7, 4, "fp32")
    assert (manifest["dataset"], manifest["image"], manifest["stages"]) == ("toy", [1, 2, 3], ["clean", "pgd"])
    assert manifest["config"] == {"sha256": hashlib.sha256(b"a: 1\n").hexdigest(), "text": "a: 1\n"}
    assert manifest["versions"].keys() == {"lightning_paf", "torch", "lightning", "numpy", "python"}
    assert manifest["versions"]["torch"] == str(torch.__version__)


def test_seeds_are_those_of_the_judge_or_those_given(tmp_path, receipt):
    assert receipt.manifest["seeds"] == [
        [block, stage, sub_attack_seed(7, block, stage, label)]
        for block in (0, 1)
        for stage, label in enumerate(["clean", "pgd"])
    ]
    given = written(tmp_path / "s", *locks(), seeds={(1, 1): 2**63 + 5, (0, 1): 3})
    assert given.manifest["seeds"] == [[0, 1, 3], [1, 1, 2**63 + 5]]


def test_the_configuration_may_be_missing(tmp_path):
    assert written(tmp_path / "r", *locks(), config_text=None).manifest["config"] is None


@pytest.mark.parametrize(
    ("eps", "text"),
    [(Fraction(8, 255), "8/255"), (Fraction(12, 255), "12/255"), (0.031, "31/1000"), (1, "1"), (1e-5, "1/100000")],
)
def test_eps_is_an_exact_fraction(eps, text):
    assert eps_text(eps) == text
    assert float(Fraction(text)) == float(eps)


def test_it_is_what_the_library_writes_and_reads(path, receipt):
    tensors = load(path.read_bytes())
    assert tensors.keys() == receipt.tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor, receipt.tensors[name])
    length = int.from_bytes(path.read_bytes()[:8], "little")
    metadata = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    assert save(tensors, metadata) == path.read_bytes()


def test_reading_gives_what_was_written(path, receipt):
    again = read_receipt(path)
    assert again.manifest == receipt.manifest
    assert [a.tobytes() for a in again.tensors.values()] == [a.tobytes() for a in receipt.tensors.values()]
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_same_evaluation_gives_the_same_bytes(tmp_path, path):
    written(tmp_path / "again", *locks())
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_nothing_broken_is_a_receipt_too(tmp_path):
    model, (x, y) = tiny_classifier().eval(), locks()[1].fetch(np.arange(2))
    x = x.expand(-1, 3, -1, -1).contiguous()
    y = model(x).argmax(1)
    judged = Judged(
        np.arange(2), y.numpy(), y.numpy(), np.ones(2, np.uint8), np.full(2, -1, np.int8), blocks=[], total=2
    )
    receipt = written(tmp_path / "r", model, Samples.of(x, y), judged)
    assert receipt.manifest["counts"]["robust"] == 2
    assert [len(rows) for rows in receipt.payloads] == [0, 0, 0]


def test_nothing_judged_is_refused(tmp_path):
    model, samples, _ = locks()
    empty = Judged(*(np.zeros(0, np.int64) for _ in range(5)), blocks=[], total=6)
    with pytest.raises(ValueError, match="at least one judged sample"):
        written(tmp_path / "r", model, samples, empty)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot serve as a receipt"):
        written(tmp_path / "file" / "r", *locks())


def test_a_real_attack_is_encoded_small(tmp_path):
    receipt = written(tmp_path / "r", *attacked())
    broken = receipt.verdicts == 2
    assert broken.sum() > 20
    assert (receipt.encoding[broken] == 1).mean() > 0.9
    assert (tmp_path / "r").stat().st_size < 6000 + 150 * len(receipt)


def test_an_l2_attack_has_no_signs(tmp_path):
    attack = PGD(0.5, norm="l2", step_size=0.3, steps=3)
    receipt = written(tmp_path / "r", *attacked(attack=attack), attack=attack)
    assert set(receipt.encoding[receipt.verdicts == 2]) <= {2, 3}
    assert receipt.manifest["eps"] == "1/2"


class Precision(nn.Module):
    """Says in which precision it was asked to work."""

    def forward(self, x):
        self.seen = (torch.backends.cudnn.conv.fp32_precision, (x.flatten(1) @ x.flatten(1).T).dtype, self.training)
        return x.flatten(1)


def test_logits_are_computed_in_single_precision():
    before, model = torch.backends.cudnn.conv.fp32_precision, Precision().train()
    with torch.autocast("cpu", torch.bfloat16):
        exact_logits(model, torch.rand(2, 1, 2, 3))
    assert model.seen == ("ieee", torch.float32, False)
    assert model.training
    assert torch.backends.cudnn.conv.fp32_precision == before


# --- forged contents with right hashes


def forge(path, receipt, tensors=None, **manifest):
    content = {name: value for name, value in receipt.manifest.items() if name not in ("tensors", "sha256")}
    arrays = receipt.tensors | (tensors or {})
    save_sealed(path, arrays, content | manifest)


def test_an_unchanged_forgery_is_read(path, receipt):
    before = path.read_bytes()
    forge(path, receipt)
    assert path.read_bytes() == before


def values(*numbers, dtype=np.int64):
    return np.array(numbers, dtype)


NAN16, NAN32 = np.full((1, 1, 2, 3), np.nan, np.float16), np.full((1, 1, 2, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"ids": values(0, 1, 2, 3, 4, 4)}, "tensor 'ids': a number occurs twice"),
        ({"ids": values(0, 1, 2, 3, 4, -1)}, "tensor 'ids': a number is negative"),
        ({"ids": values(0, 1, 2)}, "tensor '[a-z]+': its shape"),
        ({"ids": values([0], [1], [2], [3], [4], [5])}, "tensor 'ids': its shape"),
        ({"labels": values(-1, 0, 0, 0, 0, 0)}, "tensor 'labels': a label is negative"),
        ({"inputs": np.zeros((6, 31), np.uint8)}, "tensor 'inputs': its shape"),
        ({"verdicts": values(0, 2, 2, 2, 2, 3, dtype=np.uint8)}, "tensor 'verdicts': a value is no verdict"),
        ({"verdicts": values(1, 2, 2, 2, 2, 9, dtype=np.uint8)}, "tensor 'verdicts': a value is no verdict"),
        ({"broken_by": values(-1, 2, 1, 1, 1, -1, dtype=np.int8)}, "tensor 'broken_by': a value is no stage"),
        ({"broken_by": values(-1, -1, 1, 1, 1, -1, dtype=np.int8)}, "a broken sample has no stage"),
        ({"broken_by": values(1, 1, 1, 1, 1, -1, dtype=np.int8)}, "a robust sample has a stage"),
        ({"adversarial": values(0, 0, 1, 1, 1, 1)}, "tensor 'adversarial': a class contradicts the verdict"),
        ({"adversarial": values(0, -2, 1, 1, 1, 1)}, "tensor 'adversarial': a value is no class"),
        ({"encoding": values(0, 1, 2, 3, 4, 0, dtype=np.uint8)}, "tensor 'encoding': a value is no encoding"),
        ({"encoding": values(1, 1, 2, 3, 0, 0, dtype=np.uint8)}, "a sample that is not broken has an image"),
        ({"encoding": values(0, 1, 2, 3, 1, 0, dtype=np.uint8)}, "tensor 'signs': its shape"),
        ({"signs": np.zeros((1, 2, 9), np.uint8)}, "tensor 'signs': its shape"),
        ({"signs": np.full((1, 2, 1), 255, np.uint8)}, "tensor 'signs': it has bits beyond"),
        ({"float16": NAN16}, "tensor 'float16': it holds a number that is not finite"),
        ({"float32": NAN32}, "tensor 'float32': it holds a number that is not finite"),
        ({"ids": values(0, 1, 2, 3, 4, 5).astype(np.uint8)}, "tensor 'ids' must be I64"),
        ({"more": np.zeros(3, np.uint8)}, "tensor 'more' does not belong here"),
    ],
)
def test_impossible_tensors_are_refused(path, receipt, tensors, said):
    forge(path, receipt, tensors)
    refused(path, said)


COUNTS = {"total": 6, "judged": 6, "robust": 1, "broken": 4, "clean_errors": 1, "without_proof": 1}


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ({"format": "other"}, "this is no receipt"),
        ({"version": 2}, "version '2', but version 1 is known"),
        ({"version": True}, "version 'True'"),
        ({"version": [1]}, "version"),
        ({"norm": "l3"}, "norm has no valid value"),
        ({"norm": ["linf"]}, "norm has no valid value"),
        ({"eps": 0.03}, "eps has no valid value"),
        ({"eps": "0.03"}, "eps has no valid value"),
        ({"eps": "1e999999999"}, "eps has no valid value"),
        ({"eps": "1/0"}, "eps has no valid value"),
        ({"eps": "0/255"}, "eps has no valid value"),
        ({"eps": "9" * 400}, "eps has no valid value"),
        ({"eps": "8/255\n"}, "eps has no valid value"),
        ({"attack": None}, "attack has no valid value"),
        ({"seed": 1.5}, "seed has no valid value"),
        ({"image": [1, 2, 3, 1]}, "image has no valid value"),
        ({"image": [1, -2, -3]}, "image has no valid value"),
        ({"image": [1, 3, 3]}, "tensor 'signs': its shape"),
        ({"stages": "clean"}, "stages has no valid value"),
        ({"stages": ["clean", "pgd\x1b[2J"]}, "stages has no valid value"),
        ({"dataset": "x" * 201}, "dataset has no valid value"),
        ({"dataset": "\ud800"}, "dataset has no valid value"),
        ({"seeds": [[0, 1]]}, "seeds has no valid value"),
        ({"weights": "F" * 64}, "weights has no valid value"),
        ({"code": "0" * 63}, "code has no valid value"),
        ({"config": {"sha256": "0" * 64, "text": "a"}}, "config has no valid value"),
        ({"config": {"sha256": "0" * 64}}, "config has no valid value"),
        ({"versions": {"torch": 2}}, "versions has no valid value"),
        ({"versions": {str(i): "" for i in range(1000)}}, "versions has no valid value"),
        ({"counts": COUNTS | {"robust": 2}}, "counts.robust is 2, but the tensors give 1"),
        ({"counts": COUNTS | {"total": 5}}, "counts.total is less"),
        ({"counts": COUNTS | {"more": 5}}, "counts has no valid value"),
        ({"counts": {}}, "counts has no valid value"),
        ({"norm": "l2"}, "tensor 'signs': this encoding does not exist for l2"),
        ({"surprise": 1}, "'surprise' does not belong here"),
    ],
)
def test_impossible_manifests_are_refused(path, receipt, manifest, said):
    forge(path, receipt, **manifest)
    refused(path, said)


def test_a_missing_field_is_named(path, receipt):
    content = {key: value for key, value in receipt.manifest.items() if key not in ("tensors", "sha256", "seed")}
    save_sealed(path, receipt.tensors, content)
    refused(path, "manifest: seed is missing")


def test_an_interrupted_write_leaves_the_old_receipt(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match="Free some space"):
        written(path, *locks(), seed=8)
    assert path.read_bytes() == before
