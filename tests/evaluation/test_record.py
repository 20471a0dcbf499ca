from dataclasses import replace

import numpy as np
import pytest
from helpers.state_fakes import small_record
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.evaluation import record as record_file
from lightning_paf.evaluation.record import DamagedRecord, decode, encode

BYTES = encode(small_record())


def test_a_record_comes_back_as_it_was():
    again, original = decode(BYTES), small_record()
    for name in ("ids", "labels", "predictions", "x_adv"):
        assert np.array_equal(getattr(again, name), getattr(original, name))
        assert getattr(again, name).dtype == getattr(original, name).dtype
    assert replace(again, ids=0, labels=0, predictions=0, x_adv=0, fingerprint="").__dict__ == (
        replace(original, ids=0, labels=0, predictions=0, x_adv=0).__dict__
    )
    assert again.fooled.tolist() == [False, True, False]


def test_the_fingerprint_is_of_the_findings_not_of_who_found_them():
    other_worker, other_finding = small_record(seconds=2.0), small_record(after="b")
    assert decode(encode(other_worker)).fingerprint == decode(BYTES).fingerprint
    assert decode(encode(other_finding)).fingerprint != decode(BYTES).fingerprint


def test_a_record_cut_off_anywhere_is_damaged():
    for length in range(len(BYTES)):
        with pytest.raises(DamagedRecord):
            decode(BYTES[:length])
    with pytest.raises(DamagedRecord):
        decode(BYTES + b"\0")


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 255))
def test_a_record_with_any_byte_changed_is_damaged(flip):
    for place in range(len(BYTES)):
        changed = bytearray(BYTES)
        changed[place] ^= flip
        with pytest.raises(DamagedRecord):
            decode(bytes(changed))


@given(st.binary(max_size=200))
def test_other_bytes_are_no_record(data):
    with pytest.raises(DamagedRecord):
        decode(data)
    with pytest.raises(DamagedRecord):
        decode(record_file.MAGIC + data)


def test_declared_sizes_are_not_believed():
    huge = record_file.MAGIC + (2**62).to_bytes(8, "little") + BYTES[len(record_file.MAGIC) + 8 :]
    with pytest.raises(DamagedRecord, match="should have"):
        decode(huge)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", np.arange(2)),
        ("predictions", np.array([0, 1, 2])),  # none fooled, one image
        ("block", 1.5),
        ("label", None),
        ("x_adv", np.zeros((0, 1, 1, 1), np.float32)),
    ],
)
def test_a_frame_around_nonsense_is_damaged(field, value):
    with pytest.raises(DamagedRecord):
        decode(encode(replace(small_record(), **{field: value})))


def test_a_record_too_large_to_be_read_is_not_written(monkeypatch):
    monkeypatch.setattr(record_file, "LARGEST", 100)
    with pytest.raises(ValueError, match="smaller block size"):
        encode(small_record())
