import shutil
import warnings
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.data_files import arrays, write_npz, write_pairs
from lightning.pytorch.trainer.states import TrainerFn

from lightning_paf.data import Augment, CropFlip, RobustDataModule
from lightning_paf.schedules import Cosine, Switch


class Blacken(Augment):
    def __call__(self, images):
        return torch.zeros_like(images)


@pytest.fixture
def root(tmp_path):
    """Thirty training images, each of a constant value, 1 to 30; eleven test images."""
    image = np.broadcast_to(np.arange(1, 31, dtype=np.uint8)[:, None, None, None], (30, 4, 4, 3))
    np.savez(tmp_path / "train.npz", image=image, label=np.arange(30) % 3)
    write_npz(tmp_path / "test.npz", n=11, seed=1)
    return tmp_path


@pytest.fixture
def pool(root):
    """Twelve synthetic images with values 101 to 112."""
    image = np.broadcast_to(np.arange(101, 113, dtype=np.uint8)[:, None, None, None], (12, 4, 4, 3))
    np.savez(root / "pool.npz", image=image, label=np.arange(12) % 3)
    return root / "pool.npz"


def make(root, **options):
    defaults = {"num_classes": 3, "real_fraction": 1.0, "batch_size": 8, "val_size": 6, "num_workers": 0}
    return RobustDataModule("npz", root, **{**defaults, **options})


def trainer(ranks=1, rank=0, fn=TrainerFn.FITTING, epochs=None):
    return SimpleNamespace(world_size=ranks, global_rank=rank, state=SimpleNamespace(fn=fn), max_epochs=epochs)


def ready(data, stage="fit", **options):
    if options:
        data.trainer = trainer(**options)
    data.prepare_data()
    data.setup(stage)
    return data


def values(data, loader):
    """The value of every image, batch by batch, after the transfer to the device."""
    batches = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    return [(images[:, 0, 0, 0] * 255).round().int().tolist() for images, _ in batches]


def test_batches_are_floats_in_the_unit_interval_with_channels_first(root):
    data = ready(make(root))
    images, labels = data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)
    expected_images, expected_labels = arrays(n=11, seed=1)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert torch.equal(images, torch.from_numpy(expected_images).permute(0, 3, 1, 2) / 255)
    assert torch.equal(labels, torch.from_numpy(expected_labels))
    assert labels.dtype == torch.int64


def test_training_validation_and_test_images_are_disjoint_and_complete(root):
    data = ready(make(root))
    train = {value for batch in values(data, data.train_dataloader()) for value in batch}
    val = {value for batch in values(data, data.val_dataloader()) for value in batch}
    assert len(val) == 6
    assert not train & val
    assert train | val == set(range(1, 31))


@pytest.mark.parametrize("workers", [0, 1])
def test_every_batch_has_the_exact_fraction_of_real_images(root, pool, workers):
    data = ready(make(root, synthetic=pool, real_fraction=0.3, num_workers=workers))
    batches = values(data, data.train_dataloader())
    assert len(batches) == 12  # 24 real images, 2 in a batch
    assert [sum(value <= 30 for value in batch) for batch in batches] == [2] * 12
    assert all(len(batch) == 8 for batch in batches)
    real = [value for batch in batches for value in batch if value <= 30]
    assert len(set(real)) == 24


def test_labels_belong_to_their_images(root, pool):
    data = ready(make(root, synthetic=pool, real_fraction=0.5))
    for batch in data.train_dataloader():
        value = batch.images[:, 0, 0, 0].long()
        assert torch.equal(batch.labels, torch.where(value > 100, value - 101, value - 1) % 3)
        assert torch.equal(batch.synthetic, value > 100)


@pytest.mark.parametrize("augment", [None, CropFlip(1)])
@pytest.mark.parametrize("augment_synthetic", [True, False])
def test_training_batches_are_channels_last(root, pool, augment, augment_synthetic):
    options = {"augment": augment, "augment_synthetic": augment_synthetic}
    data = ready(make(root, synthetic=pool, real_fraction=0.5, **options))
    batch = next(iter(data.train_dataloader()))
    torch.manual_seed(0)
    images, labels = data.on_after_batch_transfer(batch, 0)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels is batch.labels
    torch.manual_seed(0)
    raw = batch.images.permute(0, 3, 1, 2)
    expected = augment(raw) if augment else raw.clone()
    if not augment_synthetic:
        expected[batch.synthetic] = raw[batch.synthetic]
    assert torch.equal(images, expected / 255)


@pytest.mark.parametrize("batch", [torch.zeros(2, 3, 4, 4), [torch.zeros(2)], {"image": torch.zeros(2)}])
def test_batches_of_other_loaders_and_samples_of_an_export_are_not_changed(root, batch):
    assert make(root).on_after_batch_transfer(batch, 0) is batch


def test_ranks_divide_every_batch_of_one_rank(root, pool):
    options = {"synthetic": pool, "real_fraction": 0.3}
    alone = ready(make(root, **options))
    expected = values(alone, alone.train_dataloader())
    parts = [ready(make(root, **options), ranks=4, rank=rank) for rank in range(4)]
    got = [values(part, part.train_dataloader()) for part in parts]
    assert [list(chain(*slices)) for slices in zip(*got, strict=True)] == expected


@pytest.mark.parametrize("eval_batch_size", [1, 2, 5, 256])
def test_two_ranks_divide_the_test_images_into_equally_many_batches(root, eval_batch_size):
    parts = [ready(make(root, eval_batch_size=eval_batch_size), ranks=2, rank=rank) for rank in range(2)]
    batches = [[len(batch.labels) for batch in part.test_dataloader()] for part in parts]
    assert [sum(sizes) for sizes in batches] == [6, 5]
    assert len(batches[0]) == len(batches[1])


def test_the_seed_determines_the_training_order_and_not_the_validation_images(root):
    modules = [ready(make(root, seed=seed)) for seed in (0, 0, 1)]
    first, same, other = (values(data, data.train_dataloader()) for data in modules)
    assert first == same != other
    assert len({str(values(data, data.val_dataloader())) for data in modules}) == 1


def test_evaluation_is_not_augmented(root):
    data = ready(make(root, augment=Blacken()))
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        images, _ = data.on_after_batch_transfer(next(iter(loader)), 0)
        assert (images > 0).any()


def test_loaders_and_evaluation_draw_no_global_random_numbers(root):
    data = ready(make(root, augment=CropFlip()))
    before = torch.get_rng_state()
    batches = list(data.train_dataloader())
    for batch in data.val_dataloader():
        data.on_after_batch_transfer(batch, 0)
    assert torch.equal(torch.get_rng_state(), before)
    data.on_after_batch_transfer(batches[0], 0)
    assert not torch.equal(torch.get_rng_state(), before)


def test_synthetic_images_only_in_epochs_of_a_number_of_images(root, pool):
    data = ready(make(root, synthetic=pool, real_fraction=0.0, epoch=30))
    batches = values(data, data.train_dataloader())
    assert [len(batch) for batch in batches] == [8] * 4
    assert all(value > 100 for batch in batches for value in batch)


@pytest.mark.parametrize("options", [{}, {"real_fraction": 0.5}])
def test_a_rare_class_is_drawn_as_often_as_others(root, pool, options):
    image, _ = arrays(n=130, num_classes=3)
    np.savez(root / "train.npz", image=image, label=np.r_[np.zeros(100, int), np.ones(20, int), np.full(10, 2)])
    sources = {"synthetic": pool, "epoch": 2400} if options else {"epoch": 1200}
    data = ready(make(root, batch_size=12, class_balanced=True, **options, **sources))
    batches = list(data.train_dataloader())
    labels = torch.cat([batch.labels[~batch.synthetic] for batch in batches])
    assert len(labels) == 1200
    assert (labels.bincount() / 1200).tolist() == pytest.approx([1 / 3] * 3, abs=0.06)
    again = ready(make(root, batch_size=12, class_balanced=True, **options, **sources)).train_dataloader()
    assert torch.equal(next(iter(again)).images, batches[0].images)


def test_few_training_images_for_quick_runs(root):
    data = ready(make(root, train_examples=9))
    seen = [value for batch in values(data, data.train_dataloader()) for value in batch]
    assert len(set(seen)) == 9
    assert len(seen) == 16
    with pytest.raises(ValueError, match=r"train_examples must be at most 24, .* got 25\. Pass --data\.train"):
        ready(make(root, train_examples=25))


def test_several_sources_are_concatenated(root, pool):
    write_npz(root / "more" / "a.npz", ("X", "Y"), seed=2)
    write_npz(root / "more" / "b.npz", seed=3)
    written = write_pairs(root / "arrays", *arrays(seed=4), {"shard-00000.": 7, "shard-00001.": 5})
    before = set(root.rglob("*"))
    sources = {"synthetic": [pool, root / "more", written], "cache_dir": root / "cache"}
    with pytest.raises(ValueError, match=r"not converted yet\. Call prepare_data"):
        make(root, **sources, real_fraction=0.5).setup("fit")
    data = ready(make(root, **sources, real_fraction=0.5))
    batch = data._train_set.__getitems__(range(24, 72))
    parts = [tuple(np.load(pool)[key] for key in ("image", "label")), *(arrays(seed=seed) for seed in (2, 3, 4))]
    for got, expected in zip(batch[:2], zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(got, np.concatenate(expected))
    assert {path for path in root.rglob("*") if "cache" not in path.parts[-3:]} == before


def test_selection_on_the_test_set_warns_and_holds_nothing_out(root):
    with pytest.warns(UserWarning, match=r"data\.selection=test: the best checkpoint is chosen on the test set"):
        data = ready(make(root, selection="test", val_size=1000))
    assert len(data.val_dataloader().dataset) == 11
    assert len(data.train_dataloader().dataset) == 30
    (root / "test.npz").unlink()
    with pytest.raises(ValueError, match=r"test\.npz: there is no such file"):
        ready(make(root, selection="test"))


@pytest.mark.parametrize(
    ("fn", "stage", "missing", "options", "size"),
    [
        (TrainerFn.TESTING, "test", "train", {"val_size": 1024, "synthetic": "gone.npz", "real_fraction": 0.5}, 11),
        (TrainerFn.PREDICTING, "predict", "train", {"val_size": 1024}, 11),
        (TrainerFn.FITTING, "fit", "test", {}, 6),
        (TrainerFn.VALIDATING, "validate", "test", {}, 6),
    ],
)
def test_a_stage_needs_only_its_own_images(root, fn, stage, missing, options, size):
    (root / f"{missing}.npz").unlink()
    data = make(root, **options)
    data.trainer = trainer(fn=fn)
    ready(data, stage)
    loader = data.test_dataloader() if missing == "train" else data.val_dataloader()
    assert len(loader.dataset) == size


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_validation_images_of_npz_are_used(root, stage):
    write_npz(root / "val.npz", n=5, seed=7)
    (root / "test.npz").unlink()
    data = ready(make(root, val_size=1024), stage)
    images, _ = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert torch.equal(images, torch.from_numpy(arrays(n=5, seed=7)[0]).permute(0, 3, 1, 2) / 255)
    if stage == "fit":
        assert len({value for batch in values(data, data.train_dataloader()) for value in batch}) == 30


def test_validation_images_of_npz_are_checked(root):
    write_npz(root / "val.npz", n=5, size=6)
    with pytest.raises(ValueError, match="val set: images must have the size of the real ones"):
        ready(make(root))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": None}, r"Pass --data\.num_classes K"),
        ({"batch_size": 0}, r"batch_size must be from 1 to 2\^31 - 1, got 0\. Pass another --data\.batch_size"),
        ({"eval_batch_size": 0}, "eval_batch_size must be from 1"),
        ({"num_workers": -1}, r"num_workers must be at least 0, got -1\. Pass --data\.num_workers 0"),
        ({"num_workers": 10**6}, r"1000000 worker processes must be allowed 16000064 open files, got "),
        ({"seed": -1}, r"data\.seed must be from 0 to 2\^63 - 1, got -1"),
        ({"batch_size": 10**20}, r"batch_size must be from 1 to 2\^31 - 1, got 1000"),
        ({"epoch": 0}, "epoch must be from 1"),
        ({"train_examples": 0}, "train_examples must be from 1"),
        ({"real_fraction": 1.5}, r"real_fraction must be from 0 to 1, got 1\.5"),
        ({"real_fraction": float("nan")}, "real_fraction must be from 0 to 1, got nan"),
        ({"real_fraction": 0.01}, "must leave a real image in a batch of 8, got 0.01"),
        ({"real_fraction": 0.0}, r"must leave a real image .*--data\.real_fraction 0 --data\.epoch 50000"),
        (
            {"real_schedule": Cosine(final=2.0)},
            r"real_fraction must be scaled by a factor in \[0, 1\], got Cosine from 1 to 2",
        ),
        ({"real_fraction": 0.99}, r"must leave a synthetic image in a batch.*--data\.real_fraction 1\."),
    ],
)
def test_arguments_out_of_range_are_refused_by_the_constructor(root, options, message):
    with pytest.raises(ValueError, match=message):
        make(root, **options)


def test_real_images_are_added_late_and_epochs_keep_their_length(root, pool):
    data = ready(make(root, synthetic=pool, real_fraction=0.25, real_schedule=Switch(0.6)), epochs=5)
    loader = data.train_dataloader()
    for epoch in range(7):
        loader.sampler.set_epoch(epoch)
        batches = values(data, loader)
        assert len(batches) == 12, "24 real images, two in a batch"
        assert {sum(value <= 30 for value in batch) for batch in batches} == {2 if epoch >= 3 else 0}


@pytest.mark.parametrize("hook", ["prepare_data", "setup"])
@pytest.mark.parametrize(
    ("options", "ranks", "message"),
    [
        (
            {"real_fraction": 0.3},
            1,
            r"data\.synthetic must be set for real_fraction=0\.3, got none\. "
            r"Pass --data\.synthetic PATH\.npz or --data\.real_fraction 1\.",
        ),
        ({"synthetic": "pool.npz"}, 1, r"real_fraction must be below 1 for data\.synthetic=pool\.npz"),
        ({"batch_size": 8}, 3, r"batch_size must be a multiple of the 3 devices, got 8\. Pass --data\.batch_size 6,"),
        ({"batch_size": 2}, 3, r"Pass --data\.batch_size 3,"),
        (
            {"real_fraction": 0.25, "synthetic": "pool.npz", "real_schedule": Switch()},
            1,
            r"trainer\.max_epochs must be at least 1 for real_schedule, got 0\. Pass e\.g\. --trainer\.max_epochs 400",
        ),
    ],
)
def test_impossible_mixtures_are_refused_before_training(root, hook, options, ranks, message):
    data = make(root, **options)
    data.trainer = trainer(ranks)
    with pytest.raises(ValueError, match=message):
        getattr(data, hook)(*(["fit"] if hook == "setup" else []))


def test_impossible_splits_are_refused(root):
    with pytest.raises(ValueError, match=r"val_size must be 1 to 15"):
        ready(make(root, val_size=1024))
    with pytest.raises(ValueError, match=r"number of val images must be at least that of the 4 devices, got 2"):
        ready(make(root, val_size=2), ranks=4)


@pytest.mark.parametrize("options", [{"batch_size": 25}, {"batch_size": 8, "train_examples": 7}])
def test_a_batch_with_repeated_real_images_is_refused(root, options):
    most = options.get("train_examples", 24)
    with pytest.raises(ValueError, match=f"must leave at most {most} real images .* Pass --data.batch_size {most} or"):
        ready(make(root, **options))
    ready(make(root, **{**options, "batch_size": most}))


def test_other_training_images_than_those_of_the_checkpoint_are_reported(root, pool):
    options = {"synthetic": pool, "real_fraction": 0.5}
    saved = ready(make(root, **options)).state_dict()
    moved = shutil.copytree(root, root / "moved")
    with warnings.catch_warnings(action="error"):
        ready(make(moved, synthetic=moved / "pool.npz", real_fraction=0.5)).load_state_dict(saved)
        ready(make(root), "test").load_state_dict(saved)
    write_npz(pool, n=12, seed=5)
    with pytest.warns(UserWarning, match="The synthetic training images are not those of the checkpoint"):
        ready(make(root, **options)).load_state_dict(saved)
    with pytest.warns(UserWarning, match="The real training images are not those of the checkpoint"):
        ready(make(root, train_examples=20)).load_state_dict(saved)


@pytest.mark.parametrize("where", ["zipfile.ZipFile", "pathlib.Path.iterdir", "pathlib.Path.stat"])
def test_unreadable_files_and_folders_are_named(root, pool, where, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(13, "Permission denied", "there/pool")

    write_npz(root / "pools" / "a.npz")
    monkeypatch.setattr(where, refuse)
    data = make(root, synthetic=root / "pools", real_fraction=0.5)
    with pytest.raises(ValueError, match=r"^there/pool must be readable, got Permission denied\. Check"):
        data.prepare_data()


def test_bad_pools_are_refused_and_leave_nothing(root):
    files = set(root.iterdir())
    with pytest.raises(ValueError, match=r"gone\.npz: there is no such file"):
        ready(make(root, synthetic=root / "gone.npz", real_fraction=0.5))
    pool = write_npz(root / "pool.npz", size=8)
    with pytest.raises(ValueError, match=r"pool\.npz: images must have the size of the real ones"):
        ready(make(root, synthetic=pool, real_fraction=0.5))
    assert set(root.iterdir()) == files | {pool}
    write_npz(pool, num_classes=2)
    with pytest.raises(ValueError, match="all 3 classes must occur, got no image of 2"):
        ready(make(root, synthetic=pool, real_fraction=0.5))
