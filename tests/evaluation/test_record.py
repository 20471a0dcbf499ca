"""Records of an evaluation: round trip, and damaged files."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.state_fakes import small_record
from hypothesis import given
from hypothesis import strategies as st

from lightning_paf.evaluation import state as state_file
from lightning_paf.evaluation.state import decode, encode

BYTES = encode(small_record())


def test_round_trip():
    again, original = decode(BYTES), small_record()
    for name in ("ids", "labels", "predictions", "x_adv"):
        assert np.array_equal(getattr(again, name), getattr(original, name))
        assert getattr(again, name).dtype == getattr(original, name).dtype
    for name in ("block", "sub_attack", "label", "seed", "after", "forward", "backward", "exact", "note"):
        assert getattr(again, name) == getattr(original, name)
    assert again.fingerprint == original.fingerprint
    assert again.fooled.tolist() == [False, True, False]


def test_the_fingerprint_covers_everything_except_the_note():
    record = small_record()
    changes = {"block": 1, "label": "x", "seed": 6, "after": "b", "forward": 31, "backward": 21, "exact": 11}
    changes |= {name: getattr(record, name) + 1 for name in ("ids", "labels", "predictions", "x_adv")}
    prints = {replace(record, **{name: value}).fingerprint for name, value in changes.items()}
    prints.add(replace(record, x_adv=record.x_adv[:, :, :, None]).fingerprint)
    assert len(prints | {record.fingerprint}) == len(changes) + 2
    assert small_record(seconds=2.0).fingerprint == record.fingerprint


def test_an_incomplete_or_longer_record_is_damaged():
    assert not any(decode(BYTES[:length]) for length in range(len(BYTES)))
    assert decode(BYTES + b"\0") is None


@pytest.mark.parametrize("bits", [1, 128, 255])
def test_a_record_with_any_changed_byte_is_damaged(bits):
    for index in range(len(BYTES)):
        changed = bytearray(BYTES)
        changed[index] ^= bits
        assert decode(bytes(changed)) is None


@given(st.binary(max_size=200))
def test_other_bytes_are_not_a_record(data):
    assert decode(data) is None
    assert decode(state_file.MAGIC + data) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", np.arange(2)),
        ("predictions", np.array([0, 1, 2])),  # none fooled, one image
        ("x_adv", np.zeros((0, 1, 1, 1), np.float32)),
    ],
)
def test_inconsistent_content_with_a_correct_hash_is_damaged(field, value):
    assert decode(encode(replace(small_record(), **{field: value}))) is None


def test_a_record_that_is_too_large_is_not_written(monkeypatch):
    monkeypatch.setattr(state_file, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="smaller block size"):
        encode(small_record())
