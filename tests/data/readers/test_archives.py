import os
import pickle

import numpy as np
import pytest
from helpers.data_files import arrays, npy, read, write_members, write_npz

from lightning_paf.data.readers import archives
from lightning_paf.data.readers import npy as npy_module
from lightning_paf.data.readers.archives import open_archive


@pytest.mark.parametrize("keys", [("image", "label"), ("X", "Y")])
@pytest.mark.parametrize("chunk_bytes", [1, 100, 2**20])
def test_npz_is_read_in_chunks_of_any_size(tmp_path, monkeypatch, keys, chunk_bytes):
    monkeypatch.setattr(npy_module, "CHUNK_BYTES", chunk_bytes)
    image, label = read(write_npz(tmp_path / "pool.npz", keys))
    expected_image, expected_label = arrays()
    np.testing.assert_array_equal(image, expected_image)
    np.testing.assert_array_equal(label, expected_label)


def test_compressed_npz_with_further_arrays(tmp_path):
    image, label = arrays()
    np.savez_compressed(tmp_path / "pool.npz", image=image, label=label, confidence=np.ones(12))
    np.testing.assert_array_equal(read(tmp_path / "pool.npz")[0], image)


def test_a_file_that_unpacks_to_a_thousand_times_its_size_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_LARGEST_SMALL", 10**5)
    np.savez_compressed(tmp_path / "pool.npz", image=np.zeros((1000, 8, 8, 3), np.uint8), label=np.zeros(1000, int))
    with pytest.raises(ValueError, match=r"image must be compressed at most 200-fold.* got 192,128 bytes"):
        read(tmp_path / "pool.npz")


@pytest.mark.parametrize(("protocol", "numpy"), [(2, "core"), (2, "_core"), (4, "_core"), (5, "_core")])
def test_pickle_of_ti_500k_is_read_with_a_warning(tmp_path, protocol, numpy):
    image, label = arrays()
    content = {"data": image, "extrapolated_targets": label, "prediction_model": "a name", "epoch": np.int64(3)}
    written = pickle.dumps(content, protocol).replace(b"numpy._core.", f"numpy.{numpy}.".encode())  # numpy 1: core
    assert f"numpy.{numpy}.".encode() in written
    path = tmp_path / "ti.pickle"
    path.write_bytes(written)
    with pytest.warns(UserWarning, match=r"ti\.pickle is a pickle"):
        got = read(path)
    np.testing.assert_array_equal(got[0], image)
    np.testing.assert_array_equal(got[1], label)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.filterwarnings("ignore:.*is a pickle")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            pickle.dumps({"data": Malicious(), "extrapolated_targets": 0}),
            r"not a readable pickle of arrays \(it contains posix\.mkdir\)",
        ),
        (b"no pickle", "not a readable pickle"),
        (pickle.dumps({"data": 0})[:-4], "not a readable pickle"),
        (
            pickle.dumps({"data": 0, "labels": 1}),
            r"must hold the dict entries data \+ .*, got data, lab",
        ),
        (pickle.dumps([1]), "got list"),
    ],
)
def test_other_pickles_are_refused_and_their_code_is_not_run(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ti.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "ti.pkl")
    assert not (tmp_path / "executed").exists()


def test_missing_empty_and_unknown_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        open_archive(tmp_path / "missing.npz")
    (tmp_path / "empty.npz").touch()
    with pytest.raises(ValueError, match=r"the file is empty \(0 bytes\)"):
        open_archive(tmp_path / "empty.npz")
    (tmp_path / "images.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"must be one of \.npz, \.pickle, \.pkl, \.parquet, got \.tar"):
        open_archive(tmp_path / "images.tar")


@pytest.mark.parametrize("kept", [10, 300, -1])
def test_truncated_npz_is_refused(tmp_path, kept):
    path = write_npz(tmp_path / "pool.npz")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"pool\.npz: damaged, or not an npz file"):
        read(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("chunk_bytes", [48, 2**20])
def test_the_checksum_is_compared(tmp_path, monkeypatch, save, chunk_bytes):
    monkeypatch.setattr(npy_module, "CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "pool.npz"
    save(path, image=arrays()[0], label=arrays()[1])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 16] ^= 1  # the checksum of the first array, in the central directory
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"damaged, .*CRC"):
        read(path)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (npy(arrays()[0])[:-7], r"damaged, .*rows 0 to 11 of 12 are cut off"),
        (b"not an array", r"damaged, .*magic string"),
        (npy(np.asfortranarray(arrays()[0])), r"image must be in C order, .* Save np\.ascontiguousarray"),
    ],
)
def test_bad_arrays_in_a_valid_zip_file_are_refused(tmp_path, image, message):
    with pytest.raises(ValueError, match=message):
        read(write_members(tmp_path / "pool.npz", image, npy(arrays()[1])))


def test_wrong_keys_are_listed_with_the_accepted_ones(tmp_path):
    path = write_npz(tmp_path / "pool.npz", keys=("images", "labels"))
    with pytest.raises(ValueError, match=r"must hold the arrays image \+ label or X \+ Y, got images, labels"):
        read(path)
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="got none"):
        read(tmp_path / "none.npz")
