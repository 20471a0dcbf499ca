"""Folders that people have: stray files, links, empty folders."""

import shutil

import pytest
from helpers.image_folders import CLASSES, write_image_folder
from PIL import Image

from lightning_paf.data.own import described
from lightning_paf.data.readers.class_folders import FolderPictures


@pytest.fixture
def root(tmp_path):
    return write_image_folder(tmp_path / "images", size=(4, 4), counts={"train": 2, "test": 1})


def test_files_of_the_system_are_no_images(root):
    for folder in (root, root / "train", root / "train" / "cat"):
        for name in (".DS_Store", "Thumbs.db", "desktop.ini", "labels.csv"):
            (folder / name).write_bytes(b"")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (root / "train" / "cat" / "folder.png").mkdir()
    found = FolderPictures(root, "train")
    assert (len(found), found.class_names) == (6, CLASSES)


def test_names_of_classes_are_any_text(root):
    for part in ("train", "test"):
        (root / part / "cat").rename(root / part / "Kätzchen 猫")
        (root / part / "dog").rename(root / part / "no: [1e3]")
    assert described("folder", root=root).class_names == ("Kätzchen 猫", "no: [1e3]", "owl")
    assert "猫" in FolderPictures(root, "test").name(0)


def test_a_link_to_a_folder_is_followed_once(root):
    (root / "train" / "cat").rename(root.parent / "elsewhere")
    (root / "train" / "cat").symlink_to(root.parent / "elsewhere")
    (root / "train" / "cat" / "again").symlink_to(root / "train" / "cat")
    assert len(FolderPictures(root, "train")) == 6


def test_a_link_to_a_missing_file_is_an_image_that_cannot_be_read(root):
    (root / "train" / "cat" / "a.png").symlink_to(root / "nowhere.png")
    found = FolderPictures(root, "train")
    assert found.name(2).endswith("train/cat/a.png")
    with pytest.raises(FileNotFoundError):
        found.open(2)


@pytest.mark.parametrize(("part", "least"), [("train", "2 classes"), ("val", "1 class"), ("test", "1 class")])
def test_a_part_without_folders_of_classes_is_refused(part, least, root):
    shutil.rmtree(root / part, ignore_errors=True)
    (root / part).mkdir()
    Image.new("RGB", (4, 4)).save(root / part / "cat.0.png")
    message = f"{root}/{part} must hold the images of at least {least} in folders, got none. Sort them into {part}/"
    with pytest.raises(ValueError, match=message):
        FolderPictures(root, part, CLASSES)


def test_classes_are_counted_before_a_network_is_built(root):
    for name in CLASSES[1:]:
        shutil.rmtree(root / "train" / name)
    with pytest.raises(ValueError, match=f"{root}/train must hold the images of at least 2 classes in folders"):
        described("folder", root=root)
