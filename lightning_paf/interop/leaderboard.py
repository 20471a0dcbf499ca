"""An entry for RobustBench's leaderboard, in the layout of its `model_info` files."""

from collections.abc import Mapping
from typing import Any

from lightning_paf.evaluation.result import EvaluationResult

STANDARD_TEST_SETS = {"cifar10": 10_000, "cifar100": 10_000}
"""Data sets of the leaderboard, and the number of images that it evaluates on."""


def model_info(
    config: Mapping[str, Any], result: EvaluationResult | None = None
) -> tuple[dict[str, str | int | bool], tuple[str, ...]]:
    """Fill in the fields that follow from a run and its evaluation.

    Args:
        config: The configuration of the run, as plain values.
        result: What `lightning-paf test` wrote.

    Returns:
        The entry, in the order of the leaderboard's files, where what is not known is an empty string; and the fields
        that its author must still fill in.
    """
    data, notes = config["data"], []
    eps = clean = robust = ""
    if data.get("synthetic"):
        notes.append("It uses additional synthetic images in training.")
    if result is not None:
        eps, clean = str(result.attack.get("eps", "")), f"{100 * result.clean.value:.2f}"
        # The leaderboard takes the number of standard AutoAttack alone.
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
    """A network and its activation as people write them, e.g. `WideResNet-28-10-PSSiLU`."""
    net = model["net"]
    arguments = {**(net.get("init_args") or {}), **(net.get("dict_kwargs") or {})}
    if isinstance(arguments.get("net"), Mapping):  # behind a normalisation of its own
        return architecture({**model, "net": arguments["net"]})
    # A network of a library is known by its name there, ours by class, depth and width.
    name = arguments.get("name") or _class_name(net)
    parts = [name, *(str(arguments[key]) for key in ("depth", "width") if arguments.get(key) is not None)]
    activation = model.get("activation")
    return "-".join(parts + ([_class_name(activation)] if activation else []))


def _class_name(part: Mapping[str, Any]) -> str:
    return str(part["class_path"]).rpartition(".")[2]
