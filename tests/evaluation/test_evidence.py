"""Evidence files: exact content, a hash of all bytes, and one-line refusals of other files."""

import hashlib
import json
import pickle
import tracemalloc
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.evidence_fakes import ATTACK, CONFIG, attacked, first_pixels, forge, refused, seal, threat, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from lightning_paf.attacks import PGD
from lightning_paf.evaluation import Samples, evidence
from lightning_paf.evaluation.evidence.read import KEY
from lightning_paf.utils.hashing import sample_fingerprints, weights_fingerprint


def test_a_file_holds_threat_model_origin_and_outcomes(path):
    model, samples, result = first_pixels()
    content = evidence.read(path)
    for name in ("ids", "labels", "adversarial", "outcomes", "fooled_by"):
        np.testing.assert_array_equal(getattr(content, name), getattr(result, name))
    np.testing.assert_array_equal(content.inputs, sample_fingerprints(*samples.fetch(samples.ids)))
    known = content.metadata
    assert known["attack"] == ATTACK.describe()
    assert (known["seed"], known["block_size"], known["precision"], known["total"]) == (7, 2, "fp32", 4)
    assert (known["dataset"], known["sub_attacks"], content.threat) == ("toy", ["clean", "pgd"], "linf, eps=8/255")
    assert known["config"] == hashlib.sha256(CONFIG.encode()).hexdigest()
    assert known["weights"] == weights_fingerprint(model)
    assert known["versions"]["torch"] == version("torch")
    assert known["versions"].keys() == {"lightning_paf", "torch", "lightning", "numpy", "python"}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_images_are_exact_in_any_order(path):
    model, samples, result = first_pixels()
    content, exact = evidence.read(path), torch.cat([x_adv for _, x_adv in result.examples()]).numpy()
    assert model.images == 0, "no forward pass is needed"
    for indices in ([0, 1, 2, 3], [3, 2, 1], [2], [0]):
        clean = samples.fetch(np.array(indices))[0].numpy()
        images = content.evaluated_images(np.array(indices), clean)
        expected = [exact[i - 1] if i in (1, 2) else clean[at] for at, i in enumerate(indices)]
        np.testing.assert_array_equal(images, expected)


def test_the_same_evaluation_gives_the_same_bytes_which_are_those_of_the_library(path):
    data = path.read_bytes()
    assert hashlib.sha256(data[:-32]).digest() == data[-32:]
    assert forge(path).read_bytes() == data
    written(path, *first_pixels()[1:])
    assert path.read_bytes() == data


def test_evidence_in_l2_is_verified(tmp_path):
    model, samples, result = attacked(PGD(0.5, norm="l2", step_size=0.3, steps=3))
    content = written(tmp_path / "r", samples, result)
    np.testing.assert_array_equal(content.outcomes, result.outcomes)
    assert content.fooled.sum() > 3
    found = evidence.verify(content, model, samples, CONFIG)
    assert (found.ok, found.notes) == (True, ())
    assert found.upper_bound == result.robust


def test_a_file_without_fooled_samples_and_configuration_is_valid(tmp_path):
    model, samples, result = first_pixels()
    one = {name: getattr(result, name)[:1] for name in ("ids", "labels", "adversarial", "outcomes", "fooled_by")}
    content = written(tmp_path / "r", samples, replace(result, blocks=[], **one), config=None)
    found = evidence.verify(content, model, samples, CONFIG)
    assert (found.ok, found.proven, found.checked["configuration"]) == (True, 0, 0)
    assert "no configuration to compare" in found.notes[1]


def test_images_are_in_memory_a_block_at_a_time(tmp_path):
    n, image, labels = 60, (3, 160, 160), np.zeros(60, np.int64)
    size = 4 * n * int(np.prod(image))
    samples = Samples(np.arange(n), lambda ids: (torch.zeros(len(ids), *image), torch.from_numpy(labels[ids])))
    model, _, result = first_pixels()
    outcomes = {"outcomes": np.full(n, 2, np.uint8), "fooled_by": np.ones(n, np.int8), "adversarial": labels + 1}
    result = replace(result, ids=np.arange(n), labels=labels, total=n, **outcomes)
    result.examples = lambda: ((np.array([i]), torch.full((1, *image), 0.01 * i)) for i in range(n))
    tracemalloc.start()
    try:
        content = written(tmp_path / "r", samples, result)
        assert tracemalloc.get_traced_memory()[1] < size / 4 < (tmp_path / "r").stat().st_size / 4
        evidence.verify(content, model, samples, CONFIG, batch=2)
        assert tracemalloc.get_traced_memory()[1] < size / 4
    finally:
        tracemalloc.stop()
    assert content.x_adv[7:8][0, 0, 0, 0] == np.float32(0.07)


@pytest.mark.parametrize("order", [[0], [1], [1, 0], [], [0, 0]])
def test_a_missing_image_is_an_error_and_leaves_the_old_file(path, order):
    _, samples, result = first_pixels()
    before, blocks = path.read_bytes(), [result.blocks[at] for at in order]
    with pytest.raises(ValueError, match="fooled samples must have an adversarial image, got none for"):
        written(path, samples, replace(result, blocks=blocks))
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ValueError, match="Free some space"):
        written(path, *first_pixels()[1:], config="b: 2\n")
    assert path.read_bytes() == before


def test_missing_samples_and_folders_are_named(path):
    _, samples, result = first_pixels()
    with pytest.raises(ValueError, match="at least one evaluated sample, got 0"):
        written(path, samples, replace(result, ids=result.ids[:0]))
    with pytest.raises(ValueError, match="cannot be used as evidence"):
        written(path / "r", samples, result)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
def test_every_changed_byte_is_refused(path, position, bits):
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= bits
    damaged = path.with_name("damaged")
    damaged.write_bytes(data)
    refused(damaged, "must be valid evidence, but it is ")


@pytest.mark.parametrize("white", [b"\t", b"\n", b"\r"])
def test_changed_padding_is_refused(path, white):
    """Readers of JSON skip it."""
    for config in ("", " " * 8):  # the padding of the header depends on the length of the name
        _, samples, result = first_pixels()
        evidence.write(result, path, samples, dataset="toy" + config[:3], config=CONFIG)
        data = path.read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        if data[end - 1 : end] == b" ":
            path.write_bytes(data[: end - 1] + white + data[end:])
            refused(path, "damaged")
            return
    pytest.fail("no file with padding")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        *((lambda data, n=n: data[:n], "not a safetensors file|damaged|SHA-256") for n in (0, 7, 8, 100, -33, -1)),
        (lambda data: data + b"\0", "not a safetensors file"),
        (lambda data: data[1:], "not a safetensors file"),
        (lambda data: (2**40).to_bytes(8, "little") + data[8:], "not a safetensors file"),
        (lambda data: pickle.dumps({"ids": [1]}), "not a safetensors file"),
        (lambda data: b"PK\x03\x04" + bytes(100), "not a safetensors file"),
        (lambda data: b"A text, longer than eight bytes \x1b[2J", "not a safetensors file"),
        (lambda data: save({"weight": np.zeros(3, np.float32)}), "with other content"),
        (lambda data: save(load(data), {"manifest": "{}"}), "by an earlier version. Run `lightning-paf test`"),
        (lambda data: data.replace(b'"dtype":"U8"', b'"dtype":"\x1b"', 1), "not a safetensors file"),
    ],
)
def test_truncated_and_foreign_files_are_refused(path, edit, reason):
    path.write_bytes(edit(path.read_bytes()))
    refused(path, reason)


def test_huge_and_missing_files_are_refused(path, tmp_path):
    with path.open("wb") as file:
        file.truncate(2**37)  # sparse: takes no space on the disk
    refused(path, "size must be at most .* bytes, got")
    with pytest.raises(ValueError, match="There is no evidence file"):
        evidence.read(tmp_path)


def test_old_files_in_a_folder_are_named_unless_a_new_one_replaces_them(path):
    old = path.with_name("s.receipt.safetensors")
    old.touch()
    with pytest.raises(ValueError, match=r"s\.receipt\.safetensors was written by an earlier version.*or remove"):
        evidence.evidence_files(path.parent)
    old.rename(path.with_name("r.receipt.safetensors"))
    assert evidence.evidence_files(path.parent) == [path]


def values(*numbers, dtype=np.int64):
    return np.array(numbers, dtype)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"ids": values(0, 1, 2, 2)}, "ids must be distinct"),
        ({"ids": values(0, 1, 2)}, r"must be .* of shape \[3\], got .* of shape \[4\]"),
        ({"ids": values([0], [1], [2], [3])}, r"ids must be I64 of shape \[4\], got I64 of shape \[4, 1\]"),
        ({"ids": np.array(3)}, "must have from 1 to"),
        ({"ids": values(), "labels": values()}, "must have from 1 to"),
        ({"ids": np.zeros(4, np.float64)}, "ids must be I64 of shape"),
        ({"ids": None}, "with other content"),
        ({"more": values(1)}, "with other content"),
        ({"labels": values(0, 0, 0, -2)}, "classes must be less than"),
        ({"adversarial": values(0, 1, 1, 2**40)}, "classes must be less than"),
        ({"inputs": np.zeros((4, 31), np.uint8)}, "inputs must be U8 of shape"),
        ({"outcomes": values(0, 2, 2, 3, dtype=np.uint8)}, "outcomes must be"),
        ({"outcomes": values(1, 2, 2, 9, dtype=np.uint8)}, "outcomes must be"),
        ({"outcomes": values(1, 2, 2, 2, dtype=np.uint8)}, "fooled_by must be"),
        ({"fooled_by": values(-1, 2, 1, -1, dtype=np.int8)}, "fooled_by must be"),
        ({"fooled_by": values(-2, 1, 1, -1, dtype=np.int8)}, "fooled_by must be"),
        ({"x_adv": np.zeros((1, 1, 2, 3), np.float32)}, "x_adv must have one image for each"),
        ({"x_adv": np.array(0, np.float32)}, "x_adv must have one image for each"),
        ({"x_adv": np.zeros((2, 1, 2, 3), np.float16)}, "x_adv must be F32 of shape"),
    ],
)
def test_malformed_tensors_are_refused(path, tensors, reason):
    refused(forge(path, tensors), reason)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"version": 2}, "format version must be 1"),
        ({"version": True}, "no valid version"),
        ({"seed": 1.5}, "no valid seed"),
        ({"weights": None}, "no valid weights"),
        ({"versions": []}, "no valid versions"),
        ({"attack": "\x1b[2J"}, "no valid attack"),
        ({"total": 3}, "total must be"),
        ({"attack": {}}, "norm must be"),
        (threat(norm="l3\x1b"), "norm must be"),
        (threat(norm=["linf"]), "norm must be"),
        *((threat(eps=eps), "eps must be") for eps in (8 / 255, "1e999999999", "1/2\n", "x", "9" * 999)),
        *((threat(eps=eps), "with evidence") for eps in ("8/0", "9e999", "1.2.3")),
        (threat(eps="1/255"), "eps_value must be equal to eps"),
        (threat(eps_value=None), "eps_value must be"),
        *((threat(bounds=bounds), "bounds must be") for bounds in ([], {}, [0], ["0", "1"], 1, "01")),
        ({"dataset": "x" * 2**20}, "must have at most .* characters"),
        (threat(loss=json.loads("[" * 50 + "]" * 50)), "and .* levels"),
    ],
)
def test_malformed_metadata_is_refused(path, metadata, reason):
    refused(forge(path, **metadata), reason)


@pytest.mark.parametrize("text", ["", "[1]", "no JSON", "{}", '"' + "9" * 5000, "9" * 5000, "[" * 100_000])
def test_other_metadata_is_refused(path, text):
    refused(
        seal(path, save(load(path.read_bytes()), {KEY: text})), "metadata|version|not a safetensors file with evidence"
    )
