"""Hold every evaluation attack against classifiers whose exact robust accuracy is known; under a minute."""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_paf.attacks import Attack
    from lightning_paf.evaluation.oracles import Case, Finding, Oracle
    from lightning_paf.types import Norm

SQUARE_L2_REACH = 0.6
"""Square gets to about 60 % to 85 % of the largest rise of a linear function in l2, whatever number of queries it is
given: its perturbations are sums of bumps, and windows forget what they held."""

SEED = 0


@dataclass(frozen=True)
class Duty:
    """What must reach the oracle.

    Attributes:
        name: Of the row.
        attack: With the threat model of the case.
        reach: Share of eps up to which it must break every image.
    """

    name: str
    attack: "Attack"
    reach: float = 1.0


@dataclass(frozen=True)
class Row:
    """One attack on one oracle."""

    norm: "Norm"
    oracle: str
    eps: float
    duty: Duty
    finding: "Finding"


def main(argv: list[str]) -> int:
    """Run all checks and print a table.

    Args:
        argv: Options, see `--help`.

    Returns:
        Exit status: 0, or 1 where an attack missed an image that it must break, or broke one that nothing can break.
    """
    parser = argparse.ArgumentParser("lightning-paf selftest", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="without Square and the reference package")
    options = parser.parse_args(argv)
    started = time.perf_counter()
    from rich.progress import track

    cases = _cases()
    duties = [(case, duty) for case in cases for duty in duties_of(case, quick=options.quick)]
    rows = [_check(case, duty) for case, duty in track(duties, "Attacking oracles", total=len(duties), transient=True)]
    _print(rows)
    failed = [row for row in rows if not row.finding.ok]
    for row in failed:
        print(_complaint(row))
    outcome = f"{len(failed)} of {len(rows)} checks failed" if failed else f"all {len(rows)} checks passed"
    print(f"{outcome} in {time.perf_counter() - started:.0f} s")
    return 1 if failed else 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other make networks of this size several times slower."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def duties_of(case: "Case", *, quick: bool = False) -> Iterator[Duty]:
    """The attacks that must reach an oracle under one threat model.

    Args:
        case: The threat model.
        quick: Without Square, and without the reference package, which is slower.
    """
    import torch

    with torch.no_grad():
        classes = case.oracle.model(case.x[:1]).shape[1]
    yield from _gradient_duties(case, classes)
    if case.norm != "l1":
        yield from _ensemble_duties(case, classes, quick)
    if not quick and classes == 4:  # one oracle is enough for somebody else's package
        yield _reference(case)


def _gradient_duties(case: "Case", classes: int) -> Iterator[Duty]:
    from lightning_paf.attacks import PGD, Restarts, WorstOf
    from lightning_paf.functional import cross_entropy, margin

    eps, norm = case.eps, case.norm

    def pgd(loss: object, start: str) -> PGD:
        return PGD(eps, norm=norm, step_size=eps / 10, steps=50, best=True, loss=loss, start=start)  # type: ignore[arg-type]

    yield Duty("pgd", pgd(margin, "none"))
    yield Duty("restarts", Restarts(pgd(margin, "uniform"), 3))
    yield Duty("worst-of", WorstOf([pgd(loss, "none") for loss in (margin, cross_entropy)]))


def _ensemble_duties(case: "Case", classes: int, quick: bool) -> Iterator[Duty]:
    from lightning_paf.attacks import APGD, FAB, AutoAttack, Square

    eps, norm = case.eps, case.norm
    yield Duty("apgd-ce", APGD(eps, norm=norm))
    if classes >= 4:
        yield Duty("apgd-dlr", APGD(eps, norm=norm, search_loss="dlr", restarts=5))
        yield Duty("apgd-t", APGD(eps, norm=norm, search_loss="dlr-targeted"))
    yield Duty("fab-t", FAB(eps, norm=norm))
    if not quick:
        queries, reach = (2000, 1.0) if norm == "linf" else (1000, SQUARE_L2_REACH)
        yield Duty("square", Square(eps, norm=norm, queries=queries), reach)
    # Square makes most of the time of AutoAttack, and has its own row: one oracle is enough for the whole ensemble.
    whole = not quick and classes == 4 and norm == "linf"
    attacks = ["apgd-ce", *(["apgd-t"] if classes >= 4 else []), "fab-t", *(["square"] if whole else [])]
    yield Duty("autoattack", AutoAttack(eps, norm=norm, version="custom", attacks=attacks))  # type: ignore[arg-type]


def _reference(case: "Case") -> Duty:
    """The package, without its Square, which would take longer than all the rest."""
    from lightning_paf.attacks import ReferenceAutoAttack

    attack = ReferenceAutoAttack(case.eps, norm=case.norm, version="custom", attacks=["apgd-ce", "apgd-t", "fab-t"])
    return Duty("reference", attack)


def _cases() -> "list[Case]":
    from lightning_paf.evaluation.oracles import oracles

    norms: tuple[Norm, ...] = ("linf", "l2", "l1")
    found: Sequence[Oracle] = oracles()
    return [oracle.case(norm) for norm in norms for oracle in found]


def _check(case: "Case", duty: Duty) -> Row:
    import torch

    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        finding = case.check(duty.attack, duty.reach)
    return Row(case.norm, case.oracle.name, case.eps, duty, finding)


def _print(rows: list[Row]) -> None:
    """A table for each norm: attacks down, oracles across."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    for norm in dict.fromkeys(row.norm for row in rows):
        mine = [row for row in rows if row.norm == norm]
        cells = {(row.duty.name, row.oracle): row for row in mine}
        heads = {row.oracle: row for row in mine}
        table = Table("attack", title=f"{norm}: robust accuracy in %, time")
        for oracle, row in heads.items():
            table.add_column(f"{oracle}\neps {row.eps:.3g}", justify="right")
        exact = (f"[bold]{100 * row.finding.robust / row.finding.total:.1f}[/]" for row in heads.values())
        table.add_row("[bold]exact[/]", *exact, end_section=True)
        complete_first = sorted(
            mine, key=lambda row: row.oracle != mine[-1].oracle
        )  # the last oracle meets all attacks
        for name in dict.fromkeys(row.duty.name for row in complete_first):
            table.add_row(name, *(_cell(cells.get((name, oracle))) for oracle in heads))
        console.print(table)
    if any(row.duty.reach < 1 for row in rows):
        console.print(
            f"[dim]≥ square in l2 does not find the optimum even of a linear function: it must break what "
            f"{SQUARE_L2_REACH:.0%} of eps can break.[/]"
        )


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    finding, about = row.finding, "≥ " if row.duty.reach < 1 else ""
    colour = "green" if finding.ok else "bold red"
    mark = "ok" if finding.ok else "NO"
    survived = 100 * finding.survived / finding.total
    return f"{about}{survived:.1f} [dim]{finding.seconds:.1f}s[/] [{colour}]{mark}[/]"


def _complaint(row: Row) -> str:
    found = row.finding
    return (
        f"{row.duty.name} on {row.oracle}, {row.norm} eps {row.eps:.4g}: {found.missed} images missed that it must "
        f"break, {found.impossible} broken that nothing can break or outside the threat model."
    )
