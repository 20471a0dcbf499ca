"""The public names of the package, imported on first use."""

import subprocess
import sys

import pytest

import lightning_paf
from lightning_paf.nn import activations
from lightning_paf.nn.activations import Activation

EXPECTED = {"PGD", "AutoAttack", "RobustDataModule", "RobustModule", "evaluate", "load_run", "swap_activations"}


def test_importing_the_package_imports_neither_torch_nor_numpy():
    code = "import sys, lightning_paf; print([n for n in ('torch', 'numpy', 'lightning') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_public_names_are_found(name):
    assert getattr(lightning_paf, name).__name__ == name
    assert name in dir(lightning_paf)


def test_every_activation_is_public():
    concrete = {
        name
        for name in activations.__all__
        if isinstance(value := getattr(activations, name), type)
        and issubclass(value, Activation)
        and name not in ("Activation", "ParametricActivation")
    }
    assert {name for name in dir(lightning_paf) if name in concrete} == concrete
    assert all(getattr(lightning_paf, name) is getattr(activations, name) for name in concrete)


def test_other_names_are_missing():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = lightning_paf.nothing
