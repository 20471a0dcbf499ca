import os
import pickle

import numpy as np
import pytest
from helpers.data_files import arrays, npy, write_members, write_npz

from lightning_paf.data.readers import npy as npy_module
from lightning_paf.data.readers.archives import open_archive


def read(path):
    with open_archive(path) as archive:
        return np.concatenate(list(archive.image.chunks())), np.concatenate(list(archive.label.chunks()))


@pytest.mark.parametrize("keys", [("image", "label"), ("X", "Y")])
@pytest.mark.parametrize("chunk_bytes", [1, 100, 2**20])
def test_npz_is_read_in_chunks_of_any_size(tmp_path, monkeypatch, keys, chunk_bytes):
    monkeypatch.setattr(npy_module, "CHUNK_BYTES", chunk_bytes)
    image, label = read(write_npz(tmp_path / "pool.npz", keys))
    expected_image, expected_label = arrays()
    np.testing.assert_array_equal(image, expected_image)
    np.testing.assert_array_equal(label, expected_label)


def test_compressed_npz_and_further_arrays_in_it(tmp_path):
    image, label = arrays()
    np.savez_compressed(tmp_path / "pool.npz", image=image, label=label, confidence=np.ones(12))
    np.testing.assert_array_equal(read(tmp_path / "pool.npz")[0], image)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickle_of_ti_500k_is_read_with_a_warning(tmp_path, protocol):
    image, label = arrays()
    content = {"data": image, "extrapolated_targets": label, "prediction_model": "a name", "epoch": np.int64(3)}
    path = tmp_path / "ti.pickle"
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.warns(UserWarning, match=r"ti\.pickle is a pickle"):
        got = read(path)
    np.testing.assert_array_equal(got[0], image)
    np.testing.assert_array_equal(got[1], label)


def test_pickles_of_numpy_1_are_read(tmp_path):
    content = {"data": arrays()[0], "extrapolated_targets": arrays()[1]}
    written = pickle.dumps(content, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core" in written
    (tmp_path / "ti.pickle").write_bytes(written)
    with pytest.warns(UserWarning, match="is a pickle"):
        np.testing.assert_array_equal(read(tmp_path / "ti.pickle")[0], content["data"])


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("broken_into",)


@pytest.mark.filterwarnings("ignore:.*is a pickle")
def test_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ti.pickle").write_bytes(pickle.dumps({"data": Malicious(), "extrapolated_targets": 0}))
    with pytest.raises(ValueError, match=r"not a readable pickle of arrays \(it asks for posix\.mkdir\)"):
        read(tmp_path / "ti.pickle")
    assert not (tmp_path / "broken_into").exists()


@pytest.mark.filterwarnings("ignore:.*is a pickle")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no pickle", "not a readable pickle"),
        (pickle.dumps({"data": 0})[:-4], "not a readable pickle"),
        (
            pickle.dumps({"data": 0, "labels": 1}),
            r"needs a dict with data \+ extrapolated_targets, but holds data, labels",
        ),
        (pickle.dumps([1]), "but holds list"),
    ],
)
def test_other_pickles_are_refused(tmp_path, content, message):
    (tmp_path / "ti.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "ti.pkl")


def test_missing_empty_and_unknown_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        open_archive(tmp_path / "missing.npz")
    (tmp_path / "empty.npz").touch()
    with pytest.raises(ValueError, match=r"the file is empty \(0 bytes\)"):
        open_archive(tmp_path / "empty.npz")
    (tmp_path / "images.tar").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"a \.tar file is not known\. Known: \.npz, \.pickle, \.pkl, \.parquet"):
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


def test_an_array_shorter_than_its_header_says_is_refused(tmp_path):
    image, label = arrays()
    path = write_members(tmp_path / "pool.npz", npy(image)[:-7], npy(label))
    with pytest.raises(ValueError, match=r"damaged, .*rows 0 to 11 of 12 are cut off"):
        read(path)


def test_members_that_are_no_arrays_are_refused(tmp_path):
    path = write_members(tmp_path / "pool.npz", b"not an array", npy(np.zeros(3)))
    with pytest.raises(ValueError, match=r"damaged, .*magic string"):
        read(path)


def test_wrong_keys_are_listed_beside_the_accepted_ones(tmp_path):
    path = write_npz(tmp_path / "pool.npz", keys=("images", "labels"))
    with pytest.raises(ValueError, match=r"needs the arrays image \+ label or X \+ Y, but holds images, labels"):
        read(path)
    np.savez(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="but holds none"):
        read(tmp_path / "none.npz")


def test_fortran_order_is_refused(tmp_path):
    np.savez(tmp_path / "pool.npz", image=np.asfortranarray(arrays()[0]), label=arrays()[1])
    with pytest.raises(ValueError, match=r"image is stored in Fortran order\. Save np\.ascontiguousarray"):
        read(tmp_path / "pool.npz")
