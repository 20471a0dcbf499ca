import io

import numpy as np
import pytest
from helpers.data_files import arrays, read
from PIL import Image

from lightning_paf.data.synthetic.convert import convert, converted_folder

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def encoded(pixels, form="png", mode=None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels.squeeze())
    (image.convert(mode) if mode else image).save(buffer, form)
    return buffer.getvalue()


def write_parquet(path, image, label, names=("image", "label"), struct=True, **options):
    """Write images in the layout of Hugging Face, or as plain bytes."""
    content = [{"bytes": data, "path": f"{i}.png"} if struct else data for i, data in enumerate(image)]
    pq.write_table(pa.table({names[0]: content, names[1]: label, "split": ["a"] * len(content)}), path, **options)
    return path


@pytest.mark.parametrize("names", [("image", "label"), ("img", "label"), ("img", "fine_label")])
@pytest.mark.parametrize("struct", [True, False])
@pytest.mark.parametrize("row_group_size", [1, 5])
def test_images_are_decoded_exactly(tmp_path, names, struct, row_group_size):
    image, label = arrays()
    path = write_parquet(
        tmp_path / "a.parquet", map(encoded, image), label, names, struct, row_group_size=row_group_size
    )
    got_image, got_label = read(path)
    np.testing.assert_array_equal(got_image, image)
    np.testing.assert_array_equal(got_label, label)


def test_grey_images_keep_one_channel(tmp_path):
    image, label = arrays(channels=1)
    path = write_parquet(tmp_path / "a.parquet", map(encoded, image), label)
    np.testing.assert_array_equal(read(path)[0], image)


def test_grey_and_palette_images_are_converted_to_rgb_if_the_first_is_rgb(tmp_path):
    image, label = arrays()
    content = [encoded(image[0]), encoded(image[1], mode="L"), encoded(image[2], mode="P")]
    got = read(write_parquet(tmp_path / "a.parquet", content, label[:3]))[0]
    assert got.shape == (3, 4, 4, 3)
    assert (got[1] == got[1][..., :1]).all()


IMAGE, LABEL = arrays()
PNG = [encoded(image) for image in IMAGE]
BAD = {
    "another size": ([*PNG[:5], encoded(arrays(size=8)[0][0])], r"row 5: images must have .* got \(8, 8, 3\)"),
    "coloured among grey": ([encoded(IMAGE[0], mode="L"), PNG[1]], r"row 1: .*\(4, 4, 1\).* got \(4, 4, 3\)"),
    "transparent": ([PNG[0], encoded(IMAGE[0], mode="RGBA")], "row 1: images must be grey or RGB .* got RGBA"),
    "sixteen bits": ([encoded(np.zeros((4, 4), np.uint16))], "row 0: images must be grey or RGB with 8 bits"),
    "no image": ([PNG[0], b"no image"], "row 1: not a readable image"),
    "cut off": ([PNG[0], PNG[1][:-30]], "row 1: not a readable image"),
    "no bytes": ([PNG[0], None], "row 1: images must be stored as bytes, got none"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_images_are_named_and_nothing_is_left(tmp_path, case):
    content, message = BAD[case]
    source = write_parquet(tmp_path / "a.parquet", content, LABEL[: len(content)])
    with pytest.raises(ValueError, match=rf"a\.parquet, {message}"):
        convert(source, converted_folder(source, None), (0, 4, 4, 1 if "grey" in case else 3), 3)
    assert list(tmp_path.iterdir()) == [source]


def test_other_tables_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, PNG, LABEL, ("picture", "label"))
    with pytest.raises(ValueError, match=r"must hold the columns image \+ label or .*, got picture, label, split"):
        read(path)
    write_parquet(path, PNG, [None, *LABEL[1:].tolist()])
    with pytest.raises(ValueError, match="every image must have a label, got 1 without"):
        read(path)
    pq.write_table(pa.table({"image": [[1, 2], [3, 4]], "label": [0, 1]}), path)
    with pytest.raises(ValueError, match=r"images must be the bytes of image files, got list<"):
        read(path)
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}), path)
    with pytest.raises(ValueError, match="must hold at least one image"):
        read(path)
    write_parquet(path, PNG, [str(label) for label in LABEL])
    with pytest.raises(ValueError, match="labels must be integers"):
        convert(path, tmp_path / "b", (0, 4, 4, 3), 3)


@pytest.mark.parametrize("kept", [4, 100, -1])
def test_truncated_files_are_refused(tmp_path, kept):
    path = write_parquet(tmp_path / "a.parquet", PNG, LABEL)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"a\.parquet: damaged, or not a parquet file"):
        read(path)


def test_a_damaged_page_is_found(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", PNG, LABEL, compression="gzip")
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet"):
        read(path)
