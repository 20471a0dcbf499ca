"""Pools drawn by several, killed and suspended processes, and their selection by classifiers."""

import os
import random
import signal
import time
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.pool_worker import BLOCKS, PLAN, Brightness, Plain, start, work
from torch import nn

from lightning_paf.synthesis import pool as pool_file
from lightning_paf.synthesis.pool import PoolSource, log_odds, parts_folder, write_pool
from lightning_paf.synthesis.pool_plan import PoolPlan

slow = pytest.mark.slow
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a server of processes")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The pool that one process draws without interruption."""
    out = tmp_path_factory.mktemp("alone") / "pool.npz"
    work(out)
    return out


def same(out, alone):
    """Whether a pool is that of one process, and nothing else is left."""
    return out.read_bytes() == alone.read_bytes() and list(out.parent.iterdir()) == [out]


def test_images_follow_their_labels(alone):
    with np.load(alone) as pool:
        images, labels = pool["image"], pool["label"]
    assert (images.dtype, images.shape, labels.dtype) == (np.uint8, (50, 2, 2, 1), np.int64)
    assert np.bincount(labels).tolist() == [17, 17, 16]
    assert np.abs(images.reshape(50, -1) / 255 * 3 - labels[:, None] - 0.5).max() < 0.51
    assert len(np.unique(images[:, 0, 0, 0])) > 40
    assert same(alone, alone)


def test_three_devices_draw_the_same_pool(tmp_path, alone):
    work(tmp_path / "pool.npz", 0.01, PLAN, 3)
    assert same(tmp_path / "pool.npz", alone)


@slow
@needs_fork
def test_three_processes_draw_the_same_pool(tmp_path, alone):
    running = [start(tmp_path / "pool.npz", 0.05) for _ in range(3)]
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert same(tmp_path / "pool.npz", alone)


@slow
@needs_fork
def test_a_pool_killed_at_random_moments_resumes(tmp_path, alone):
    seed = random.randrange(2**32)
    moments, out = random.Random(seed), tmp_path / "pool.npz"
    for drawn in range(1, BLOCKS, 2):
        process = start(out, 0.1)
        while len(list(parts_folder(out).glob("block-*.npz"))) < drawn:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        os.kill(process.pid, signal.SIGKILL)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert not out.exists(), f"kill with seed {seed} came too late"
    files = {path: path.stat().st_mtime_ns for path in parts_folder(out).glob("block-*.npz")}
    counts = []
    write_pool(out, PLAN, [PoolSource(Plain())], counts.append)
    assert counts[0] == 7 * len(files) >= 7 * (BLOCKS - 1), "blocks were drawn again"
    assert same(out, alone), f"seed {seed}"


def test_a_process_that_comes_too_late_leaves_the_pool(tmp_path, alone):
    out = tmp_path / "pool.npz"
    out.write_bytes(alone.read_bytes())
    assert not write_pool(out, PLAN, [PoolSource(Plain())])
    assert same(out, alone)
    assert write_pool(out, replace(PLAN, seed=1), [PoolSource(Plain())], replace=True)
    assert not same(out, alone)


def test_a_process_without_work_waits_for_the_pool_of_another(tmp_path, alone, monkeypatch):
    out = tmp_path / "pool.npz"

    def finished(*_):
        parts_folder(out).rename(tmp_path / "removed")
        out.write_bytes(alone.read_bytes())

    monkeypatch.setattr(pool_file, "_draw_all", finished)
    assert not write_pool(out, PLAN, [PoolSource(Plain())])


def test_an_error_of_one_device_stops_the_others(tmp_path):
    class Broken(Plain):
        def sample(self, count, labels, rng):
            raise RuntimeError("out of memory")

    plan = replace(PLAN, count=5000)
    with pytest.raises(RuntimeError, match="out of memory"):
        write_pool(tmp_path / "pool.npz", plan, [PoolSource(Plain(pause=0.05)), PoolSource(Broken())])
    assert len(list(parts_folder(tmp_path / "pool.npz").glob("block-*.npz"))) < 50


@pytest.mark.parametrize(
    ("plan", "generator", "words"),
    [
        (replace(PLAN, seed=6), Plain(), "seed is 6 here, 5 in the folder"),
        (
            replace(PLAN, count=49, block_size=8),
            Plain(),
            "block_size is 8 here, 7 in the folder; count is 49 here, 50 in",
        ),
        (PLAN, Plain(shape=(1, 3, 3)), r"shape is \[1, 3, 3\] here, \[1, 2, 2\] in the folder"),
    ],
)
def test_blocks_of_another_pool_are_refused(tmp_path, plan, generator, words):
    out = tmp_path / "pool.npz"
    with pytest.raises(KeyboardInterrupt):
        write_pool(out, PLAN, [PoolSource(Plain())], interrupt)
    with pytest.raises(ValueError, match=f"pool.npz.parts must belong to the same pool, got: .*{words}"):
        write_pool(out, plan, [PoolSource(generator)])
    assert not out.exists()


def interrupt(drawn):
    raise KeyboardInterrupt


def test_damaged_files_are_named(tmp_path):
    out = tmp_path / "pool.npz"
    with pytest.raises(KeyboardInterrupt):
        write_pool(out, PLAN, [PoolSource(Plain())], interrupt)
    (parts_folder(out) / "block-00003.npz").write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"block-00003\.npz is damaged .* Remove it and run the same command again"):
        work(out)
    (parts_folder(out) / "identity.json").write_text("{")
    with pytest.raises(ValueError, match=r"identity\.json is damaged"):
        work(out)


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "pool.npz.parts").touch()
    with pytest.raises(ValueError, match=r"pool\.npz\.parts cannot be used as a folder of blocks"):
        work(tmp_path / "pool.npz")


def drawn(tmp_path, plan, source):
    write_pool(tmp_path / "pool.npz", plan, [source])
    with np.load(tmp_path / "pool.npz") as pool:
        return pool["image"][:, 0, 0, 0] / 255, pool["label"]


def distances(values, labels):
    """Distance from the brightness of which `Brightness` is surest, uniform in [0, 1] for all drawn images."""
    return np.abs(values - labels / 2) * 3 * np.array([1, 2, 1])[labels]


def test_a_filter_keeps_the_images_of_which_a_classifier_is_most_sure(tmp_path):
    plan = PoolPlan(300, 3, block_size=200, keep=Fraction("0.25"))
    values, labels = drawn(tmp_path, plan, PoolSource(Plain(), scorer=Brightness()))
    assert np.bincount(labels).tolist() == [100, 100, 100]
    assert distances(values, labels).max() == pytest.approx(0.25, abs=0.04)


def test_a_classifier_labels_unconditional_images(tmp_path):
    plan = PoolPlan(500, 3, conditional=False, block_size=200)
    values, labels = drawn(tmp_path, plan, PoolSource(Plain(None), Brightness()))
    assert np.abs(values * 3 - labels - 0.5).max() < 0.501
    assert np.bincount(labels) == pytest.approx(500 / 3, abs=40)


def test_the_surest_of_each_predicted_class_are_kept(tmp_path):
    plan = PoolPlan(100, 3, conditional=False, block_size=200, keep=Fraction("0.2"))
    values, labels = drawn(tmp_path, plan, PoolSource(Plain(None), Brightness(), Brightness()))
    assert np.bincount(labels) == pytest.approx(100 / 3, abs=5)
    assert distances(values, labels).max() == pytest.approx(0.2, abs=0.04)


def test_undefined_logits_are_refused(tmp_path):
    class Overflow(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 3), torch.inf)

    with pytest.raises(ValueError, match="logits of the classifier must be finite"):
        drawn(tmp_path, PLAN, PoolSource(Plain(), scorer=Overflow()))


def test_log_odds_order_probabilities_that_round_to_one():
    logits, y = torch.tensor([[0.0, 60.0], [0.0, 70.0], [1.0, 1.0]]), torch.tensor([1, 1, 0])
    assert log_odds(logits, y).tolist() == pytest.approx([60, 70, 0])
