"""The table of published networks: every entry can be built and found."""

import json
import re
from fractions import Fraction

import pytest
import torch
from helpers.cli_runs import built
from helpers.fakes import CONFIGS
from torch import nn

from lightning_paf import nets
from lightning_paf.commands import import_weights
from lightning_paf.interop import map_keys
from lightning_paf.interop.zoo import zoo, zoo_entries, zoo_entry

# Millions of parameters for 10 classes: Gowal et al. (2020), Rebuffi et al. (2021), Bartoldson et al. (2024).
PUBLISHED = {
    "ResNet-18": 11.17,
    "WideResNet-28-10": 36.48,
    "WideResNet-34-10": 46.16,
    "WideResNet-34-20": 184.53,
    "WideResNet-70-16": 266.80,
    "WideResNet-106-16": 415.48,
    "WideResNet-94-16": 365.92,
}
LAYOUTS = sorted({json.dumps(entry.net, sort_keys=True) for entry in zoo()})


def millions(net: nn.Module) -> float:
    return round(sum(value.numel() for value in net.parameters()) / 1e6, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_network_is_built_and_has_the_published_size(layout):
    net = json.loads(layout)
    with torch.device("meta"):
        model = getattr(nets, net["class_path"])(**net["init_args"])
    architectures = {entry.architecture for entry in zoo() if json.dumps(entry.net, sort_keys=True) == layout}
    published = {PUBLISHED[name] for name in architectures if name in PUBLISHED}
    assert published <= {millions(model)}


def test_names_are_those_of_the_leaderboard():
    names = [entry.name for entry in zoo()]
    assert len(set(names)) == len(names) == 107
    kinds = [name.rpartition("/")[0] for name in names]
    assert {kind: kinds.count(kind) for kind in kinds} == {"cifar10/linf": 59, "cifar10/l2": 17, "cifar100/linf": 31}


def test_every_entry_of_the_leaderboard_is_listed_or_has_a_documented_reason():
    page = (CONFIGS.parent / "docs" / "migration.md").read_text()
    rows = page.split("| entries for CIFAR-10 in linf | reason |")[1].split("\n\n")[0].splitlines()[2:]
    left_out = [name for row in rows for name in row.split("|")[1].replace(" ", "").split(",")]
    listed = [entry.name.rpartition("/")[2] for entry in zoo() if entry.name.startswith("cifar10/linf/")]
    assert len({*left_out, *listed}) == len(left_out) + len(listed) == 99
    without = sum(len(row.split("|")[1].split(",")) for row in rows if "no weights" in row)
    assert f"weights for {99 - without} of them, and {len(listed)} fit. These {len(left_out)} are" in page


@pytest.mark.parametrize("entry", zoo(), ids=lambda entry: entry.name)
def test_the_facts_of_an_entry_are_consistent(entry):
    assert 0 <= entry.autoattack < entry.clean < 100
    assert (
        Fraction(entry.eps) == Fraction("1/2") if entry.norm == "l2" else Fraction("0.03") < Fraction(entry.eps) < 0.032
    )
    assert len(entry.mean) == len(entry.std) in (0, 3)
    assert all(0.19 < value <= 0.51 for value in [*entry.mean, *entry.std])
    assert re.match(r"https://\w", entry.url)
    assert re.match(r"https?://\w", entry.paper)
    sizes = [str(entry.net["init_args"].get(name, "")) for name in ("depth", "width")]
    assert re.sub("-PSSiLU", "", entry.architecture.partition("-")[2]).split("-") == [size for size in sizes if size]


def test_the_options_build_the_network_and_the_threat_model():
    entry = zoo_entry("cifar10/l2/Rice2020Overfitting")
    words = ["--data.dataset", "cifar10", *import_weights.DEFAULTS, "--model.net", entry.net["class_path"]]
    cli = built(*words, *entry.options, "--trainer.accelerator", "cpu")
    assert cli.model.model.net.layer2[0].projected == "activated"
    assert (str(cli.config.autoattack.init_args.attack.init_args.norm), cli.config.model.net.init_args.final_norm) == (
        "l2",
        True,
    )
    map_keys(cli.model.model.net.state_dict(), cli.model.model.net)


def test_names_are_found_in_any_case_and_must_be_unique():
    assert zoo_entry("dai2021parameterizing").activation == "PSSiLU"
    assert zoo_entry("cifar100/linf/Wang2023Better_WRN-28-10").clean == 72.58
    with pytest.raises(ValueError, match=r"got Standard. Pass one of cifar10/linf/Standard, cifar10/l2/Standard\."):
        zoo_entry("Standard")
    with pytest.raises(ValueError, match=r"neither a file Carmon2019 nor .* Near: cifar10/linf/Carmon2019Unlabeled"):
        zoo_entry("Carmon2019")
    with pytest.raises(ValueError, match=r"Near: cifar10/linf/Dai2021Parameterizing, "):
        zoo_entry("cifar10/linf/Dai")
    with pytest.raises(ValueError, match="Run `lightning-paf zoo` for all names"):
        zoo_entry("?")


@pytest.mark.parametrize(
    ("pattern", "count"), [("", 107), ("PSSiLU", 1), ("Dai*", 0), ("*/dai*", 1), ("wideresnet-106*", 1)]
)
def test_patterns_are_parts_or_shell_patterns(pattern, count):
    if count:
        assert len(zoo_entries(pattern)) == count
    else:
        with pytest.raises(ValueError, match=r"The zoo has no network called Dai\*"):
            zoo_entries(pattern)
