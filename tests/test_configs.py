"""Every file in configs/ is accepted by the parser, builds, and has a correct header; no data are needed."""

import re
from importlib import import_module
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from helpers.fakes import CONFIGS, root_without_runs
from helpers.image_folders import write_image_folder
from helpers.recipe_headers import commands, cost_in_header, cost_line, costs, option
from jsonargparse import ArgumentParser
from lightning.pytorch import callbacks as lightning_callbacks

from lightning_paf import attacks, callbacks, nets, schedules
from lightning_paf.cli.parser import SLOTS
from lightning_paf.cli.training import train
from lightning_paf.data import augment
from lightning_paf.data.samplers import real_per_batch
from lightning_paf.evaluation import stopping
from lightning_paf.nn import activations

ROOT = CONFIGS.parent
KEYS = {  # folder: the argument whose values are its files
    "activation": "model.activation",
    "attack": "model.attack",
    "checkpoint": "checkpoint",
    "data": "data",
    "eval": "val_attack",
    "net": "model.net",
    "speed": "model.speed",
    "trainer": "trainer",
}
BASE = {
    "model": {"net": {"class_path": "SmallConvNet"}, "attack": {"class_path": "PGD"}, "objective": "Natural"},
    "data": {"dataset": "cifar10", "real_fraction": 1.0},
}
EXPERIMENTS = [path for folder in ("paper", "methods") for path in sorted((CONFIGS / folder).glob("*.yaml"))]
PARTS = [path for folder in KEYS for path in sorted((CONFIGS / folder).glob("*.yaml"))]
FROM_LIBRARIES = [path for path in PARTS if path.stem.startswith(("timm", "torchvision"))]
MODULES = (attacks, activations, augment, callbacks, nets, schedules, stopping, lightning_callbacks)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def of_kind(folder: str) -> list[Path]:
    return [path for path in PARTS if path.parent.name == folder and path not in FROM_LIBRARIES]


def combinations() -> list[dict[str, Path]]:
    """Combinations of one part of each kind that together contain every part."""
    kinds = {folder: of_kind(folder) for folder in KEYS}
    return [{k: parts[i % len(parts)] for k, parts in kinds.items()} for i in range(max(map(len, kinds.values())))]


def typed(parts: dict[str, Path]) -> list[str]:
    return [word for folder, path in parts.items() for word in (f"--{KEYS[folder]}", name(path))]


experiments = pytest.mark.parametrize("experiment", EXPERIMENTS, ids=name)
mixtures = pytest.mark.parametrize("parts", combinations(), ids=lambda parts: "+".join(p.stem for p in parts.values()))


@pytest.fixture(scope="module")
def parser(tmp_path_factory):
    """The parser of the command line, without a command."""
    with pytest.MonkeyPatch.context() as patch:
        root = root_without_runs(tmp_path_factory.mktemp("root"))  # recipes begin with checkpoints in `runs`
        write_image_folder(root / "data", size=(32, 32), counts={"train": 1, "test": 1})  # of the part `folder`
        patch.chdir(root)
        yield train(["-c", "configs/demo/digits.yaml"], run=False).parser


@pytest.fixture(scope="module", params=EXPERIMENTS, ids=name)
def recipe(parser, request):
    """The configuration of an experiment and its objects."""
    config = parser.parse_args(["-c", name(request.param)])
    return SimpleNamespace(path=request.param, config=config, objects=built(parser, config))


def built(parser, config):
    """All objects of a configuration, on the meta device, where WRN-70-16 takes no memory."""
    with torch.device("meta"):
        return parser.instantiate_classes(config)


def with_paths(tree: dict, parts: dict[str, Path]) -> dict:
    """A copy with parts as values of their arguments."""
    filled = {**tree, "model": dict(tree["model"])}
    for folder, path in parts.items():
        *above, last = KEYS[folder].split(".")
        (filled[above[0]] if above else filled)[last] = str(path)
    return filled


def dump(parser, *words: str) -> str:
    return parser.dump(parser.parse_args(list(words)), skip_validation=True)


@pytest.fixture
def base(tmp_path) -> str:
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return str(path)


@mixtures
def test_parts_build(parser, parts, base):
    objects = built(parser, parser.parse_args(["-c", base, *typed(parts)]))
    assert objects.model.model.num_classes == objects.data.spec.num_classes
    assert objects.val_attack.attack.eps < 1


def test_parts_are_values_on_the_command_line_and_in_an_experiment(parser, base, tmp_path):
    parts = combinations()[0]
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(with_paths(BASE, parts)))
    assert dump(parser, "-c", base, *typed(parts)) == dump(parser, "-c", str(tmp_path / "named.yaml"))


def test_parts_replace_all_others_of_their_kind(parser, base):
    parts = combinations()[-1]
    others = [{folder: path} for folder in KEYS for path in of_kind(folder) if path not in parts.values()]
    earlier = [word for other in others for word in typed(other)]
    assert dump(parser, "-c", base, *earlier, *typed(parts)) == dump(parser, "-c", base, *typed(parts))


@pytest.mark.parametrize("folder", KEYS)
def test_parts_set_every_argument_that_others_of_their_kind_set(folder):
    """Arguments common to two classes survive a change of class."""
    parts = {path.stem: yaml.safe_load(path.read_text()) for path in of_kind(folder)}
    left = {(first, second): surviving(parts[first], parts[second]) for first, second in permutations(parts, 2)}
    assert not {pair: names for pair, names in left.items() if names}


@pytest.mark.parametrize("folder", sorted(KEYS.keys() - {"trainer"}))
def test_parts_replace_every_argument_that_a_recipe_sets_in_place(folder):
    *above, last = KEYS[folder].split(".")
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in EXPERIMENTS}
    values = {stem: (recipe[above[0]] if above else recipe).get(last) for stem, recipe in recipes.items()}
    parts = {path.stem: yaml.safe_load(path.read_text()) for path in of_kind(folder)}
    pairs = [(stem, part) for stem, value in values.items() if isinstance(value, dict) for part in parts]
    left = {(stem, part): surviving(values[stem], parts[part]) for stem, part in pairs}
    assert not {pair: names for pair, names in left.items() if names}


def surviving(earlier: dict, later: dict) -> set[str]:
    """Arguments of a part that a later part does not replace."""
    if "class_path" in later:
        accepted = parameters(later["class_path"])
        earlier = {key: value for key, value in earlier.get("init_args", {}).items() if key in accepted}
        later = later.get("init_args", {})
    left = earlier.keys() - later.keys()
    for key in earlier.keys() & later.keys():
        if isinstance(earlier[key], dict) and isinstance(later[key], dict):
            left |= {f"{key}.{name}" for name in surviving(earlier[key], later[key])}
    return left


def parameters(class_path: str) -> set[str]:
    """Arguments of a class as the command line knows them, with those that it passes on to a base class."""
    module, _, name = class_path.rpartition(".")
    cls = next(getattr(m, name) for m in ([import_module(module)] if module else MODULES) if hasattr(m, name))
    parser = ArgumentParser()
    parser.add_class_arguments(cls)
    return set(parser.get_defaults().keys())


@pytest.mark.parametrize("part", FROM_LIBRARIES, ids=name)
def test_networks_of_libraries_build(parser, part, base):
    objects = built(parser, parser.parse_args(["-c", base, "--model.net", name(part)]))
    assert objects.model.model.num_classes == 10


def test_an_experiment_builds(recipe):
    objects = recipe.objects
    assert objects.model.model.num_classes == objects.data.spec.num_classes
    assert all(objects.get(slot) is None or isinstance(objects[slot], SLOTS[slot]) for slot in SLOTS)


def test_the_checkpoint_monitors_what_the_experiment_logs(recipe):
    evaluations = [recipe.objects.get(slot) for slot in ("val_attack", "autoattack")]
    logged = {"val/acc"} | {f"val/acc_{one.name}" for one in evaluations if one and one.every_n_epochs == 1}
    assert recipe.objects.checkpoint.monitor in logged | {None}


@experiments
def test_an_experiment_is_short(experiment):
    limit = 15 if experiment.parent.name == "methods" else 20
    assert len([line for line in experiment.read_text().splitlines() if not line.startswith("#")]) <= limit


@experiments
def test_the_commands_of_the_header_are_accepted(parser, experiment):
    fits = [words for words in commands(experiment.read_text()) if words[0] == "fit"]
    assert fits, "the header has no command that trains"
    for _, *options in fits:
        usual = {key: option(options, key) for key in ("-c", "--run", "--trainer") if key in options}
        assert usual["-c"] == name(experiment)
        assert "--trainer" not in usual or (ROOT / usual["--trainer"]).is_file()
        if len(options) > 2 * len(usual):  # otherwise the fixture `recipe` has parsed it
            parser.parse_args(options)


@experiments
def test_trainings_save_the_checkpoints_that_later_commands_read(experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(root_without_runs(tmp_path))
    text = experiment.read_text()
    without_tests = re.sub("^#.* lightning-paf test .*$", "", text, flags=re.MULTILINE)  # they are tested below
    for words in (words for words in commands(text) if words[0] == "fit"):
        readers = text if "--checkpoint" in words else without_tests
        read = {*re.findall(rf"{option(words, '--run')}/checkpoints/([\w.]+)", readers)}
        if read:
            on_any_machine = ["--trainer", "configs/trainer/cpu.yaml", "--trainer.num_nodes", "1"]
            with torch.device("meta"):
                trainer = train([*words[1:], *on_any_machine], run=False).trainer
            assert read <= {f"{saver.filename}.ckpt" for saver in trainer.checkpoint_callbacks}


def test_the_header_has_commands_that_evaluate_the_trained_checkpoint(parser, recipe):
    runs = {option(words, "--run") for words in commands(recipe.path.read_text()) if words[0] == "fit"}
    tests = [words[1:] for words in commands(recipe.path.read_text()) if words[0] == "test"]
    assert tests, "the header has no command that evaluates"
    for options in tests:
        checkpoint = Path(option(options, "--ckpt_path"))
        assert str(checkpoint.parent.parent) in runs
        assert checkpoint.name == ("best.ckpt" if recipe.objects.checkpoint.monitor else "last.ckpt")
        if options[2:]:
            parser.parse_args(["-c", name(recipe.path), *options[2:]])


@experiments
def test_the_header_has_sourced_numbers_or_dashes(experiment):
    header = [line for line in experiment.read_text().splitlines() if line.startswith("#")]
    for field in ("Cost (derived):", "Published", "Ours:"):
        lines = [line for line in header if line.startswith(f"# {field}")]
        assert len(lines) == 1, field
        has_number = re.search(r"\d+\.\d", lines[0])
        if field == "Published" and has_number:
            assert re.search(r"\((abstract|README|RobustBench)", lines[0]), "a number without its source"


def test_the_cost_in_the_header_is_that_of_the_recipe(recipe):
    spent = costs(recipe.objects.model, recipe.objects.data, recipe.config.trainer.max_epochs)
    stated = cost_in_header(recipe.path.read_text())
    assert stated == pytest.approx(spent, rel=0.1), f"expected in {name(recipe.path)}: {cost_line(*spent)}"


def test_data_parts_have_the_fractions_of_the_papers():
    numbers = {}
    for path in sorted((CONFIGS / "data").glob("*.yaml")):
        part = yaml.safe_load(path.read_text())
        numbers[path.stem] = (real_per_batch(part["batch_size"], part["real_fraction"]), part["batch_size"])
        assert (part["real_fraction"] < 1) == (part["synthetic"] is not None), path.stem
    assert numbers["cifar10_ddpm6m"] == (256, 512)
    assert numbers["cifar10_edm1m"] == (154, 512)
    assert numbers["cifar10_synthetic"] == (307, 1024)
