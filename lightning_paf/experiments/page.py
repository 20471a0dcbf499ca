"""Results on the terminal and as a Markdown page."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lightning_paf.experiments.experiment import experiment_names, find_experiment

_HEAD = """Which claims of the papers hold on 8x8 digits. The command of each row, with
`--json docs/results/methods/METHOD.json`, writes its result; `lightning-paf reproduce --table docs/results/methods`
writes this page.

Each claim is a paired comparison over seeds and test images. A claim is **reproduced** or **not reproduced** if its
95 % interval lies entirely above or below the claimed difference, and **inconclusive** otherwise. A method gets the
worst conclusion of its paper's claims, or of our expectations if no claim of the paper is tested.

## Limitations

Results of small networks on 8x8 digits need not hold for large networks on photographs. Failed claims are included.

## Overview"""


def show(found: dict[str, Any]) -> None:
    """Print one result.

    Args:
        found: What `report.content` returned.
    """
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(highlight=False)
    names = list(next(iter(found["variants"].values())))
    columns = (Column(name, overflow="fold") for name in ("variant", *names))
    variants = Table(
        *columns, title=f"{found['title']}\nmean and standard deviation over {found['seeds']} seeds{_unit(found)}"
    )
    for variant, values in found["variants"].items():
        variants.add_row(variant, *(_mean(values[name], name in found["plain"]) for name in names))
    console.print(variants)
    claims = Table("claim", "metric", "difference, 95 %", "outcome")
    for claim in found["claims"]:
        claims.add_row(claim["text"], claim["metric"], claim["shown"], claim["conclusion"])
    console.print(claims)
    if found["note"]:
        console.print(found["note"])
    console.print(f"{found['method']}: {found['conclusion']}")


def page(folder: Path) -> str:
    """Markdown page of all results in a folder.

    Args:
        folder: Holds the files that `lightning-paf reproduce METHOD --json FILE` wrote.

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
        f"| {found['title']} | **{found['conclusion']}** | {_counted(found)} | `{found['command']}` |"
        for found in results
    ]
    missing = sorted({*experiment_names()} - {found["method"] for found in results})
    lines += [
        f"| {find_experiment(name).title} | not run yet | | `lightning-paf reproduce {name}` |" for name in missing
    ]
    return "\n".join([*lines, *(line for found in results for line in _section(found, folder))])


def summary(found: dict[str, Any]) -> str:
    """One result in a sentence, as the pages in docs/methods have it.

    Args:
        found: What `report.content` returned.
    """
    link = f"[results](../results/methods.md#{found['method']})"
    return f"Of {len(found['claims'])} claims {_counted(found)}; variants, accuracies and intervals: {link}."


def _counted(found: dict[str, Any]) -> str:
    words = [claim["conclusion"] for claim in found["claims"]]
    return ", ".join(f"{words.count(word)} {word}" for word in sorted({*words}, reverse=True))


def _section(found: dict[str, Any], folder: Path) -> list[str]:
    names = list(next(iter(found["variants"].values())))
    lines = ["", f"## {found['method']}", "", found["title"] + ".", ""]
    lines += [f"| variant | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    lines += [
        f"| {variant} | {' | '.join(_mean(values[n], n in found['plain']) for n in names)} |"
        for variant, values in found["variants"].items()
    ]
    lines += ["", "| claim | metric | difference, 95 % | outcome |", "| --- | --- | --- | --- |"]
    for claim in found["claims"]:
        text = f"{claim['text']} ({claim['source']})".replace("|", "\\|")
        lines.append(f"| {text} | {claim['metric']} | {claim['shown']} | {claim['conclusion']} |")
    lines += [
        "",
        f"Mean and standard deviation over {found['seeds']} seeds{_unit(found)}; linf eps {found['eps']}, "
        f"{found['examples']} test images; {found['machine']}.",
    ]
    if (folder / f"{found['method']}.png").is_file():
        about = ", ".join(found["shown"]) or "clean and robust accuracy"
        # Next to the folder, like docs/results/methods.md.
        lines += ["", f"![{found['method']}: {about}]({folder.name}/{found['method']}.png)"]
    return [*lines, "", found["note"]] if found["note"] else lines


def _unit(found: dict[str, Any]) -> str:
    return f", % ({', '.join(found['plain'])}: as measured)" if found["plain"] else ", %"


def _mean(values: list[float], plain: bool) -> str:
    """Mean and standard deviation over the seeds."""
    scale, digits = (1, 2) if plain else (100, 1)
    spread = f" ± {scale * np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * np.mean(values):.{digits}f}{spread}"
