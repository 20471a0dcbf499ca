import json
from contextlib import suppress

import numpy as np
import pytest
from data_files import arrays, write_shards
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_paf.data.manifest import ListedFile, Manifest, Shard, read_manifest, write_manifest

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any)


@settings(max_examples=30, deadline=None)
@given(classes=st.lists(COUNTS, min_size=1, max_size=5), shape=st.tuples(*[st.integers(1, 9)] * 3))
def test_what_is_written_is_read(tmp_path_factory, classes, shape):
    folder = tmp_path_factory.mktemp("pool")
    shards = [
        Shard(
            sum(counts),
            ListedFile(f"deep/{i}.image.npy", 128 + sum(counts) * int(np.prod(shape)), f"image {i}", "ä"),
            ListedFile(f"{i}.label.npy", 128 + 8 * sum(counts), "label", "sample"),
            tuple(counts),
        )
        for i, counts in enumerate(classes)
    ]
    write_manifest(folder, Manifest(shape, shards))
    assert read_manifest(folder) == Manifest(shape, shards)
    assert len((folder / "manifest.json").read_text().splitlines()) == 2 + len(shards)


@pytest.fixture
def folder(tmp_path):
    return write_shards(tmp_path / "pool", *arrays(n=5), sizes=(3, 2))


def changed(folder, change):
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    (folder / "manifest.json").write_text(json.dumps(content))


def shard(content):
    return content["shards"][1]


BAD = {
    "another version": (
        lambda c: c.update(version=2),
        r"must be of version 1, but is of version 2\. Write the pool again",
    ),
    "another format": (lambda c: c.update(format="npm"), r"not the manifest of a pool.*Rename the file"),
    "an absolute path": (lambda c: shard(c)["image"].update(file="/etc/passwd"), r"'/etc/passwd' is outside"),
    "a path upwards": (lambda c: shard(c)["label"].update(file="a/../../b.npy"), r"'a/\.\./\.\./b\.npy' is outside"),
    "no path": (lambda c: shard(c)["label"].update(file=""), "'' is outside"),
    "a file twice": (
        lambda c: shard(c)["label"].update(c["shards"][0]["label"]),
        r"must be listed once, but 0\.label\.npy is listed again",
    ),
    "no shards": (lambda c: c["shards"].clear(), "must list at least one shard"),
    "a flat image": (lambda c: c.update(image_shape=[4, 4]), r"image_shape must be \(H, W, C\), but is \(4, 4\)"),
    "images of no size": (lambda c: c.update(image_shape=[4, 0, 3]), "a size in image_shape must be a whole number"),
    "a number as text": (lambda c: shard(c).update(images="2"), "must be a whole number from 1 on, but is '2'"),
    "a truth value": (lambda c: shard(c).update(images=True), "whole number from 1 on, but is True"),
    "negative counts": (lambda c: shard(c).update(classes=[3, -1]), "of a class must be a whole number from 0 on"),
    "counts that do not add up": (lambda c: shard(c).update(classes=[1, 0]), "must add up to the 2 images"),
    "a size too small": (
        lambda c: shard(c)["image"].update(bytes=96),
        r"the size of 1\.image\.npy must be .* from 97 on",
    ),
    "no hash": (lambda c: shard(c)["image"].pop("sha256"), "damaged, a part is missing or misplaced .'sha256'"),
    "no list": (lambda c: c.update(shards=3), "damaged, a part is missing or misplaced"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_manifests_are_refused(folder, case):
    change, message = BAD[case]
    changed(folder, change)
    with pytest.raises(ValueError, match=rf"manifest\.json: .*{message}"):
        read_manifest(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\ufffe", '"lightning-paf pool"'])
def test_other_files_of_this_name_are_refused(folder, text):
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: (damaged, not JSON|not the manifest of a pool)"):
        read_manifest(folder)


LEAVES = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=2) | st.just([]) | st.just({})


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_no_change_gets_past_the_checks_with_another_error(tmp_path_factory, data):
    folder = write_shards(tmp_path_factory.mktemp("pool") / "p", *arrays(n=3), sizes=(3,))
    content = json.loads((folder / "manifest.json").read_text())
    place = content
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(LEAVES)
    (folder / "manifest.json").write_text(json.dumps(content))
    with suppress(ValueError):
        assert len(read_manifest(folder)) == 3
