import numpy as np
import pytest

from lightning_paf.__main__ import main
from lightning_paf.data import RobustDataModule
from lightning_paf.data.manifest import read_manifest


def arrays(n, seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.integers(0, 256, (n, 4, 4, 3), np.uint8), "label": np.arange(n) % 3}


@pytest.fixture
def sources(tmp_path):
    (tmp_path / "parts").mkdir()
    for part in range(2):
        np.savez(tmp_path / "parts" / f"{part}.npz", **arrays(10, part))
    return tmp_path / "parts"


@pytest.fixture
def pool(sources, tmp_path, capsys):
    assert main(["pool", "write", str(sources), "--out", str(tmp_path / "pool"), "--shard_size", "8"]) == 0
    return tmp_path / "pool"


def test_the_three_commands(pool, capsys):
    assert "20 images (H, W, C) = (4, 4, 3) in 3 shard(s)" in capsys.readouterr().out
    assert main(["pool", "info", str(pool)]) == 0
    said = capsys.readouterr().out
    assert "Images of class 0, 1, …: 8, 6, 6" in said
    assert "sha256 of the manifest" in said
    assert main(["pool", "verify", str(pool)]) == 0
    assert "Every byte is as it was written." in capsys.readouterr().out


def test_verify_names_what_is_damaged(pool, capsys):
    path = pool / "shard-00001.image.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (pool / "shard-00002.label.npy").unlink()
    assert main(["pool", "verify", str(pool)]) == 1
    said = capsys.readouterr().out
    assert "shard-00001.image.npy has other content" in said
    assert "shard-00002.label.npy is missing" in said
    assert "2 damaged file(s). Copy them again" in said


def test_a_pool_is_divided_anew_and_a_damaged_one_is_not(pool, tmp_path, capsys):
    assert main(["pool", "write", str(pool), "--out", str(tmp_path / "new"), "--shard_size", "100"]) == 0
    assert len(read_manifest(tmp_path / "new").shards) == 1
    (pool / "shard-00000.image.npy").unlink()
    assert main(["pool", "write", str(pool), "--out", str(tmp_path / "newer")]) == 1
    assert "shard-00000.image.npy is missing" in capsys.readouterr().err


def test_bad_options(pool, sources, tmp_path, capsys):
    words = ["pool", "write", str(sources), "--out"]
    for rest, message in (
        ([str(pool)], "pool exists. Give the name of a new folder"),
        ([str(tmp_path / "new"), "--shard_size", "0"], "shard_size must be at least 1, but is 0"),
    ):
        assert main([*words, *rest]) == 1
        assert message in capsys.readouterr().err
    for command in ("verify", "info"):
        assert main(["pool", command, str(sources)]) == 1
        assert "not a pool, for there is no manifest.json in it" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["pool"])


@pytest.fixture
def root(tmp_path):
    for part, n in (("train", 60), ("test", 20)):
        np.savez(tmp_path / f"{part}.npz", **arrays(n, 7))
    return tmp_path


def data_module(root, synthetic, **options):
    return RobustDataModule(
        "npz", root, 3, synthetic, real_fraction=0.5, batch_size=16, val_size=10, num_workers=0, **options
    )


def test_training_mixes_pools_with_other_layouts(root, pool, sources):
    data = data_module(root, [pool, sources / "0.npz"], cache_dir=root / "cache")
    data.prepare_data()
    data.setup("fit")
    assert data._train_set.synthetic_size == 30
    expected = [arrays(10, 0), arrays(10, 1), arrays(10, 0)]
    batch = data._train_set.__getitems__(range(50, 80))
    np.testing.assert_array_equal(batch.images, np.concatenate([part["image"] for part in expected]))
    np.testing.assert_array_equal(batch.labels, np.concatenate([part["label"] for part in expected]))
    assert {file.name for file in pool.iterdir()} == {"manifest.json"} | {
        f"shard-0000{shard}.{kind}.npy" for shard in range(3) for kind in ("image", "label")
    }, "nothing is written into a pool"


def test_a_damaged_shard_is_named_before_training(root, pool):
    (pool / "shard-00001.label.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pool: all files .* 1 is not: shard-00001\.label\.npy has 0 bytes"):
        data_module(root, pool).prepare_data()
