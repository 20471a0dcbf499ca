import json

import pytest
import torch
from helpers.fakes import images, tiny_classifier
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

from lightning_paf.attacks import PGD, Attack
from lightning_paf.callbacks.robust_eval import RobustEval
from lightning_paf.evaluation import EvaluationResult, Outcome
from lightning_paf.evaluation.evidence import read
from lightning_paf.evaluation.stopping import StopRule
from lightning_paf.utils.hashing import weights_fingerprint


class Brightness(torch.nn.Module):
    """Class 1 where the mean pixel is above one half: under linf eps the prediction flips within eps of that."""

    def forward(self, x: Tensor) -> Tensor:
        level = x.mean((1, 2, 3))
        return torch.stack([0.5 - level, level - 0.5], 1) * 10


class Module(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Brightness()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        return self.weight.sum() ** 2

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


LEVELS = torch.tensor([0.1, 0.3, 0.45, 0.48, 0.52, 0.55, 0.7, 0.9, 0.9, 0.1, 0.6])
LABELS = (LEVELS > 0.5).long()
LABELS[7] = 0  # a clean error
EPS = 0.06
EXPECTED = torch.where((LEVELS - 0.5).abs() < EPS, Outcome.FOOLED, Outcome.ROBUST)
EXPECTED[7] = Outcome.MISCLASSIFIED


def data(batch_size: int = 4, **kwargs) -> DataLoader:
    x = LEVELS.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    return DataLoader(TensorDataset(x, LABELS), batch_size=batch_size, **kwargs)


def trainer(tmp_path, *callbacks: Callback, **kwargs) -> Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return Trainer(
        accelerator="cpu", default_root_dir=tmp_path, callbacks=list(callbacks), inference_mode=False, **quiet, **kwargs
    )


def pgd(eps: float = EPS) -> Attack:
    return PGD(eps, step_size=eps / 2, steps=4)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_outcomes_on_a_model_with_a_known_robust_accuracy(tmp_path, batch_size):
    check = RobustEval(pgd(), batch_size=batch_size)
    metrics = trainer(tmp_path, check).test(Module(), data(), verbose=False)
    assert check.results["test"].outcomes.tolist() == EXPECTED.tolist()
    assert metrics[0]["test/acc_pgd"] == pytest.approx(6 / 11)


def test_the_result_file_names_the_threat_model(tmp_path):
    trainer(tmp_path, RobustEval(pgd(), "mine")).test(Module(), data(), verbose=False)
    path = tmp_path / f"mine_linf_{EPS}.json"
    content = json.loads(path.read_text())
    assert content["attack"]["attack"] == "PGD"
    assert content["attack"]["eps"] == str(EPS)
    assert content["robust"]["correct"] == 6
    assert content["robust"]["low"] < 6 / 11 < content["robust"]["high"]
    assert EvaluationResult.load(path).evaluated == 11


def test_a_subset_is_the_first_samples_of_the_dataset(tmp_path):
    check = RobustEval(pgd(), test_examples=5)
    trainer(tmp_path, check).test(Module(), data(), verbose=False)
    assert check.results["test"].outcomes.tolist() == EXPECTED[:5].tolist()


def test_a_sample_that_the_sampler_repeats_counts_once(tmp_path):
    class Repeating(torch.utils.data.Sampler):
        def __iter__(self):
            return iter([*range(11), 2, 0])

        def __len__(self):
            return 13

    check = RobustEval(pgd())
    trainer(tmp_path, check).test(Module(), data(sampler=Repeating()), verbose=False)
    assert check.results["test"].evaluated == 11


class Schedule(Callback):
    def __init__(self, check: RobustEval) -> None:
        self.check, self.evaluated = check, []

    def on_validation_end(self, trainer, pl_module):
        self.evaluated.append((trainer.sanity_checking, trainer.current_epoch, "val" in self.check.results))
        self.check.results.clear()


def test_every_nth_epoch_and_never_in_the_sanity_check(tmp_path):
    check = RobustEval(pgd(), every_n_epochs=2)
    schedule = Schedule(check)
    trainer(tmp_path, check, schedule, max_epochs=4).fit(Module(), data(), data())
    assert schedule.evaluated[0][0]
    assert [evaluated for *_, evaluated in schedule.evaluated] == [False, False, True, False, True]


def test_zero_epochs_means_test_only(tmp_path):
    check = RobustEval(pgd(), every_n_epochs=0)
    trainer(tmp_path, check, max_epochs=2).fit(Module(), data(), data())
    assert not check.results
    trainer(tmp_path, check).test(Module(), data(), verbose=False)
    assert check.results["test"].evaluated == 11


def test_the_training_draws_the_same_random_numbers_with_and_without_a_check(tmp_path):
    class Draws(Module):
        def on_train_epoch_start(self):
            self.drawn = torch.rand(1)

    drawn = []
    for callbacks in ([], [RobustEval(pgd())]):
        torch.manual_seed(0)
        module = Draws()
        trainer(tmp_path, *callbacks, max_epochs=2).fit(module, data(), data())
        drawn.append(module.drawn)
    assert torch.equal(*drawn)


def test_mixed_precision_does_not_reach_the_attack(tmp_path):
    seen = []

    class Watched(Brightness):
        def forward(self, x):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(x)

    module = Module()
    module.model = Watched()
    trainer(tmp_path, RobustEval(pgd()), precision="bf16-mixed").test(module, data(), verbose=False)
    assert seen
    assert not any(seen)


def test_several_loaders_are_refused(tmp_path):
    class TwoLoaders(Module):
        def test_step(self, batch, batch_idx, dataloader_idx=0):
            pass

    with pytest.raises(ValueError, match="Return a single DataLoader from test_dataloader"):
        trainer(tmp_path, RobustEval(pgd())).test(TwoLoaders(), [data(), data()], verbose=False)


@pytest.mark.parametrize(
    "option", [{"every_n_epochs": -1}, {"max_examples": 0}, {"test_examples": 0}, {"batch_size": 0}]
)
def test_nonsense_is_refused(option):
    (name,) = option
    with pytest.raises(ValueError, match=name):
        RobustEval(pgd(), **option)


def test_batch_norm_and_flags_are_left_alone(tmp_path):
    module = Module()
    module.model = tiny_classifier().train()
    module.model.net.bn.eval()
    before = {key: value.clone() for key, value in module.model.state_dict().items()}
    trainer(tmp_path, RobustEval(pgd())).test(module, DataLoader(TensorDataset(*images()), batch_size=4), verbose=False)
    assert module.model.training
    assert not module.model.net.bn.training
    assert all(torch.equal(before[key], value) for key, value in module.model.state_dict().items())


def test_subset_datasets_work(tmp_path):
    x = LEVELS.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    loader = DataLoader(Subset(TensorDataset(x, LABELS), [4, 0, 7]), batch_size=2)
    check = RobustEval(pgd())
    trainer(tmp_path, check).test(Module(), loader, verbose=False)
    assert check.results["test"].outcomes.tolist() == EXPECTED[[4, 0, 7]].tolist()


def evaluated(tmp_path, **options) -> RobustEval:
    check = RobustEval(pgd(), batch_size=3, **options)
    trainer(tmp_path, check).test(Module(), data(), verbose=False)
    return check


def test_a_test_writes_result_evidence_report_and_state(tmp_path):
    evaluated(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    stem = f"pgd_linf_{EPS}"
    assert {f"{stem}.json", f"{stem}.evidence.safetensors", f"{stem}.html", "state"} <= names
    content = read(tmp_path / f"{stem}.evidence.safetensors")
    assert content.outcomes.tolist() == EXPECTED.tolist()


def test_the_same_test_again_finds_its_records(tmp_path, monkeypatch):
    evaluated(tmp_path)
    monkeypatch.setattr(PGD, "perturb", lambda *_: pytest.fail("attacked what is in the state"))
    assert evaluated(tmp_path).results["test"].outcomes.tolist() == EXPECTED.tolist()


def test_another_seed_gets_another_state(tmp_path):
    evaluated(tmp_path)
    evaluated(tmp_path, seed=1)
    assert len(list((tmp_path / "state").iterdir())) == 2


def test_a_named_state_refuses_another_evaluation(tmp_path):
    evaluated(tmp_path, state_dir=tmp_path / "mine")
    with pytest.raises(ValueError, match="seed: here 1, state 0"):
        evaluated(tmp_path, state_dir=tmp_path / "mine", seed=1)


def test_a_stop_rule_evaluates_a_random_part(tmp_path):
    class AfterSix(StopRule):
        reason = "six are enough"

        def __call__(self, robust, evaluated, total):
            return evaluated >= 6

    result = evaluated(tmp_path, stop=AfterSix()).results["test"]
    assert result.evaluated == 6
    assert result.total == 11
    robust = int((EXPECTED == Outcome.ROBUST).sum()) / 11
    assert result.anytime is not None
    assert robust in result.anytime
    assert json.loads((tmp_path / f"pgd_linf_{EPS}.json").read_text())["anytime"]["low"] == result.anytime.low
    assert result.ids.tolist() != sorted(result.ids.tolist()) or result.ids.tolist() != list(range(6))
    assert result.outcomes.tolist() == EXPECTED[result.ids].tolist()


class Learner(Module):
    """Weights that every step changes."""

    def __init__(self) -> None:
        super().__init__()
        self.model.scale = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        return self.model.scale.sum()


def test_weights_in_memory_are_known_by_their_fingerprint(tmp_path):
    module, fit = Learner(), trainer(tmp_path, RobustEval(pgd()), max_epochs=1)
    fit.test(module, data(), verbose=False)
    fit.fit(module, data())
    fit.test(module, data(), verbose=False)
    found = {p.name: EvaluationResult.load(p) for p in tmp_path.glob("*.json")}
    before = found.pop(f"pgd_linf_{EPS}.json")
    (after,) = found.values()
    assert (before.weights.file, before.weights.global_step) == ("weights in memory", 0)
    assert (after.weights.file, after.weights.global_step) == ("weights in memory", 3)
    assert before.fingerprints["model"] != after.fingerprints["model"] == weights_fingerprint(module.model)


def test_another_test_that_ends_meanwhile_keeps_its_result(tmp_path, monkeypatch):
    """As of two checkpoints that are tested at the same time."""
    other = tmp_path / f"pgd_linf_{EPS}.json"
    perturb = PGD.perturb

    def slow(*args):
        other.write_text('{"identity": "other"}')
        return perturb(*args)

    monkeypatch.setattr(PGD, "perturb", slow)
    evaluated(tmp_path)
    assert other.read_text() == '{"identity": "other"}'
    assert len(list(tmp_path.glob(f"pgd_linf_{EPS}-????????.*"))) == 3
