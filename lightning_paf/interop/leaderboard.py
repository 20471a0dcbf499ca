"""An entry for RobustBench's leaderboard, in the layout of its `model_info` files."""

from collections.abc import Mapping
from typing import Any

from lightning_paf.evaluation.result import EvaluationResult

STANDARD_TEST_SETS = {"cifar10": 10_000, "cifar100": 10_000}
"""Datasets of the leaderboard, and the size of their test sets."""


def model_info(
    config: Mapping[str, Any], result: EvaluationResult | None = None
) -> tuple[dict[str, str | int | bool], tuple[str, ...]]:
    """Fill in the fields that follow from a run and its evaluation.

    Args:
        config: Configuration of the run, as plain values.
        result: Result of `lightning-paf test`.

    Returns:
        The entry, in the order of the leaderboard's files, with an empty string for unknown fields; and the unknown
        fields that its author must fill in.
    """
    data, notes = config["data"], []
    eps = clean = robust = ""
    if data.get("synthetic"):
        notes.append("It uses additional synthetic images in training.")
    if result is not None:
        eps, clean = str(result.attack.get("eps", "")), f"{100 * result.clean.value:.2f}"
        # The leaderboard accepts standard AutoAttack only.
        if "AutoAttack" in str(result.attack.get("attack")) and result.attack.get("version") == "standard":
            robust = f"{100 * result.robust.value:.2f}"
        if result.evaluated != STANDARD_TEST_SETS.get(data["dataset"]):
            notes.append(f"Accuracies on {result.evaluated} test images.")
    entry: dict[str, str | int | bool] = {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": "",
        "number_forward_passes": 1,
        "dataset": data["dataset"] if data["dataset"] in STANDARD_TEST_SETS else "",
        "venue": "",
        "architecture": architecture(config["model"]),
        "eps": eps,
        "clean_acc": clean,
        "reported": "",
        "autoattack_acc": robust,
        "footnote": " ".join(notes),
        "unreliable": False,
    }
    return entry, tuple(field for field, value in entry.items() if value == "" and field != "footnote")


def architecture(model: Mapping[str, Any]) -> str:
    """Usual name of a network and its activation, e.g. `WideResNet-28-10-PSSiLU`."""
    net = model["net"]
    arguments = {**(net.get("init_args") or {}), **(net.get("dict_kwargs") or {})}
    if isinstance(arguments.get("net"), Mapping):  # of a `NormalizedNet`
        return architecture({**model, "net": arguments["net"]})
    name = arguments.get("name") or _class_name(net)  # networks of timm and torchvision have a name
    parts = [name, *(str(arguments[key]) for key in ("depth", "width") if arguments.get(key) is not None)]
    activation = model.get("activation")
    return "-".join(parts + ([_class_name(activation)] if activation else []))


def _class_name(part: Mapping[str, Any]) -> str:
    return str(part["class_path"]).rpartition(".")[2]
