"""Results on the terminal and as a Markdown page."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lightning_paf.evaluation.comparison import order_note
from lightning_paf.experiments.experiment import experiment_names, find_experiment

_HEAD = """Which claims of the papers hold on 8x8 digits, on crops of photographs for denoising, or on synthetic slices
for segmentation. The command of each row, with `--json docs/results/methods/METHOD.json`, writes its result;
`lightning-paf reproduce --table docs/results/methods` writes this page.

Each claim is a paired comparison over seeds and test images. A claim is **reproduced** or **not reproduced** if its
95 % interval lies entirely above or below the claimed difference, and **inconclusive** otherwise. A method gets the
worst conclusion of its paper's claims, or of our expectations if no claim of the paper is tested.

## Limitations

Results of small networks on 8x8 digits need not hold for large networks on photographs. Failed claims are included.

## Overview"""


_COLUMNS = 4
"""Metrics in one table on the terminal, which fit into 80 columns."""


def show(result: dict[str, Any]) -> None:
    """Print one result of `report.content`."""
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(highlight=False)
    names = list(next(iter(result["variants"].values())))
    title = f"{result['title']}\nmean and standard deviation over {result['seeds']} seeds{_unit(result)}"
    for first in range(0, len(names), _COLUMNS):
        part = names[first : first + _COLUMNS]
        variants = Table(*(Column(name, overflow="fold") for name in ("variant", *part)), title=title)
        for variant, values in result["variants"].items():
            variants.add_row(variant, *(_mean(values[name], name in result["plain"]) for name in part))
        console.print(variants)
        title = ""
    claims = Table("claim", "metric", "difference, 95 %", "conclusion")
    for claim in result["claims"]:
        claims.add_row(claim["text"], claim["metric"], claim["shown"], claim["conclusion"])
    console.print(claims)
    for line in _order(result):
        console.print(line)
    if result["note"]:
        console.print(result["note"], markup=False)
    console.print(f"{result['method']}: {result['conclusion']}")


def page(folder: Path) -> str:
    """Markdown page of all results in a folder.

    `lightning-paf reproduce METHOD --json FILE` writes the results.

    Raises:
        ValueError: The folder holds no result.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(
            f"{folder} must hold results, got none. Run lightning-paf reproduce METHOD --json {folder}/METHOD.json."
        )
    results = [json.loads(file.read_text()) for file in files]
    lines = ["# Claims of the papers, tested on digits", "", _HEAD, ""]
    lines += ["| method | the paper's claims | all claims | command |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {result['title']} | **{result['conclusion']}** | {_counted(result)} | `{result['command']}` |"
        for result in results
    ]
    missing = sorted({*experiment_names()} - {result["method"] for result in results})
    lines += [
        f"| {find_experiment(name).title} | not run yet | | `lightning-paf reproduce {name}` |" for name in missing
    ]
    return "\n".join([*lines, *(line for result in results for line in section(result, folder))])


def summary(result: dict[str, Any]) -> str:
    """Sentence about a result of `report.content`, for its page in docs/methods."""
    link = f"[results](../results/methods.md#{result['method']})"
    total, counts = len(result["claims"]), _counts(result)
    if len(counts) == 1:
        return f"All {total} claims are {next(iter(counts))} ({link})."
    parts = [f"{count} {'is' if count == 1 else 'are'} {word}" for word, count in counts.items()]
    first, _, rest = ", ".join(parts).partition(" ")
    return f"{first} of {total} claims {rest} ({link})."


def _counts(result: dict[str, Any]) -> dict[str, int]:
    """Number of claims with each conclusion."""
    words = [claim["conclusion"] for claim in result["claims"]]
    return {word: words.count(word) for word in sorted({*words}, reverse=True)}


def _counted(result: dict[str, Any]) -> str:
    return ", ".join(f"{count} {word}" for word, count in _counts(result).items())


def section(result: dict[str, Any], folder: Path) -> list[str]:
    """Markdown lines of one result of `report.content`, with the figures in a folder."""
    names = list(next(iter(result["variants"].values())))
    lines = ["", f"## {result['method']}", "", result["title"] + ".", ""]
    lines += [f"| variant | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    lines += [
        f"| {variant} | {' | '.join(_mean(values[n], n in result['plain']) for n in names)} |"
        for variant, values in result["variants"].items()
    ]
    lines += ["", "| claim | metric | difference, 95 % | conclusion |", "| --- | --- | --- | --- |"]
    for claim in result["claims"]:
        text = f"{claim['text']} ({claim['source']})".replace("|", "\\|")
        lines.append(f"| {text} | {claim['metric']} | {claim['shown']} | {claim['conclusion']} |")
    lines += [
        "",
        f"Mean and standard deviation over {result['seeds']} seeds{_unit(result)}; {_images(result)}; "
        f"{result['machine']}.",
        *_order(result),
    ]
    if (folder / f"{result['method']}.png").is_file():
        about = ", ".join(result["shown"]) or "clean and robust accuracy"
        # Next to the folder, like docs/results/methods.md.
        lines += ["", f"![{result['method']}: {about}]({folder.name}/{result['method']}.png)"]
    for name in filter(None, result.get("figures", ())):
        if (folder / f"{result['method']}-{name}.png").is_file():
            lines += ["", f"![{result['method']}: {name}]({folder.name}/{result['method']}-{name}.png)"]
    return [*lines, "", result["note"]] if result["note"] else lines


def _unit(result: dict[str, Any]) -> str:
    if {*next(iter(result["variants"].values()))} == {*result["plain"]}:
        return f", {result['unit']}"
    return f", % ({', '.join(result['plain'])}: as measured)" if result["plain"] else ", %"


def _order(result: dict[str, Any]) -> list[str]:
    """Line about the order of the variants, with the metric `strong` only."""
    metrics = ("autoattack", "strong")
    if not all("strong" in values for values in result["variants"].values()):
        return []
    means = ({name: float(np.mean(of[metric])) for name, of in result["variants"].items()} for metric in metrics)
    return [order_note(*means)]


def _images(result: dict[str, Any]) -> str:
    fewer, eps = result.get("autoattack_examples"), result["eps"]
    radius = "" if eps is None else f"linf eps {eps}, "
    return f"{radius}{result['examples']} test images" + (f" (AutoAttack: the first {fewer})" if fewer else "")


def _mean(values: list[float | None], plain: bool) -> str:
    """Mean and standard deviation over the seeds; - if undefined or infinite for one."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return "-"
    scale, form = (1, ".2f") if plain else (100, ".1f")
    mean = scale * float(np.mean(numbers))
    form = ".0e" if plain and 0 < abs(mean) < 0.005 else form
    return f"{mean:{form}}" + (f" ± {scale * np.std(numbers, ddof=1):{form}}" if len(numbers) > 1 else "")
