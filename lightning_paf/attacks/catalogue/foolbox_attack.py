"""Minimal-norm attacks of the package foolbox."""

import importlib.metadata
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_paf.attacks.catalogue.minimal import MinimalAttack, Nearest
from lightning_paf.functional.geometry import with_finite_gradient
from lightning_paf.functional.predictions import misclassified
from lightning_paf.nn.modes import Mode
from lightning_paf.types import Forward, Norm, Radius

_ORDERS: Mapping[Norm, float] = MappingProxyType({"linf": float("inf"), "l2": 2, "l1": 1})
_NO_START = "init_attack failed"  # how foolbox says that it has no adversarial image to begin with


class FoolboxAttack(MinimalAttack):
    """Any minimal-norm attack of foolbox (Rauber et al. 2020): HopSkipJump, DDN, EAD, Brendel-Bethge, FMN, ...

    It runs in single precision, on images in [0, 1]. Every result is confirmed by the model and measured here. The
    global generators of numpy and python are left as found. Needs foolbox: pip install 'lightning-paf[attacks]'.

    Args:
        name: Class in `foolbox.attacks`, such as `HopSkipJumpAttack`, `DDNAttack`, `L2BrendelBethgeAttack`.
        eps: Largest perturbation that counts.
        norm: What the attack makes small; must be the one that foolbox says.
        options: Arguments of the class.
        mode: Whether the attacked model is in eval mode, or in train mode with its buffers protected.

    Raises:
        ModuleNotFoundError: foolbox is not installed.
        ValueError: As for every attack; no class of this name, or not a minimal-norm attack; another norm.
    """

    def __init__(
        self,
        name: str = "HopSkipJumpAttack",
        eps: Radius = Fraction(1, 2),
        *,
        norm: Norm = "l2",
        options: dict[str, Any] | None = None,
        mode: Mode = "eval",
    ) -> None:
        super().__init__(eps, norm=norm, mode=mode)
        self.name = name
        self.options = dict(options or {})
        self._attack = _made(name, self.options)
        order = getattr(self._attack.distance, "p", None)
        if order != _ORDERS[norm]:
            raise ValueError(f"{name} of foolbox minimises {self._attack.distance}, not {norm}. Pass that as norm.")

    @property
    def label(self) -> str:
        """The name that foolbox gives it, without the word attack."""
        return self.name.removesuffix("Attack").lower()

    def describe(self) -> dict[str, Any]:
        """The threat model and the settings as plain values, for result files."""
        package = f"foolbox {importlib.metadata.version('foolbox')}"
        own = {"name": self.name, "options": {key: str(value) for key, value in self.options.items()}}
        return super().describe() | own | {"package": package}

    def minimum(self, forward: Forward, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Images and distances."""
        nearest, every = Nearest(x, self.norm), torch.arange(len(x), device=x.device)
        with torch.no_grad():
            wrong = misclassified(forward(x), y)
        nearest.update(every, x, wrong)
        rows = every[~wrong]
        if len(rows):
            with _isolated(), torch.autocast(x.device.type, enabled=False):
                found = self._run(forward, x[rows], y[rows])
            with torch.no_grad():
                nearest.update(rows, found, misclassified(forward(found), y[rows]))
        return nearest.x, nearest.distances

    def _run(self, forward: Forward, x: Tensor, y: Tensor) -> Tensor:
        """What foolbox finds; if it refuses a batch because some images have no start, one by one."""
        foolbox = _foolbox()
        model = foolbox.PyTorchModel(_Net(forward).eval(), bounds=(0, 1), device=x.device)
        try:
            found: Tensor = self._attack.run(model, x, _criterion(y))
        except ValueError as error:
            if _NO_START not in str(error):
                raise
            if len(x) == 1:
                return x
            pairs = zip(torch.split(x, 1), torch.split(y, 1), strict=True)
            return torch.cat([self._run(forward, *pair) for pair in pairs])
        return torch.where(found.isfinite(), found, x).detach().clamp(0, 1)


class _Net(nn.Module):
    """The model as foolbox sees it, which wants a module and changes its mode and place."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.ask = [forward]  # in a list, so that it does not become a submodule

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.ask[0](with_finite_gradient(x))
        return logits


def _criterion(y: Tensor) -> Any:
    """Misclassification as foolbox asks for it, by which undefined logits are misclassified, too."""

    class Misclassification(_foolbox().criteria.Misclassification):  # type: ignore[misc]
        def __call__(self, perturbed: Any, outputs: Any) -> Any:
            wrong = misclassified(getattr(outputs, "raw", outputs), y)
            return type(outputs)(wrong) if hasattr(outputs, "raw") else wrong

    return Misclassification(y)


def _foolbox() -> Any:
    try:
        import foolbox
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"FoolboxAttack needs the package foolbox, but {error.name} is not installed. Run: "
            "pip install 'lightning-paf[attacks]'"
        ) from error
    return foolbox


def _made(name: str, options: dict[str, Any]) -> Any:
    foolbox = _foolbox()
    cls = getattr(foolbox.attacks, name, None)
    if not (isinstance(cls, type) and issubclass(cls, foolbox.attacks.base.MinimizationAttack)):
        raise ValueError(
            f"{name} is no minimal-norm attack of foolbox. Pass a class such as HopSkipJumpAttack or DDNAttack. "
            "Attacks with a given eps are here: PGD, FGSM, MIFGSM."
        )
    return cls(**options)


@contextmanager
def _isolated() -> Iterator[None]:
    """Leave the generators of numpy and python as found; the seed of torch decides about theirs."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    seed = int(torch.randint(2**31, ()))
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
