"""AutoAttack, an ensemble of attacks that share one fast path through the model."""

import copy
import logging
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_paf.attacks.apgd import APGD, FEWEST_CLASSES
from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.fab import FAB
from lightning_paf.attacks.probe import Flags, gradient_flag, masking_flag, probe, warn_of
from lightning_paf.attacks.smoothed_pgd import SmoothedPGD
from lightning_paf.attacks.square import Square
from lightning_paf.attacks.sub_attack import run_sub_attack
from lightning_paf.attacks.target import Target
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import misclassified
from lightning_paf.speed.search_precision import SearchPrecision, check_search_precision, resolved
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius

Version = Literal["standard", "strong", "custom"]
SubAttack = Literal["apgd-ce", "apgd-t", "apgd-dlr", "fab-t", "square", "smoothed-pgd"]

_STANDARD: tuple[SubAttack, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
_TARGETED: tuple[SubAttack, ...] = ("apgd-ce", "fab-t", "square")
_ATTACKS: Mapping[Version, tuple[SubAttack, ...]] = MappingProxyType(
    {"standard": _STANDARD, "strong": (*_STANDARD, "smoothed-pgd")}
)
_FEWEST: Mapping[str, int] = MappingProxyType(
    {"apgd-dlr": FEWEST_CLASSES["dlr"], "apgd-t": FEWEST_CLASSES["dlr-targeted"]}  # others: 2
)
_SUBSTITUTES: Mapping[str, str] = MappingProxyType({"apgd-t": "apgd-dlr"})  # where there are too few classes
_SQUARE_TILE = 5  # its l2 and l1 starts tile the image 5 x 5

Run = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function from images and labels to adversarial images and a mask of the fooled."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoAttackResult:
    """Result of AutoAttack.

    Attributes:
        x_adv: Images (N, C, H, W); the clean image where none was found or none was needed.
        robust: Whether each example is classified correctly before and after, (N,) bool.
        robust_after: Number of robust examples after each attack that ran, in order; first `clean`.
        flags: Signs of an unreliable result; see `probe`.
    """

    x_adv: Tensor
    robust: Tensor
    robust_after: Mapping[str, int]
    flags: Flags = field(default_factory=dict)


class Ensemble(Attack):
    """Attacks that run in turn, each on the remaining robust examples."""

    fixed_loss = True
    attacks: tuple[Any, ...]
    left_out: tuple[str, ...] = ()

    def for_classes(self, classes: int) -> "Ensemble":
        """The ensemble without the attacks that need more classes.

        With 3 classes, `apgd-dlr` replaces `apgd-t`.
        """
        super().for_classes(classes)
        fit = dict.fromkeys(name for name in map(partial(_substitute, classes=classes), self.attacks) if name)
        if tuple(fit) == self.attacks:
            return self
        label = type(self).__name__
        if not fit:
            raise ValueError(
                f"The model must have at least {min(_FEWEST.get(name, 2) for name in self.attacks)} classes for "
                f"{', '.join(self.attacks)} of {label}, got {classes} outputs. Pass version=standard."
            )
        left_out = tuple(name for name in self.attacks if name not in fit)
        warnings.warn(
            f"{label} leaves out {', '.join(left_out)}, whose loss needs more than {classes} classes, and runs "
            f"{', '.join(fit)}.",
            stacklevel=2,
        )
        fitted = copy.copy(self)
        fitted.attacks, fitted.left_out = tuple(fit), left_out
        return fitted

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        left_out = {"left_out": list(self.left_out)} if self.left_out else {}
        return super().describe() | {"attacks": list(self.attacks)} | left_out

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> AutoAttackResult:
        """Attack a batch and return images and counts.

        Args:
            model: Images in [0, 1] to logits (N, C).
            x: Images (N, C, H, W) float32 in [0, 1].
            y: Labels (N,) int64.
        """
        with self._ready(model):
            return self._evaluate(model, self._own(x, y), y.detach().clone())

    def perturb(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        """Run all attacks in turn."""
        del loss
        assert isinstance(forward, nn.Module)  # `fixed_loss` admits no other
        return self._evaluate(forward, x, y).x_adv

    def _evaluate(self, model: nn.Module, x: Tensor, y: Tensor) -> AutoAttackResult:
        if x.dtype != torch.float32:
            raise ValueError(
                f"Images must be float32 for {type(self).__name__}, got {x.dtype}. Convert, or pass precision 32-true."
            )
        found = probe(model, x, y)
        result = self.evaluate(found.model, x, hard_labels(y))
        result = replace(result, flags={**found.flags, **result.flags, **masking_flag(result.robust_after, len(x))})
        warn_of(result.flags)
        return result

    def _aimed(self, forward: Forward, x: Tensor, y: Tensor, loss: PerExampleLoss) -> Tensor:
        return self.perturb(forward, x, y, loss)  # its attacks have the target

    @abstractmethod
    def evaluate(self, model: nn.Module, x: Tensor, y: Tensor) -> AutoAttackResult:
        """Run all attacks in turn on the frozen model."""

    def run_in_turn(self, x: Tensor, y: Tensor, robust: Tensor, attacks: Iterable[tuple[str, Run]]) -> AutoAttackResult:
        """Run each attack on the examples that the earlier ones left robust.

        Args:
            x: Images (N, C, H, W).
            y: Labels (N,).
            robust: Whether each image is classified correctly, (N,) bool; overwritten.
            attacks: Name and function of each attack.
        """
        x_adv, robust_after = x.clone(), {"clean": int(robust.sum())}
        for name, run in attacks:
            rows, started = robust.nonzero().squeeze(1), time.perf_counter()
            if len(rows) == 0:
                break
            x_adv[rows], fooled = run(x[rows], y[rows])
            robust[rows] = ~fooled
            robust_after[name] = int(robust.sum())
            seconds = time.perf_counter() - started
            log.info("%s: robust %d/%d (%.1f s)", name, robust_after[name], len(x), seconds)
        return AutoAttackResult(x_adv, robust, robust_after)


class AutoAttack(Ensemble):
    """The ensemble of Croce & Hein 2020 with its published budgets.

    `standard` runs four attacks: APGD on the cross-entropy (100 steps), APGD on the targeted DLR loss (9 targets of
    100 steps), targeted FAB (9 targets of 100 steps) and Square (5,000 queries). Each runs on the images that the
    earlier ones left robust. With fewer than 10 classes the targets are all other classes. The targeted DLR loss
    needs 4 classes: with 3, the untargeted one replaces it; with 2, it is left out. The result names it.

    `strong` runs `standard` first, with the same results, then `SmoothedPGD` on the images that are still robust. It
    finds adversarial images beyond plateaus of the loss, which `standard` misses. It costs at most half the passes of
    `standard` more.

    It runs in eval mode, on images in [0, 1], in single precision even under autocast. Searches use the fast path of
    `SearchModel`, and the model itself confirms every success. The random generators are restored. Progress is logged
    at INFO. For l1, `rand` and untargeted FAB, see `ReferenceAutoAttack`.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: `linf` or `l2`.
        version: `standard`, `strong`, or `custom` for the attacks in `attacks`.
        attacks: With `custom` only: any of apgd-ce, apgd-t, apgd-dlr, fab-t, square, smoothed-pgd, in the order to run,
            with the settings of `strong`.
        seed: Seed of the first sub-attack; those of the others derive from it.
        batch_size: Images attacked at once. Results depend on it slightly, by the order of additions.
        search_precision: Precision of the searches. `bf16` is faster on hardware with such instructions, but can miss
            an adversarial image that `fp32` would find. `auto` is bf16 on such hardware, otherwise fp32.
        fold: False searches on the model itself, never on a folded copy of it. Slower, and equal up to rounding.
        target: See `Attack`. It leaves out APGD on the DLR losses, which have targets of their own or none.

    Raises:
        ValueError: `norm` is l1, or `attacks` is missing, unknown, or given without `custom`; see also `Attack`. In the
            call: `loss` or `forward` is given, images are not float32 or have too few pixels, or all attacks need more
            classes.
    """

    settings = ("version", "batch_size")  # seed and search_precision are settings of the evaluation

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        version: Version = "standard",
        attacks: list[SubAttack] | None = None,
        seed: int = 0,
        batch_size: int = 250,
        search_precision: SearchPrecision = "fp32",
        fold: bool = True,
        target: Target = None,
    ) -> None:
        super().__init__(eps, norm=norm, fold=fold, target=target)
        if norm == "l1":
            raise ValueError("norm of AutoAttack must be linf or l2, got 'l1'. Pass ReferenceAutoAttack for l1.")
        check_listing(version, get_args(Version), attacks, get_args(SubAttack) if target is None else _TARGETED)
        if len(set(attacks or ())) < len(attacks or ()):
            raise ValueError(f"attacks must be distinct, got {attacks}. Pass each once.")
        check_search_precision(search_precision)
        default = _TARGETED if target is not None else _ATTACKS.get(version, ())
        self.attacks: tuple[SubAttack, ...] = tuple(attacks or default)
        self.version, self.seed, self.batch_size, self.search_precision = version, seed, batch_size, search_precision
        self.require(batch_size=1)

    def sub_attacks(self) -> tuple[Attack, ...]:
        """The attacks, in the order to run."""
        options = {"norm": self.norm, "batch_size": self.batch_size, "target": self.target}
        return tuple(_MAKE[name](self.eps, **options) for name in self.attacks)

    def evaluate(self, model: nn.Module, x: Tensor, y: Tensor) -> AutoAttackResult:
        """Run all attacks in turn on the frozen model."""
        members = _STANDARD if self.version == "strong" else self.attacks  # seeds of `strong` are those of `standard`
        search, seed = self.search_model(model, resolved(self.search_precision, x.device)), self.seed * len(members)
        with torch.no_grad():
            logits = torch.cat([search.exact(part) for part in torch.split(x, self.batch_size)])
        fitted = self.for_classes(logits.shape[1])
        check_size(fitted, x.shape[-2:])
        attacks = (
            (attack.label, partial(run_sub_attack, attack, search, seed=seed + number))
            for number, attack in enumerate(fitted.sub_attacks())
        )
        result = self.run_in_turn(x, y, ~misclassified(logits, y), attacks)
        return replace(result, flags=gradient_flag(search.not_finite, search.passes.backward))


_MAKE: Mapping[SubAttack, Callable[..., Attack]] = MappingProxyType(
    {
        "apgd-ce": APGD,
        "apgd-t": partial(APGD, search_loss="dlr-targeted"),
        "apgd-dlr": partial(APGD, search_loss="dlr"),
        "fab-t": FAB,
        "square": Square,
        "smoothed-pgd": SmoothedPGD,
    }
)


def _substitute(name: str, classes: int) -> str:
    """The attack, or what replaces it for this many classes; empty if nothing does."""
    while name and classes < _FEWEST.get(name, 2):
        name = _SUBSTITUTES.get(name, "")
    return name


def check_size(attack: Ensemble, size: torch.Size) -> None:
    """Check the image size for all sub-attacks."""
    if "square" in attack.attacks and attack.norm != "linf" and min(size) < _SQUARE_TILE:
        raise ValueError(
            f"Images must be at least {_SQUARE_TILE} x {_SQUARE_TILE} for Square in {attack.norm}, got "
            f"{size[0]} x {size[1]}. Pass version=custom without square."
        )


def check_listing(version: str, versions: Sequence[str], attacks: Sequence[str] | None, known: Sequence[str]) -> None:
    """Check the version of an ensemble, and the attacks of `version=custom`."""
    if version not in versions:
        hint = " Pass ReferenceAutoAttack for rand." if version == "rand" else ""
        raise ValueError(f"version must be one of {', '.join(versions)}, got {version!r}.{hint}")
    if (version == "custom") != bool(attacks):
        raise ValueError(
            f"attacks must be listed with version=custom, and only then, got version={version} and attacks={attacks}. "
            "Pass both or none."
        )
    if unknown := set(attacks or ()) - set(known):
        raise ValueError(
            f"attacks must be among {', '.join(known)}, got {', '.join(sorted(unknown))}. Pass known ones."
        )
