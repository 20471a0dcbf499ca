"""AutoAttack, as an ensemble of attacks that share one fast path through the model."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_paf.attacks.apgd import APGD, FEWEST_CLASSES
from lightning_paf.attacks.base import Attack
from lightning_paf.attacks.fab import FAB
from lightning_paf.attacks.square import Square
from lightning_paf.attacks.stage import run_stage
from lightning_paf.functional.losses import hard_labels
from lightning_paf.functional.predictions import check_labels, misclassified
from lightning_paf.speed.search_model import Passes, Precision, SearchModel
from lightning_paf.types import Forward, Norm, PerExampleLoss, Radius

Version = Literal["standard", "custom"]
SubAttack = Literal["apgd-ce", "apgd-t", "apgd-dlr", "fab-t", "square"]

_STANDARD: tuple[SubAttack, ...] = ("apgd-ce", "apgd-t", "fab-t", "square")
_FEWEST: Mapping[str, int] = MappingProxyType(
    {"apgd-dlr": FEWEST_CLASSES["dlr"], "apgd-t": FEWEST_CLASSES["dlr-targeted"]}  # others: 2
)
_SQUARE_TILE = 5  # its l2 and l1 starts tile the image 5 x 5

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack found.

    Attributes:
        x_adv: Images (N, C, H, W); the clean image where none was found or none was needed.
        robust: Whether each example is classified correctly before and after, (N,) bool.
        robust_after: Number of robust examples after each attack that ran, in order; first `clean`.
        passes: Images that went through the model in each attack, under the same names; none where not counted.
        seconds: Time of each attack, under the same names.
    """

    x_adv: Tensor
    robust: Tensor
    robust_after: Mapping[str, int]
    passes: Mapping[str, Passes] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)


class AutoAttack(Attack):
    """The ensemble of Croce & Hein 2020 with its published budgets.

    `standard` runs four attacks, each on what the ones before left robust: APGD on the cross-entropy (100 steps), APGD
    on the targeted DLR loss (9 targets of 100 steps), targeted FAB (9 targets of 100 steps) and Square (5,000 queries).
    An image is not attacked again after its first success, also inside an attack. With fewer than 10 classes the
    targets are all other classes; with fewer than 4 the targeted DLR loss is not defined: use `custom` there.

    It runs in eval mode, on images in [0, 1], in single precision also under autocast; searches use the fast path of
    `SearchModel`, and the model itself confirms every success. The random generators are left as found. Progress goes
    to the logger of this module at INFO. For l1, and for `rand` and untargeted FAB, see `ReferenceAutoAttack`.

    Args:
        eps: Largest perturbation, in units of pixels in [0, 1]: `8/255`, `0.031`.
        norm: `linf` or `l2`.
        version: `standard`, or `custom` for the attacks in `attacks`.
        attacks: With `custom` only: any of apgd-ce, apgd-t, apgd-dlr, fab-t, square, in the order to run; each has the
            settings that it has in `standard`.
        seed: Seed of the first sub-attack; those of the others derive from it.
        batch_size: Images attacked at once. Results depend on it slightly, by the order of additions.
        search_precision: Of the searches. `bf16` is faster on hardware with such instructions, but may leave an image
            standing that the exact search, `fp32`, would break.
        fold: False searches on the model itself, never on a folded copy of it. Slower, and equal up to rounding.

    Raises:
        ValueError: As for every attack; l1; `attacks` missing, unknown, or given without `custom`. In the call: `loss`
            or `forward` given; images that are not float32; too few classes, or too small images, for an attack.
    """

    fixed_loss = True

    def __init__(
        self,
        eps: Radius = Fraction(8, 255),
        *,
        norm: Norm = "linf",
        version: Version = "standard",
        attacks: list[SubAttack] | None = None,
        seed: int = 0,
        batch_size: int = 250,
        search_precision: Precision = "fp32",
        fold: bool = True,
    ) -> None:
        super().__init__(eps, norm=norm, fold=fold)
        _check_options(norm, version, attacks, batch_size, search_precision)
        self.version = version
        self.attacks: tuple[SubAttack, ...] = tuple(attacks or _STANDARD)
        self.seed = seed
        self.batch_size = batch_size
        self.search_precision = search_precision

    def stages(self) -> tuple[Attack, ...]:
        """The attacks, in the order to run."""
        return tuple(_MAKE[name](self) for name in self.attacks)

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files.

        Without `seed` and `search_precision`, which a verdict has of its own.
        """
        own = {
            "version": self.version,
            "attacks": list(self.attacks),
            "batch_size": self.batch_size,
        }
        return {key: value for key, value in super().describe().items() if key != "loss"} | own

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> AutoAttackResult:
        """As the call, but returns the whole result.

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
                f"AutoAttack works on float32 images, but got {x.dtype}. Convert, or use precision 32-true."
            )
        count, y = _Count(self.search_model(model, self.search_precision), len(x)), hard_labels(y)
        robust, x_adv = self._correct(count.model, x, y), x.clone()
        count.close("clean", robust)
        for number, stage in enumerate(self.stages()):
            alive = robust.nonzero().squeeze(1)
            if len(alive) == 0:
                break
            seed = self.seed * len(self.attacks) + number
            x_adv[alive], fooled = run_stage(stage, count.model, x[alive], y[alive], seed)
            robust[alive] = ~fooled
            count.close(stage.label, robust)
        count.model.warn_of_gradients()
        warn_of_masking(count.robust_after, len(x))
        return AutoAttackResult(x_adv, robust, count.robust_after, count.passes, count.seconds)

    @torch.no_grad()
    def _correct(self, model: SearchModel, x: Tensor, y: Tensor) -> Tensor:
        """Whether each example is classified correctly, (N,) bool; refuses what the attacks cannot work on."""
        logits = torch.cat([model.exact(part) for part in torch.split(x, self.batch_size)])
        check_fit(self, self.attacks, logits.shape[1], x.shape[-2:])
        check_labels(y, len(x), logits.shape[1])
        return ~misclassified(logits, y)


_MAKE: Mapping[SubAttack, Callable[[AutoAttack], Attack]] = MappingProxyType(
    {
        "apgd-ce": lambda own: APGD(own.eps, norm=own.norm, batch_size=own.batch_size),
        "apgd-t": lambda own: APGD(own.eps, norm=own.norm, search_loss="dlr-targeted", batch_size=own.batch_size),
        "apgd-dlr": lambda own: APGD(own.eps, norm=own.norm, search_loss="dlr", batch_size=own.batch_size),
        "fab-t": lambda own: FAB(own.eps, norm=own.norm, batch_size=own.batch_size),
        "square": lambda own: Square(own.eps, norm=own.norm, batch_size=own.batch_size),
    }
)


class _Count:
    """Robust examples, passes and seconds of each attack."""

    def __init__(self, model: SearchModel, total: int) -> None:
        self.model = model
        self.total = total
        self.robust_after: dict[str, int] = {}
        self.passes: dict[str, Passes] = {}
        self.seconds: dict[str, float] = {}
        self._before = copy(model.passes)
        self._started = time.perf_counter()

    def close(self, name: str, robust: Tensor) -> None:
        """Note that an attack has ended."""
        self.robust_after[name] = int(robust.sum())
        self.seconds[name] = time.perf_counter() - self._started
        self.passes[name] = self.model.passes - self._before
        self._before, self._started = copy(self.model.passes), time.perf_counter()
        if name != "clean":
            log.info("%s: robust %d/%d (%.1f s)", name, self.robust_after[name], self.total, self.seconds[name])


def _check_options(
    norm: Norm, version: str, attacks: list[SubAttack] | None, batch_size: int, search_precision: str
) -> None:
    if norm == "l1":
        raise ValueError("AutoAttack works in linf and l2, but norm is 'l1'. Use ReferenceAutoAttack for l1.")
    if version not in get_args(Version):
        raise ValueError(
            f"version must be standard or custom, but is {version!r}. Choose one, or use ReferenceAutoAttack for rand."
        )
    check_listing(version, attacks)
    unknown = set(attacks or ()) - set(get_args(SubAttack))
    if unknown:
        raise ValueError(
            f"Unknown attacks {sorted(unknown)}. Known: {', '.join(get_args(SubAttack))}; ReferenceAutoAttack also has "
            "the untargeted fab."
        )
    if len(set(attacks or ())) < len(attacks or ()):
        raise ValueError(f"attacks={attacks} names one twice. List each once.")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1. The default is 250.")
    if search_precision not in get_args(Precision):
        raise ValueError(f"search_precision must be fp32 or bf16, but is {search_precision!r}. The default is fp32.")


def check_fit(attack: Attack, attacks: Sequence[str], classes: int, size: torch.Size) -> None:
    """Refuse a model or images that a sub-attack cannot work on.

    Args:
        attack: The ensemble, ours or the package's.
        attacks: Its sub-attacks.
        classes: Outputs of the model.
        size: Height and width of the images.

    Raises:
        ValueError: Too few classes, or too small images.
    """
    unfit = [name for name in attacks if classes < _FEWEST.get(name, 2)]
    if unfit:
        fit = [name for name in _STANDARD if classes >= _FEWEST.get(name, 2)]
        raise ValueError(
            f"{unfit[0]} of {type(attack).__name__} needs at least {_FEWEST[unfit[0]]} classes, but the model has "
            f"{classes} outputs. Use version=custom with attacks=[{', '.join(fit)}]."
        )
    if "square" in attacks and attack.norm != "linf" and min(size) < _SQUARE_TILE:
        raise ValueError(
            f"Square in the {attack.norm} norm needs images of at least {_SQUARE_TILE} x {_SQUARE_TILE} pixels, but "
            f"they are {size[0]} x {size[1]}. Use version=custom without square."
        )


def check_listing(version: str, attacks: Sequence[str] | None) -> None:
    """Refuse a list of attacks without version=custom, and the other way round."""
    if (version == "custom") != bool(attacks):
        raise ValueError(
            f"version={version} with attacks={attacks} does not fit: attacks are listed with version=custom, and "
            "only then. Set both or none."
        )


def warn_of_masking(robust_after: Mapping[str, int], total: int) -> None:
    """Square sees no gradients; where it still finds what three gradient attacks missed, these may be masked."""
    counts = list(robust_after.items())
    if len(counts) < 3 or counts[-1][0] != "square":
        return
    broken = counts[-2][1] - counts[-1][1]
    if broken > max(1, 0.002 * total):
        log.warning(
            "Of %d images, Square broke %d that the gradient attacks left robust: gradients may be masked, and the "
            "robust accuracy too high. Attack the model with a method made for it.",
            total,
            broken,
        )
