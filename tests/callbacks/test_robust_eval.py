"""Robust accuracy in validation and test, and its files."""

import errno
import json
import warnings
from dataclasses import replace

import pytest
import torch
from helpers.fakes import images, tiny_classifier
from helpers.known_accuracy import EPS, EXPECTED, IMAGES, LABELS, Brightness, BrightnessModule, data
from helpers.trainers import trainer
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_paf.attacks import PGD, AutoAttack
from lightning_paf.callbacks.robust_eval import RobustEval
from lightning_paf.evaluation import EvaluationResult, Outcome
from lightning_paf.evaluation import result as result_file
from lightning_paf.evaluation.evidence import read
from lightning_paf.evaluation.state import EvaluationState, encode
from lightning_paf.evaluation.stopping import StopRule
from lightning_paf.utils.hashing import weights_fingerprint

STEM = f"pgd_linf_{EPS}"


def evaluation(name: str = "pgd", **options) -> RobustEval:
    return RobustEval(PGD(EPS, step_size=EPS / 2, steps=4), name, **options)


def evaluate(folder, loader: DataLoader | None = None, module=None, callback: RobustEval | None = None, **options):
    """Run a test, and return its result."""
    callback = callback or evaluation(**options)
    trainer(folder, callback).test(module or BrightnessModule(), loader or data(), verbose=False)
    return callback.results["test"]


@pytest.mark.parametrize("batch_size", [3, 256])
def test_outcomes_are_those_of_the_closed_form(tmp_path, batch_size):
    callback = evaluation(batch_size=batch_size)
    metrics = trainer(tmp_path, callback).test(BrightnessModule(), data(), verbose=False)
    assert callback.results["test"].outcomes.tolist() == EXPECTED.tolist()
    assert metrics[0]["test/acc_pgd"] == pytest.approx(6 / 11)


def test_result_evidence_report_and_state_are_written(tmp_path):
    evaluate(tmp_path, name="mine")
    stem = f"mine_linf_{EPS}"
    names = {path.name for path in tmp_path.iterdir()}
    assert {f"{stem}.json", f"{stem}.evidence.safetensors", f"{stem}.html", "state"} <= names
    content = json.loads((tmp_path / f"{stem}.json").read_text())
    assert (content["attack"]["attack"], content["attack"]["eps"]) == ("PGD", str(EPS))
    assert content["robust"]["correct"] == 6
    assert [sum(row[name] for row in content["per_class"]) for name in ("evaluated", "clean", "robust")] == [11, 10, 6]
    assert content["robust"]["low"] < 6 / 11 < content["robust"]["high"]
    clean, attacked = content["calibration"]["clean"], content["calibration"]["attacked"]
    assert (clean["error"], attacked["error"]) == pytest.approx((1 / 11, 5 / 11))
    assert "Calibration and abstention" in (tmp_path / f"{stem}.html").read_text()
    assert EvaluationResult.load(tmp_path / f"{stem}.json").calibration == content["calibration"]
    assert EvaluationResult.load(tmp_path / f"{stem}.json").evaluated == 11
    assert read(tmp_path / f"{stem}.evidence.safetensors").outcomes.tolist() == EXPECTED.tolist()


def test_sub_attacks_that_need_more_classes_are_named_in_result_and_report(tmp_path):
    attack = AutoAttack(EPS, version="custom", attacks=["apgd-ce", "apgd-t"])
    with pytest.warns(UserWarning, match="AutoAttack leaves out apgd-t"):
        result = evaluate(tmp_path, callback=RobustEval(attack))
    assert result.outcomes.tolist() == EXPECTED.tolist()
    assert [summary.label for summary in result.sub_attacks] == ["clean", "apgd-ce"]
    described = json.loads((tmp_path / f"{STEM}.json").read_text())["attack"]
    assert (described["attacks"], described["left_out"]) == (["apgd-ce"], ["apgd-t"])
    assert result.evaluation.identity.attack["left_out"] == ["apgd-t"]
    assert "<dt>left out</dt>" in (tmp_path / f"{STEM}.html").read_text()


def test_the_least_robust_class_is_printed(tmp_path, caplog):
    with caplog.at_level("INFO"):
        result = evaluate(tmp_path)
    worst = min(result.per_class(), key=lambda row: row.robust / row.evaluated)
    assert f"{worst.robust} of {worst.evaluated} in class {worst.label}, the least robust" in caplog.text


def test_a_full_disk_names_the_result(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(result_file, "write_whole", full)
    with pytest.raises(ValueError, match=rf"{STEM}.json cannot be used as a result: No space left on device"):
        evaluate(tmp_path)


def test_test_examples_are_the_first_samples(tmp_path):
    assert evaluate(tmp_path, test_examples=5).outcomes.tolist() == EXPECTED[:5].tolist()


def test_a_repeated_sample_counts_once(tmp_path):
    class Repeating(torch.utils.data.Sampler):
        def __iter__(self):
            return iter([*range(11), 2, 0])

        def __len__(self):
            return 13

    assert evaluate(tmp_path, data(sampler=Repeating())).evaluated == 11


def test_a_subset_can_be_evaluated(tmp_path):
    loader = DataLoader(Subset(TensorDataset(IMAGES, LABELS), [4, 0, 7]), batch_size=2)
    assert evaluate(tmp_path, loader).outcomes.tolist() == EXPECTED[[4, 0, 7]].tolist()


class Watch(Callback):
    """Recorder of the evaluated validations."""

    def __init__(self, callback: RobustEval) -> None:
        self.callback, self.evaluated = callback, []

    def on_validation_end(self, trainer, pl_module):
        self.evaluated.append((trainer.sanity_checking, "val" in self.callback.results))
        self.callback.results.clear()


@pytest.mark.parametrize(("every", "expected"), [(2, [False, True, False, True]), (0, [False] * 4)])
def test_every_nth_epoch_is_evaluated_but_not_the_sanity_check(tmp_path, every, expected):
    callback = evaluation(every_n_epochs=every)
    watch = Watch(callback)
    trainer(tmp_path, callback, watch, max_epochs=4).fit(BrightnessModule(), data(), data())
    assert watch.evaluated == [(True, False), *((False, evaluated) for evaluated in expected)]
    assert evaluate(tmp_path, callback=callback).evaluated == 11


def test_an_evaluation_does_not_change_the_random_numbers_of_the_training(tmp_path):
    class Draws(BrightnessModule):
        def on_train_epoch_start(self):
            self.drawn = torch.rand(1)

    drawn = []
    for callbacks in ([], [evaluation()]):
        torch.manual_seed(0)
        module = Draws()
        trainer(tmp_path, *callbacks, max_epochs=2).fit(module, data(), data())
        drawn.append(module.drawn)
    assert torch.equal(*drawn)


def test_mixed_precision_does_not_apply_to_the_attack(tmp_path):
    autocast = []

    class Watched(Brightness):
        def forward(self, x):
            autocast.append(torch.is_autocast_enabled("cpu"))
            return super().forward(x)

    module = BrightnessModule()
    module.model = Watched()
    trainer(tmp_path, evaluation(), precision="bf16-mixed").test(module, data(), verbose=False)
    assert autocast
    assert not any(autocast)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "16-true"])
def test_weights_of_another_precision_are_evaluated_in_float32(precision, tmp_path):
    module = BrightnessModule()
    module.model = tiny_classifier(2, 1)
    loaded = tiny_classifier(2, 1)
    result = evaluate(tmp_path, module=module, callback=evaluation())  # fp32
    run = trainer(tmp_path, callback := evaluation(), precision=precision)
    run.test(module, data(), verbose=False)
    loaded.load_state_dict(module.model.state_dict())  # as a checkpoint is loaded
    found = callback.results["test"]
    assert found.fingerprints["model"] == weights_fingerprint(loaded)
    assert found.fingerprints["network"] == result.fingerprints["network"]
    assert next(module.model.parameters()).dtype != torch.float32


def test_several_loaders_are_refused(tmp_path):
    class TwoLoaders(BrightnessModule):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            pass

    with pytest.raises(ValueError, match="Return a single DataLoader from test_dataloader"):
        trainer(tmp_path, evaluation()).test(TwoLoaders(), [data(), data()], verbose=False)


@pytest.mark.parametrize(
    "option", [{"every_n_epochs": -1}, {"max_examples": 0}, {"test_examples": 0}, {"batch_size": 0}]
)
def test_numbers_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=f"Pass --SLOT.{next(iter(option))}"):
        evaluation(**option)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", ".hidden", "..", "a b", "a\\b", "x" * 65, "a\n"])
def test_names_that_are_not_file_names_are_refused(name):
    with pytest.raises(ValueError, match="name must be 1 to 64 letters, digits"):
        evaluation(name)


def test_batch_norm_and_modes_are_unchanged(tmp_path):
    module = BrightnessModule()
    module.model = tiny_classifier().train()
    module.model.net.bn.eval()
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    evaluate(tmp_path, DataLoader(TensorDataset(*images()), batch_size=4), module)
    assert module.model.training
    assert not module.model.net.bn.training
    assert all(torch.equal(before[key], value) for key, value in module.model.state_dict().items())


def test_a_repeated_test_reads_its_records(tmp_path, monkeypatch):
    evaluate(tmp_path)
    monkeypatch.setattr(PGD, "perturb", lambda *_: pytest.fail("attacked samples with a record"))
    assert evaluate(tmp_path).outcomes.tolist() == EXPECTED.tolist()
    monkeypatch.undo()
    evaluate(tmp_path, seed=1)
    assert len(list((tmp_path / "state").iterdir())) == 2, "another seed has another state"


def test_a_fresh_test_uses_no_records(tmp_path):
    """Records from others can be forged consistently."""
    callback = evaluation()
    evaluate(tmp_path, callback=callback)
    (state,) = (EvaluationState(folder) for folder in (tmp_path / "state").iterdir())
    clean = state.read(0, 0)
    forged = replace(clean, predictions=clean.labels)
    (state.folder / "block-00000.sub-attack-0.record").write_bytes(encode(forged))
    with pytest.warns(UserWarning, match="follows a record that has been replaced"):
        assert evaluate(tmp_path).clean.correct == 11
    callback.fresh = True
    assert evaluate(tmp_path, callback=callback).outcomes.tolist() == EXPECTED.tolist()


@pytest.mark.parametrize("folder", [None, "mine"])
def test_a_precision_by_the_device_is_recorded_and_not_changed_by_another_machine(tmp_path, monkeypatch, folder):
    options = {"search_precision": "auto", "state_dir": folder and tmp_path / folder}
    machine(monkeypatch, bf16=True)
    assert evaluate(tmp_path, **options).precision == "bf16"
    assert json.loads((tmp_path / f"{STEM}.json").read_text())["precision"] == "bf16"
    machine(monkeypatch, bf16=False)
    with pytest.raises(ValueError, match=r"bf16, got auto, which is fp32 on this device. Pass --autoattack.search_pre"):
        evaluate(tmp_path, **options)
    assert evaluate(tmp_path, **{**options, "search_precision": "bf16"}).precision == "bf16"


def test_a_precision_by_the_device_without_such_instructions_is_fp32(tmp_path, monkeypatch):
    machine(monkeypatch, bf16=False)
    assert evaluate(tmp_path, search_precision="auto").precision == "fp32"
    assert evaluate(tmp_path, search_precision="auto").precision == "fp32"


def machine(monkeypatch, bf16: bool) -> None:
    """Replace the processor by one with or without bf16 instructions."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)


def test_a_named_state_refuses_another_evaluation(tmp_path):
    evaluate(tmp_path, state_dir=tmp_path / "mine")
    with pytest.raises(ValueError, match="seed is 1 here, 0 in the state"):
        evaluate(tmp_path, state_dir=tmp_path / "mine", seed=1)


def test_a_stop_rule_evaluates_random_samples(tmp_path):
    class AfterSix(StopRule):
        reason = "six are enough"

        def __call__(self, robust, evaluated, total):
            return evaluated >= 6

    result = evaluate(tmp_path, batch_size=3, stop=AfterSix())
    assert (result.evaluated, result.total) == (6, 11)
    assert result.anytime is not None
    assert int((EXPECTED == Outcome.ROBUST).sum()) / 11 in result.anytime
    assert json.loads((tmp_path / f"{STEM}.json").read_text())["anytime"]["low"] == result.anytime.low
    assert result.ids.tolist() != list(range(6))
    assert result.outcomes.tolist() == EXPECTED[result.ids].tolist()


class Learner(BrightnessModule):
    """A module whose weights change in every step."""

    def __init__(self) -> None:
        super().__init__()
        self.model.scale = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        return self.model.scale.sum()


def test_weights_in_memory_are_identified_by_their_hash(tmp_path):
    module, run = Learner(), trainer(tmp_path, evaluation())
    run.test(module, data(), verbose=False)
    run.fit(module, data())
    run.test(module, data(), verbose=False)
    found = {path.name: EvaluationResult.load(path) for path in tmp_path.glob("*.json")}
    before = found.pop(f"{STEM}.json")
    (after,) = found.values()
    assert (before.weights.file, before.weights.global_step) == ("weights in memory", 0)
    assert (after.weights.file, after.weights.global_step) == ("weights in memory", 3)
    assert before.fingerprints["model"] != after.fingerprints["model"] == weights_fingerprint(module)


def test_a_result_written_meanwhile_is_kept(tmp_path, monkeypatch):
    """Two checkpoints are tested at the same time."""
    other = tmp_path / f"{STEM}.json"
    perturb = PGD.perturb

    def slow(*args):
        other.write_text('{"identity": "other"}')
        return perturb(*args)

    monkeypatch.setattr(PGD, "perturb", slow)
    evaluate(tmp_path)
    assert other.read_text() == '{"identity": "other"}'
    assert len(list(tmp_path.glob(f"{STEM}-????????.*"))) == 3


@pytest.mark.parametrize(("factor", "warns"), [(0.99, False), (0.5, True)])
def test_a_training_with_another_radius_is_reported(tmp_path, factor, warns):
    module = BrightnessModule()
    module.attack = PGD(factor * EPS, step_size=factor * EPS / 2, steps=4)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        evaluation().setup(trainer(tmp_path), module, "fit")
    assert any("evaluates at linf" in str(one.message) for one in found) == warns
