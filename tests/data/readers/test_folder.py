import pytest
from helpers.data_files import arrays, write_folder, write_npz, write_pairs

from lightning_paf.data.readers.folder import array_files, find_sources
from lightning_paf.data.synthetic.convert import converted_folder


def test_a_folder_is_replaced_by_its_archives(tmp_path):
    parts = [write_npz(tmp_path / "cifar5m" / f"part{i}.npz", ("X", "Y")) for i in range(6)]
    (tmp_path / "cifar5m" / "README").touch()
    single = write_npz(tmp_path / "single.npz")
    assert find_sources([tmp_path / "cifar5m", single]) == [*parts, single]
    folder = write_folder(converted_folder(parts[0], None), *arrays())
    assert find_sources([tmp_path / "cifar5m"]) == parts, "converted arrays are no archive"
    assert find_sources([folder]) == [folder]
    assert converted_folder(folder, tmp_path) == folder


def test_missing_sources_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must hold \.npz, .* files or image\.npy, got none\. Check --data"):
        find_sources([tmp_path])
    with pytest.raises(ValueError, match=r"nowhere\.npz: there is no such file or folder"):
        converted_folder(tmp_path / "nowhere.npz", None)


def test_a_source_named_twice_is_refused(tmp_path):
    parts = [write_npz(tmp_path / "parts" / f"{name}.npz") for name in "ab"]
    (tmp_path / "link.npz").symlink_to(parts[0])
    for twice in ([parts[0], parts[0]], [tmp_path / "parts", parts[1]], [parts[0], tmp_path / "link.npz"]):
        with pytest.raises(ValueError, match=r"must name each source once, got . of which . are different: .*Leave"):
            find_sources(twice)


def test_test_images_next_to_training_images_are_refused(tmp_path):
    for name in ("train-00000-of-00001.npz", "validated.npz"):
        write_npz(tmp_path / name)
    assert len(find_sources([tmp_path])) == 2
    write_npz(tmp_path / "test-00000-of-00001.npz")
    with pytest.raises(ValueError, match=r"must be training images, got test-00000-of-00001\.npz\. Move the training"):
        find_sources([tmp_path])


def test_arrays_come_in_pairs(tmp_path):
    folder = write_pairs(tmp_path / "a", *arrays(), {"b.": 5, "a.": 7})
    (folder / "manifest.json").write_text("{}")  # as pools of earlier versions have
    assert array_files(folder) == [(folder / f"{name}.image.npy", folder / f"{name}.label.npy") for name in "ab"]
    assert find_sources([folder]) == [folder]
    for name in ("a.label.npy", "b.image.npy"):
        (folder / name).rename(folder / "away")
        with pytest.raises(ValueError, match=rf"must have a label file and vice versa, got no {name}\. Copy"):
            find_sources([folder])
        (folder / "away").rename(folder / name)
