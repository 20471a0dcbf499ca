import pytest
import torch
from cli_runs import status

from lightning_paf.attacks import PGD
from lightning_paf.evaluation.oracles import linear, oracles
from lightning_paf.tools import selftest
from lightning_paf.tools.selftest import Duty, duties_of

EVERYWHERE = {"pgd", "restarts", "worst-of"}
OURS = {"apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "autoattack"}


@pytest.mark.parametrize(
    ("norm", "quick", "expected"),
    [
        ("linf", False, EVERYWHERE | OURS | {"square", "reference"}),
        ("l2", False, EVERYWHERE | OURS | {"square", "reference"}),
        ("l1", False, EVERYWHERE | {"reference"}),
        ("linf", True, EVERYWHERE | OURS),
        ("l1", True, EVERYWHERE),
    ],
)
def test_every_attack_of_a_norm_is_held_against_an_oracle(norm, quick, expected):
    found = [duty for oracle in oracles() for duty in duties_of(oracle.case(norm), quick=quick)]
    assert {duty.name for duty in found} == expected
    assert all(duty.attack.norm == norm for duty in found)
    assert {duty.name for duty in found if duty.reach < 1} <= {"square"}


def test_with_two_classes_only_what_needs_no_third_is_held_against_the_oracle():
    names = {duty.name for duty in duties_of(linear(2).case("linf"))}
    assert names == {"pgd", "restarts", "worst-of", "apgd-ce", "fab-t", "square", "autoattack"}


@pytest.mark.slow
def test_a_healthy_installation_passes(capsys):
    before = torch.get_rng_state()
    assert status("selftest", "--quick") == 0
    assert torch.equal(torch.get_rng_state(), before)
    printed = capsys.readouterr().out
    assert "linf" in printed
    assert "l2" in printed
    assert "l1" in printed
    assert printed.count(" ok") == int(printed.split("all ")[1].split()[0]) > 50
    assert "NO" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("name", ["square", "autoattack", "reference"])
def test_what_quick_leaves_out_passes(name):
    case = oracles()[-1].case("linf")
    duty = next(duty for duty in duties_of(case) if duty.name == name)
    row = selftest._check(case, duty)
    assert row.finding.ok, row.finding
    assert row.finding.survived == row.finding.robust


class NoStep(PGD):
    """Gives back what it got."""

    def perturb(self, forward, x, y, loss):
        return x


class TooFar(PGD):
    """Takes twice the radius."""

    def perturb(self, forward, x, y, loss):
        further = PGD(2 * self.eps, step_size=self.eps, steps=20, norm=self.norm)
        return further.perturb(forward, x, y, loss)


@pytest.mark.parametrize(("attack", "words"), [(NoStep, "images missed"), (TooFar, "nothing can break")])
def test_a_crippled_attack_fails_the_command(monkeypatch, capsys, attack, words):
    def only_that(case, *, quick):
        yield Duty("crippled", attack(case.eps, step_size=case.eps, norm=case.norm))

    monkeypatch.setattr(selftest, "duties_of", only_that)
    assert status("selftest", "--quick") == 1
    printed = capsys.readouterr().out
    assert "12 of 12 checks failed" in " ".join(printed.split())
    complaint = next(line for line in printed.splitlines() if line.startswith("crippled on linear, 2 classes, linf"))
    missed, impossible = (int(complaint.split(mark)[0].split()[-1]) for mark in (" images missed", " broken that"))
    assert words in complaint
    assert (missed if attack is NoStep else impossible) > 10


def test_one_that_falls_short_by_its_nature_is_told_so():
    case = linear(2).case("l2")
    half = PGD(0.8 * case.eps, norm="l2", step_size=case.eps, steps=5)
    assert case.check(half).missed > 0
    assert case.check(half, reach=0.79).ok
    assert torch.isfinite(case.radii).all()
