"""Experiments: variants to train and claims to test."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_paf.experiments import methods
from lightning_paf.experiments.claims import AbstractClaim
from lightning_paf.experiments.claims import Claim as Claim  # for the files of methods

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from lightning_paf.loading import Run

Metric = Callable[["Run", "Tensor", "Tensor"], Any]
"""Function `(run, images, labels)` to one bool per image (N,) or one number.

NaN is an undefined number.
"""
Drawing = Callable[[Mapping[str, Any]], "Figure | None"]
"""Function from a result of `report.content` to a figure."""


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        name: Short, as in tables.
        options: Words of `lightning-paf fit` in addition to those of the experiment. `{NAME}` is the last checkpoint
            of an earlier variant with the same seed, `{folder}` a folder of this variant.
        before: Commands (words without `lightning-paf`) that run before the training, with the same placeholders.
        test_options: Words that change how the trained model is built for the evaluation.
        after: Earlier variants that its metrics need, with the same seed; placeholders imply theirs.
        last: Words of `lightning-paf fit` after all others, which override those of the data.
    """

    name: str
    options: tuple[str, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()
    test_options: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    last: tuple[str, ...] = ()

    def needs(self, other: "Variant") -> bool:
        """Whether the other variant must finish first."""
        words = (*self.options, *self.test_options, *(word for command in self.before for word in command))
        return other.name in self.after or any(f"{{{other.name}}}" in word for word in words)


@dataclass(frozen=True)
class Measurement:
    """Evaluation of trained runs that are no classifiers.

    Attributes:
        kind: `Task.kind` of the runs.
        metrics: Names of the metrics.
        scores: Function `(run, examples)` to values by metric: one for each of the first test images (N,), or one
            number.
        unit: Quantity and unit of the `plain` metrics, such as "PSNR in dB".
    """

    kind: str
    metrics: tuple[str, ...]
    scores: "Callable[[Run, int], Mapping[str, Any]]"
    unit: str = "as measured"


@dataclass(frozen=True)
class Experiment:
    """Variants, each trained with several seeds, and claims about them.

    Attributes:
        title: Method and paper in one line.
        variants: In the order of training.
        claims: Claims about the variants.
        options: Words of `lightning-paf fit` for all variants.
        metrics: Further metrics by name. `clean`, `pgd` and `autoattack` at `eps` are always measured.
        eps: Radius (linf) of `pgd` and `autoattack`; None for that of the training attack.
        plain: Further metrics that are not fractions, such as distances; they are not shown in %.
        shown: Metrics in the figure, either all `plain` or none; if empty, the figure shows AutoAttack accuracy over
            clean accuracy.
        note: Limitations of the numbers.
        first_seed: First seed; above the seeds of any trials that chose the settings.
        config: Recipe that all variants share by default.
        pool: Command (words without `lightning-paf`) that writes `{pool}`, the second source of training images for
            the default `config`.
        histories: Columns of `metrics.csv` to keep in the result for each training, for figures.
        figures: Further figures by name; the name "" replaces the default figure.
        measurement: Replaces the metrics and attacks of classifiers, for other tasks; None for classifiers. It needs
            `shown`.
    """

    title: str
    variants: tuple[Variant, ...]
    claims: tuple[AbstractClaim, ...]
    options: tuple[str, ...] = ()
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    plain: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    eps: float | None = 0.2
    note: str = ""
    first_seed: int = 0
    config: str = "experiments/digits"
    pool: tuple[str, ...] = ()
    histories: tuple[str, ...] = ()
    figures: Mapping[str, Drawing] = field(default_factory=dict)
    measurement: Measurement | None = None

    @property
    def own_metrics(self) -> list[str]:
        """Names of the metrics other than those of every classifier."""
        return sorted(self.metrics if self.measurement is None else self.measurement.metrics)

    def __post_init__(self) -> None:
        """Check the names in claims, `plain` and `shown`."""
        variants, own = {variant.name for variant in self.variants}, self.own_metrics
        metrics = {*own} if self.measurement else {"clean", "pgd", "autoattack", *own}
        if not {*self.plain} <= {*own}:
            raise ValueError(f"plain must be among the metrics {own}, got {self.plain}. Pass names of metrics.")
        unclear = not self.shown and self.measurement is not None
        if unclear or not {*self.shown} <= metrics or len({name in self.plain for name in self.shown}) > 1:
            raise ValueError(
                f"shown must be metrics of the experiment, either all fractions or all not, as they use one axis, got "
                f"{self.shown}. Pass some of {', '.join(sorted(metrics))}."
            )
        for claim in self.claims:
            if not all(variant in variants and metric in metrics for variant, metric in claim.sides):
                raise ValueError(
                    f"A claim must name variants and metrics of its experiment, got {claim}. Correct the names."
                )


def experiment_names() -> list[str]:
    """Names of all experiments, in order."""
    return sorted(info.name.replace("_", "-") for info in pkgutil.iter_modules([str(Path(methods.__file__).parent)]))


def find_experiment(name: str) -> Experiment:
    """The experiment of a method.

    Raises:
        ValueError: No experiment has this name.
    """
    if name not in experiment_names():
        near = difflib.get_close_matches(name, experiment_names(), 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"There is no experiment {name!r}.{hint} Known: {', '.join(experiment_names())}.")
    module = importlib.import_module(f"{methods.__name__}.{name.replace('-', '_')}")
    experiment: Experiment = module.EXPERIMENT
    return experiment
