from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers.evidence_fakes import ATTACK, attacked, locks, written
from scipy.stats import binomtest

from lightning_paf.attacks import PGD
from lightning_paf.evaluation import Evaluation
from lightning_paf.evaluation.evidence import verify as verification
from lightning_paf.evaluation.evidence.encodings import ENCODINGS
from lightning_paf.evaluation.evidence.verify import CHECKS, verify
from lightning_paf.evaluation.evidence.write import read_receipt
from lightning_paf.evaluation.samples import Samples

CONFIG = "a: 1\n"


@pytest.fixture
def parts(tmp_path):
    """Receipt, model, samples: everything in order."""
    model, samples, judged = attacked()
    return written(tmp_path / "r", model, samples, judged), model, samples


@pytest.fixture
def lock_parts(tmp_path):
    model, samples, judged = locks()
    return written(tmp_path / "r", model, samples, judged), model, samples


def named(found):
    return {(finding.check, finding.sample) for finding in found.findings}


def changed(receipt, **arrays):
    """The receipt as a forger would have it: `place=value` in some of its arrays."""
    copies = {name: getattr(receipt, name).copy() for name in arrays}
    for name, edits in arrays.items():
        for place, value in edits.items():
            copies[name][place] = value
    return replace(receipt, **copies)


def test_an_honest_receipt_holds(parts, tmp_path):
    receipt, model, samples = parts
    broken, errors = np.count_nonzero(receipt.verdicts == 2), np.count_nonzero(receipt.verdicts == 3)
    robust = len(receipt) - broken - errors
    assert min(broken, errors, robust) >= 3
    for known in (receipt, read_receipt(tmp_path / "r")):
        found = verify(known, model, samples, CONFIG)
        assert found.ok
        assert found.notes == ()
        assert found.upper_bound.correct == robust
        assert found.looked_at == {
            "weights": 1,
            "configuration": 1,
            "inputs": 40,
            "proof": broken,
            "box": broken,
            "ball": broken,
            "misclassified": broken,
            "clean error": errors,
            "robust": robust,
        }


def test_the_bound_has_its_exact_interval(parts):
    found = verify(*parts, CONFIG)
    interval = binomtest(40 - found.proven, 40).proportion_ci(0.95, method="exact")
    assert (found.upper_bound.low, found.upper_bound.high) == (interval.low, interval.high)
    assert str(found).startswith(
        f"Proven: the robust accuracy of this model is at most {found.upper_bound} (linf, eps=8/255)"
    )
    assert "Not proven, and by no receipt" in str(found)


@pytest.mark.parametrize("at_once", [128, 7])
def test_every_sample_is_passed_forward_once(lock_parts, monkeypatch, at_once):
    receipt, model, samples = lock_parts
    monkeypatch.setattr(verification, "AT_ONCE", at_once)
    model.images, steps = 0, []
    verify(receipt, model, samples, CONFIG, steps.append)
    assert model.images == sum(steps) == len(receipt)


def test_what_has_no_proof_is_found_and_not_counted(lock_parts):
    found = verify(*lock_parts, CONFIG)
    assert named(found) == {("proof", 4)}
    assert found.proven == 4  # three encodings and the clean error
    assert not found.ok


def test_the_model_is_left_as_it_was(parts):
    receipt, model, samples = parts
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert verify(receipt, model, samples, CONFIG).ok  # in eval mode, whatever it was before
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_other_weights_are_found_by_hash_and_by_prediction(parts):
    receipt, model, samples = parts
    with torch.no_grad():
        model.net.conv.weight[0, 0, 0, 0] += 1e-6
    assert named(verify(receipt, model, samples, CONFIG)) == {("weights", None)}
    with torch.no_grad():
        model.net.fc.weight.neg_()
    found = verify(receipt, model, samples, CONFIG)
    assert {check for check, _ in named(found)} >= {"weights", "misclassified", "robust"}
    assert found.proven < np.count_nonzero(receipt.verdicts >= 2)


def test_another_normalisation_is_named(parts):
    receipt, model, samples = parts
    model.mean += 0.2  # in no checkpoint, so that the weights are the same
    found = verify(receipt, model, samples, CONFIG)
    assert {check for check, _ in named(found)} <= {"misclassified", "clean error", "robust"}
    assert "normalisation" in found.notes[0]


def test_another_configuration_is_found(parts):
    receipt, model, samples = parts
    assert named(verify(receipt, model, samples, "a: 2\n")) == {("configuration", None)}
    found = verify(receipt, model, samples)
    assert found.ok
    assert found.looked_at["configuration"] == 0
    assert "configuration was not compared" in found.notes[0]


def test_another_image_is_found(parts):
    receipt, model, samples = parts
    x, y = samples.fetch(samples.ids)
    x[5, 0, 0, 0] += 2**-20
    found = verify(receipt, model, Samples.of(x, y), CONFIG)
    assert ("inputs", 5) in named(found)
    assert found.proven == verify(receipt, model, samples, CONFIG).proven - (receipt.verdicts[5] != 1)


def test_another_label_is_found(parts):
    receipt, model, samples = parts
    x, y = samples.fetch(samples.ids)
    y[9] = (y[9] + 1) % 10
    assert ("inputs", 9) in named(verify(receipt, model, Samples.of(x, y), CONFIG))


def test_a_label_of_the_receipt_alone_is_not_believed(parts):
    receipt, model, samples = parts
    robust = int(np.flatnonzero(receipt.verdicts == 1)[0])
    forged = changed(receipt, labels={robust: 9 - receipt.labels[robust]}, verdicts={robust: 3})
    found = verify(forged, model, samples, CONFIG)
    assert named(found) == {("inputs", robust), ("clean error", robust)}


@pytest.mark.parametrize(("verdict", "check"), [(1, "robust"), (3, "clean error")])
def test_verdicts_on_clean_images_are_checked(parts, verdict, check):
    receipt, model, samples = parts
    place = int(np.flatnonzero(receipt.verdicts == 4 - verdict)[0])
    assert named(verify(changed(receipt, verdicts={place: verdict}), model, samples, CONFIG)) == {(check, place)}


def shown_as(receipt, samples, image):
    """The receipt with its sample 3, whose image is stored as such, shown as another image."""
    clean = samples.fetch(np.array([3]))[0].numpy()
    payloads = list(receipt.payloads)
    payloads[len(ENCODINGS) - 1] = image(clean).astype(np.float32)
    return replace(receipt, payloads=tuple(payloads))


def lock_of_third(x, level):
    out = x.copy()
    out[0, 0, 0, 0] = level / 255
    return out


def test_an_image_that_does_not_fool_is_found(lock_parts):
    receipt, model, samples = lock_parts
    found = verify(shown_as(receipt, samples, lambda x: x), model, samples, CONFIG)
    assert named(found) == {("proof", 4), ("misclassified", 3)}
    assert found.proven == 3
    assert "sample 3, misclassified: class 0, label 0" in map(str, found.findings)


def test_an_image_outside_the_ball_is_found(lock_parts):
    receipt, model, samples = lock_parts
    assert named(verify(shown_as(receipt, samples, lambda x: lock_of_third(x, 10.3)), model, samples)) == {("proof", 4)}
    found = verify(shown_as(receipt, samples, lambda x: lock_of_third(x, 11.3)), model, samples)
    assert named(found) == {("proof", 4), ("ball", 3)}
    assert "eps is 8/255" in str(found.findings[-1])
    assert found.proven == 3


def test_the_ball_is_as_large_as_promised(lock_parts):
    receipt, model, samples = lock_parts
    clean = samples.fetch(np.array([3]))[0].numpy()

    def moved(by):
        out = clean.copy()
        out[0, 0, 1, 1] = np.float32(0.25 + by)
        return out

    eps = float(Fraction(8, 255))
    for by, inside in ((eps, True), (eps + 2**-25, True), (eps + 2**-22, False), (-eps - 2**-22, False)):
        found = verify(shown_as(receipt, samples, lambda _, by=by: moved(by)), model, samples)
        assert (("ball", 3) not in named(found)) == inside


def test_an_image_outside_the_box_is_found(lock_parts):
    receipt, model, samples = lock_parts
    x, y = samples.fetch(samples.ids)
    x[3, 0, 1, 1] = 0.0
    negative = lock_of_third(x[3:4].numpy(), 3.3)
    negative[0, 0, 1, 1] = -(2.0**-40)
    found = verify(shown_as(receipt, samples, lambda _: negative), model, Samples.of(x, y))
    assert ("box", 3) in named(found)
    assert "pixels from -9.09494702e-13" in " ".join(map(str, found.findings))


def test_logits_that_are_not_finite_are_wrong(parts):
    receipt, model, samples = parts
    with torch.no_grad():
        model.net.fc.bias[0] = torch.nan
    found = verify(receipt, model, samples, CONFIG)
    assert {check for check, _ in named(found)} == {"weights", "robust"}


def test_data_of_another_size_are_refused(parts):
    receipt, model, samples = parts
    x, y = samples.fetch(samples.ids)
    with pytest.raises(ValueError, match=r"shape \(3, 8, 8\), but the data have \(3, 4, 8\)"):
        verify(receipt, model, Samples.of(x[:, :, :4], y))
    with pytest.raises(ValueError, match="do not have: 5, the first is 35"):
        verify(receipt, model, Samples.of(x[:35], y[:35]))


def test_notes_name_versions_and_chosen_samples(parts, tmp_path):
    receipt, model, samples = parts
    versions = receipt.manifest["versions"] | {"torch": "1.0", "jax": "3"}
    counts = receipt.manifest["counts"] | {"total": 100}
    manifest = dict(receipt.manifest) | {"versions": versions, "counts": counts, "code": "0" * 64}
    x, y = samples.fetch(samples.ids)
    more = Samples(np.arange(50)[::-1].copy(), lambda ids: (x[ids], y[ids]))
    found = verify(replace(receipt, manifest=manifest), model, more, CONFIG)
    assert found.ok
    text = "\n".join(found.notes)
    for part in (f"torch is {torch.__version__} here, and was 1.0", "jax is absent here", "after 40 of 100"):
        assert part in text
    for part in ("may have chosen", "code of the attacks"):
        assert part in text
    assert len(found.notes) == 5


def test_an_l2_receipt_holds(tmp_path):
    attack = PGD(0.5, norm="l2", step_size=0.3, steps=3)
    model, samples, judged = attacked(attack=attack)
    receipt = written(tmp_path / "r", model, samples, judged, attack=attack)
    assert verify(receipt, model, samples, CONFIG).ok
    smaller = replace(receipt, manifest=dict(receipt.manifest) | {"eps": "49/100"})
    assert {check for check, _ in named(verify(smaller, model, samples, CONFIG))} == {"ball"}


def test_a_receipt_of_a_real_evaluation_holds(tmp_path):
    model, samples, _ = attacked()
    real = Evaluation(model, ATTACK, samples, seed=7, block_size=16).run()
    receipt = written(tmp_path / "r", model, samples, real, block_size=16)
    assert np.count_nonzero(real.outcomes == 2) > 20
    np.testing.assert_array_equal(receipt.verdicts, real.outcomes)
    np.testing.assert_array_equal(receipt.broken_by, real.fooled_by)
    assert [row[:2] for row in receipt.manifest["seeds"]] == [[block, stage] for block in range(3) for stage in (0, 1)]
    found = verify(read_receipt(tmp_path / "r"), model, samples, CONFIG)
    assert found.ok
    assert found.upper_bound == real.robust


def test_all_checks_are_made(parts):
    assert verify(*parts, CONFIG).looked_at.keys() == CHECKS.keys()
