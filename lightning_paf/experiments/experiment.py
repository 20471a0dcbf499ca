"""What a study is: arms to train, claims to test."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.experiments import methods

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_paf.loading import Run

Measure = Callable[["Run", "Tensor", "Tensor"], Any]
"""`(run, images, labels) -> ` one bool for each image (N,), or one number: what a claim compares between arms."""


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        name: Short, as in tables.
        options: Words of `lightning-paf fit` beyond those of the study. `{NAME}` stands for the last checkpoint of the
            arm of that name with the same seed, which must be listed before; `{folder}` for a folder of this arm alone.
        before: Commands (words without `lightning-paf`) that run before the training, with the same placeholders.
        test_options: Words that change how the trained model is built when it is judged.
        after: Arms before it that measures of it need, with the same seed; those in placeholders need not be named.
    """

    name: str
    options: tuple[str, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()
    test_options: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    def needs(self, other: "Arm") -> bool:
        """Whether the other arm has to be done first."""
        words = (*self.options, *self.test_options, *(word for command in self.before for word in command))
        return other.name in self.after or any(f"{{{other.name}}}" in word for word in words)


@dataclass(frozen=True)
class Claim:
    """That one arm exceeds another, or one measure another.

    Attributes:
        text: The claim in the paper's terms, one sentence.
        more: Arm that is said to have more.
        less: Arm that is said to have less.
        measure: Of what: `clean`, `pgd`, `autoattack`, or a measure of the study.
        by: By how much at least; negative for "not worse by more than".
        source: Where the paper says so, or `expected` where it is our own expectation.
        than: Measure of the arm that has less, where it is another one.
    """

    text: str
    more: str
    less: str
    measure: str
    by: float = 0.0
    source: str = "expected"
    than: str = ""

    @property
    def sides(self) -> dict[str, tuple[str, str]]:
        """What has more and what has less, as (arm, measure), each with a name of its own."""
        if not self.than:
            return {self.more: (self.more, self.measure), self.less: (self.less, self.measure)}
        pairs = ((self.more, self.measure), (self.less, self.than))
        return {f"{measure} of {arm}": (arm, measure) for arm, measure in pairs}


@dataclass(frozen=True)
class Study:
    """Arms, trained with several seeds each, and claims about them.

    Attributes:
        title: Method and paper in one line.
        arms: In the order of training.
        claims: What the outcome depends on.
        options: Words of `lightning-paf fit` for all arms.
        measures: Further measures by name. `clean`, `pgd` and `autoattack` at the study's eps are always there.
        eps: Radius (linf) at which `pgd` and `autoattack` judge.
        plain: Further measures that are no shares, such as distances, and so are not shown in %.
        shown: Measures that its picture shows side by side, all plain or none; without any it shows AutoAttack accuracy
            over clean accuracy.
        note: What a reader must know before the numbers are believed.
        first_seed: Of its trainings; above those of the trials, where trials have chosen the setting.
    """

    title: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    options: tuple[str, ...] = ()
    measures: Mapping[str, Measure] = field(default_factory=dict)
    plain: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    eps: float = 0.2
    note: str = ""
    first_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse claims, and measures to be shown, of what is not there."""
        arms, measures = {arm.name for arm in self.arms}, {"clean", "pgd", "autoattack", *self.measures}
        if not {*self.plain} <= {*self.measures}:
            raise ValueError(f"plain={self.plain} must be among the measures {sorted(self.measures)}. Correct it.")
        if not {*self.shown} <= measures or len({name in self.plain for name in self.shown}) > 1:
            raise ValueError(
                f"shown={self.shown} must be among the measures {sorted(measures)}, and all plain or none, as they "
                "share an axis. Correct it."
            )
        for claim in self.claims:
            if not {claim.more, claim.less} <= arms or not {claim.measure, claim.than or claim.measure} <= measures:
                raise ValueError(f"A claim names arms and measures of its study, but {claim} does not. Correct it.")


def study_names() -> list[str]:
    """Names of all studies, in order."""
    return sorted(info.name.replace("_", "-") for info in pkgutil.iter_modules([str(Path(methods.__file__).parent)]))


def find_study(name: str) -> Study:
    """The study of a method.

    Raises:
        ValueError: There is none of this name.
    """
    if name not in study_names():
        near = difflib.get_close_matches(name, study_names(), 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"There is no study {name!r}.{hint} Known: {', '.join(study_names())}.")
    module = importlib.import_module(f"{methods.__name__}.{name.replace('-', '_')}")
    study: Study = module.STUDY
    return study
