"""Errors about mistyped classes and options list the known ones."""

import pytest
from helpers.cli_runs import parser_error, write_experiment


@pytest.fixture
def tiny(tmp_path) -> str:
    return write_experiment(tmp_path)


@pytest.mark.parametrize(
    ("argument", "typed", "suggested", "others"),
    [
        ("model.attack", "PDG", "PGD", "RSFGSM"),
        ("model.net", "SmallConvnet", "SmallConvNet", "CifarResNet"),
        ("model.objective", "TRADE", "TRADES", "AdversarialCE"),
        ("model.activation", "PSSiLu", "PSSiLU", "PSSiLUFixed, PSiLU"),
        ("val_attack", "RobustEvl", "RobustEval", "RobustEval"),
        ("val_attack.attack", "PDG", "PGD", "AutoAttack, Boundary"),
        ("monitor", "ActivationMonitr", "ActivationMonitor", "ActivationMonitor"),
    ],
)
def test_a_mistyped_class_lists_the_known_ones(argument, typed, suggested, others, tiny, capsys):
    error = parser_error(capsys, "-c", tiny, f"--{argument}", typed)
    key = argument.rpartition(".")[2]
    assert error.count("names no known class") == 1
    assert f"{key}={typed} names no known class. Did you mean {suggested}? Known: " in error
    assert others in error


@pytest.mark.parametrize("typed", ["BIM", "lightning_paf.attacks.BIM"])
def test_a_class_of_an_earlier_version_names_its_replacement(typed, tiny, capsys):
    error = parser_error(capsys, "-c", tiny, "--val_attack", "RobustEval", "--val_attack.attack", typed)
    assert f"attack={typed} was removed: PGD with start=none" in error
    assert "names no known class" not in error


@pytest.mark.parametrize("typed", ["torchvision.models.resnet18", "lightning_paf.nets.timm_net"])
def test_a_function_is_no_network(typed, tiny, capsys):
    error = parser_error(capsys, "-c", tiny, "--model.net", typed)
    assert "model.net must be a class, got a function. Pass TimmNet or TorchvisionNet with --model.net.name" in error


def test_a_class_without_a_similar_one_has_no_suggestion(tiny, capsys):
    error = parser_error(capsys, "-c", tiny, "--model.net", "Xyz")
    assert "net=Xyz names no known class. Known: ALTNODE" in error
    assert "timm_net" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--autoattack", "RobustEval", "--autoattack.attack.eps", "4/255"),
            "attack must be a concrete class, given before",
        ),
        (("--autoattack.attack.eps", "4/255"), "attack must be a concrete class, given before"),
    ],
)
def test_arguments_without_their_class_list_the_known_ones(words, message, tiny, capsys):
    error = parser_error(capsys, "-c", tiny, *words)
    assert f"{message} its arguments. Known: A" in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.attack.stepz 3", "Option 'stepz' is not accepted"),
        ("--model.nett SmallConvNet", "nett"),
        (
            "--data.dataset cifar11",
            "data.dataset must be one of digits, cifar10, cifar100, svhn, npz, fol",
        ),
        ("--data.num_classes null", "data.num_classes must be at least 2 for data.dataset=npz, got None"),
        ("--data.dataset cifar10", "error: data.num_classes must be 10 for data.dataset=cifar10, got 3"),
    ],
)
def test_a_mistyped_option(words, message, tiny, capsys):
    assert message in parser_error(capsys, "-c", tiny, *words.split())


@pytest.mark.parametrize("words", ["--autoattack.test_examples 4", "--autoattack.attack.eps 4/255"])
def test_options_of_an_evaluation_without_an_attack_name_the_recipes(words, tiny, capsys):
    error = parser_error(capsys, "-c", tiny, *words.split())
    assert "Pass --autoattack RECIPE before the options of the evaluation, one of autoattack, autoattack_fast" in error
