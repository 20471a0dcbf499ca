"""The parts in configs/catalogue: they build, say everything that their attack can be told, and need no other."""

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch
import yaml
from helpers.fakes import root_without_runs

import lightning_paf.attacks
from lightning_paf.cli.training import train

ROOT = Path(__file__).parent.parent.parent
PARTS = sorted((ROOT / "configs" / "catalogue").glob("*.yaml"))
parts = pytest.mark.parametrize("part", PARTS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root_without_runs(tmp_path_factory.mktemp("root")))
        yield train(["-c", "configs/demo/digits.yaml"], run=False).parser


def cls_of(part):
    attack = yaml.safe_load(part.read_text())["init_args"]["attack"]
    return getattr(lightning_paf.attacks, attack["class_path"]), attack["init_args"]


@parts
def test_a_part_states_every_argument(part):
    """An argument that two classes share would otherwise survive from the attack of the run."""
    cls, arguments = cls_of(part)
    assert set(inspect.signature(cls).parameters) == set(arguments)


@parts
def test_a_part_replaces_the_attack_of_a_run_and_builds(parser, part):
    words = ["-c", "configs/demo/digits.yaml", "--val_attack", "configs/eval/pgd40_margin.yaml"]
    cls, _ = cls_of(part)
    if cls.__name__ == "FoolboxAttack" and not importlib.util.find_spec("foolbox"):
        pytest.skip("needs foolbox")
    config = parser.parse_args([*words, "--val_attack", str(part.relative_to(ROOT))])
    with torch.device("meta"):
        built = parser.instantiate_classes(config)
    assert type(built.val_attack.attack) is cls
    assert built.val_attack.name == part.stem


def test_every_attack_of_the_catalogue_has_a_part():
    assert {cls_of(part)[0].__name__ for part in PARTS} >= {
        *("BIM", "ILCM", "MIFGSM", "DeepFool", "CarliniWagner", "UniversalPerturbation", "JSMA", "OnePixel"),
        *("ZOO", "OPT", "SignOPT", "Boundary", "Square", "FoolboxAttack"),
    }
