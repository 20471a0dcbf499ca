import pickle

import numpy as np
import pytest
from data_files import arrays
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.data.pool import SyntheticPool

LIKE = (0, 4, 4, 3)
SIZES = (5, 1, 9)


def write_folder(folder, image, label):
    folder.mkdir()
    np.save(folder / "image.npy", image)
    np.save(folder / "label.npy", label)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("pool")
    return [write_folder(root / f"part{i}", *arrays(n=n, seed=i)) for i, n in enumerate(SIZES)]


EXPECTED = [arrays(n=n, seed=i) for i, n in enumerate(SIZES)]
EXPECTED_IMAGE, EXPECTED_LABEL = (np.concatenate(column) for column in zip(*EXPECTED, strict=True))


@settings(max_examples=30, deadline=None)
@given(index=st.lists(st.integers(0, 14), min_size=1, max_size=20))
def test_any_numbers_are_fetched_in_the_order_asked_for(parts, index):
    images, labels = SyntheticPool(parts).fetch(np.asarray(index))
    np.testing.assert_array_equal(images, EXPECTED_IMAGE[index])
    np.testing.assert_array_equal(labels, EXPECTED_LABEL[index])


def test_only_the_folders_are_pickled(tmp_path):
    folder = write_folder(tmp_path / "large", np.zeros((3000, 4, 4, 3), np.uint8), np.zeros(3000, np.int64))
    pickled = pickle.dumps(SyntheticPool([folder]))
    assert len(pickled) < 1000
    assert len(pickle.loads(pickled)) == 3000


def test_length_and_check(parts):
    pool = SyntheticPool(parts)
    assert len(pool) == 15
    pool.check(LIKE, 3)


def test_every_class_must_occur_somewhere(parts, tmp_path):
    with pytest.raises(ValueError, match=r"all 5 classes must occur, but there is no image of 3, 4\."):
        SyntheticPool(parts).check(LIKE, 5)
    image, _ = arrays(n=4)
    first = write_folder(tmp_path / "first", image, np.array([0, 0, 1, 1]))
    second = write_folder(tmp_path / "second", image, np.array([1, 2, 2, 2]))
    SyntheticPool([first, second]).check(LIKE, 3)  # sets sorted by class come in such parts


def test_arrays_that_were_written_by_hand_are_checked(tmp_path):
    image, label = arrays()
    with pytest.raises(ValueError, match=r"labels must be 0 to 1, but range from 0 to 2"):
        SyntheticPool([write_folder(tmp_path / "a", image, label)]).check(LIKE, 2)
    with pytest.raises(ValueError, match=r"but have \(4, 4, 3\)"):
        SyntheticPool([tmp_path / "a"]).check((0, 8, 8, 3), 3)
    with pytest.raises(ValueError, match="but are float64"):
        SyntheticPool([write_folder(tmp_path / "b", image / 255, label)]).check(LIKE, 3)
    with pytest.raises(ValueError, match="12 images need labels"):
        SyntheticPool([write_folder(tmp_path / "c", image, label[1:])]).check(LIKE, 3)


def test_a_folder_without_arrays_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not converted yet\. Call prepare_data\(\)"):
        SyntheticPool([tmp_path])
