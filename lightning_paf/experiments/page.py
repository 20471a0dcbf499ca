"""Outcomes for people: on the terminal, and as one table for all methods."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lightning_paf.experiments.experiment import find_study, study_names

_HEAD = """Each line is made by the command beside it with `--json docs/results/methods/METHOD.json`;
`lightning-paf reproduce --table docs/results/methods` writes this page. Each claim is a paired comparison over seeds
and test images: **reproduced** and **not reproduced** say that its whole 95 % interval lies on one side of what is
claimed; the word for a method is the worst of its paper's claims, or of all where none of its paper's is tested.
Small networks on 8x8 digits decide nothing about large ones on photographs; a claim that fails here is reported as it
came."""


def show(found: dict[str, Any]) -> None:
    """Print one outcome.

    Args:
        found: What `report.content` returned.
    """
    from rich.console import Console
    from rich.table import Column, Table

    console = Console(highlight=False)
    names = list(next(iter(found["arms"].values())))
    columns = (Column(name, overflow="fold") for name in ("arm", *names))  # whole names, also where there is no room
    arms = Table(
        *columns, title=f"{found['title']}\nmean and standard deviation over {found['seeds']} seeds{_unit(found)}"
    )
    for arm, values in found["arms"].items():
        arms.add_row(arm, *(_mean(values[name], name in found["plain"]) for name in names))
    console.print(arms)
    claims = Table("claim", "measure", "difference, 95 %", "outcome")
    for claim in found["claims"]:
        claims.add_row(claim["text"], claim["measure"], claim["shown"], claim["word"])
    console.print(claims)
    if found["note"]:
        console.print(found["note"])
    console.print(f"{found['method']}: {found['word']}")


def page(folder: Path) -> str:
    """One Markdown table of all outcomes in a folder.

    Args:
        folder: Holds the files that `lightning-paf reproduce METHOD --json FILE` wrote.

    Raises:
        ValueError: It holds none.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise ValueError(
            f"{folder} holds no outcome. Write some: lightning-paf reproduce METHOD --json {folder}/METHOD.json."
        )
    outcomes = [json.loads(file.read_text()) for file in files]
    lines = ["# What the papers claim, at the size of a laptop", "", _HEAD, ""]
    lines += ["| method | the paper's claims | all claims | command |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {found['title']} | **{found['word']}** | {_counted(found)} | `{found['command']}` |" for found in outcomes
    ]
    missing = sorted({*study_names()} - {found["method"] for found in outcomes})
    lines += [f"| {find_study(name).title} | not run yet | | `lightning-paf reproduce {name}` |" for name in missing]
    return "\n".join([*lines, *(line for found in outcomes for line in _section(found, folder))])


def summary(found: dict[str, Any]) -> str:
    """One outcome in a sentence, as the cards of docs/methods.md have it.

    Args:
        found: What `report.content` returned.
    """
    arms = ", ".join(
        f"{arm} {100 * np.mean(values['clean']):.1f} / {100 * np.mean(values['autoattack']):.1f}"
        for arm, values in found["arms"].items()
    )
    return (
        f"Ours on digits (linf {found['eps']:g}, {found['seeds']} seeds, {found['examples']} test images, "
        f"{found['machine']}): of {len(found['claims'])} claims {_counted(found)}. "
        f"Clean / AutoAttack accuracy in %: {arms}. "
        f"Intervals: [results/methods.md](results/methods.md#{found['method']})."
    )


def _counted(found: dict[str, Any]) -> str:
    words = [claim["word"] for claim in found["claims"]]
    return ", ".join(f"{words.count(word)} {word}" for word in sorted({*words}, reverse=True))


def _section(found: dict[str, Any], folder: Path) -> list[str]:
    names = list(next(iter(found["arms"].values())))
    lines = ["", f"## {found['method']}", "", found["title"] + ".", ""]
    lines += [f"| arm | {' | '.join(names)} |", f"| --- |{' --- |' * len(names)}"]
    lines += [
        f"| {arm} | {' | '.join(_mean(values[n], n in found['plain']) for n in names)} |"
        for arm, values in found["arms"].items()
    ]
    lines += ["", "| claim | measure | difference, 95 % | outcome |", "| --- | --- | --- | --- |"]
    for claim in found["claims"]:
        text = f"{claim['text']} ({claim['source']})".replace("|", "\\|")
        lines.append(f"| {text} | {claim['measure']} | {claim['shown']} | {claim['word']} |")
    lines += [
        "",
        f"Mean and standard deviation over {found['seeds']} seeds{_unit(found)}; linf eps {found['eps']}, "
        f"{found['examples']} test images; {found['machine']}.",
    ]
    if (folder / f"{found['method']}.png").is_file():
        about = ", ".join(found["shown"]) or "clean and robust accuracy"
        # Beside the folder, as docs/results/methods.md is.
        lines += ["", f"![{found['method']}: {about}]({folder.name}/{found['method']}.png)"]
    return [*lines, "", found["note"]] if found["note"] else lines


def _unit(found: dict[str, Any]) -> str:
    return f", % ({', '.join(found['plain'])}: as measured)" if found["plain"] else ", %"


def _mean(values: list[float], plain: bool) -> str:
    """Mean and standard deviation over the seeds."""
    scale, digits = (1, 2) if plain else (100, 1)
    spread = f" ± {scale * np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * np.mean(values):.{digits}f}{spread}"
