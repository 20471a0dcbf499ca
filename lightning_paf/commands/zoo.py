"""List published robust networks that `import-weights NAME` downloads."""

from itertools import groupby
from typing import TYPE_CHECKING

from lightning_paf.utils.arguments import command_parser

if TYPE_CHECKING:
    from lightning_paf.interop.zoo import ZooEntry


def main(argv: list[str]) -> int:
    """Print a table, or all facts about one network."""
    parser = command_parser("zoo", __doc__, "The facts are those of RobustBench's leaderboard.")
    parser.add_argument("pattern", nargs="?", default="", help="part of a name or architecture, or a shell pattern")
    pattern = parser.parse_args(argv).pattern
    from lightning_paf.interop.zoo import zoo_entries

    found = zoo_entries(pattern)
    exact = [entry for entry in found if pattern.lower() in (entry.name.lower(), entry.name.rpartition("/")[2].lower())]
    print("\n\n".join(map(_details, exact)) if exact else _table(found))
    return 0


def _table(entries: "list[ZooEntry]") -> str:
    """Format at most 80 columns, with a heading for each dataset and norm."""
    lines = []
    for kind, group in groupby(entries, key=lambda entry: (entry.dataset, entry.norm)):
        lines.append(f"{f'{kind[0]}/{kind[1]}/':39}{'architecture':23}{'eps':>5}{'clean':>6}{'AA':>6}")
        for entry in group:
            name = entry.name.rpartition("/")[2]
            lines.append(f" {name:38}{entry.architecture:23}{entry.eps:>5}{entry.clean:6.2f}{entry.autoattack:6.2f}")
        lines.append("")
    return "\n".join([*lines, "AA: published accuracy under AutoAttack, in percent."])


def _details(entry: "ZooEntry") -> str:
    net = ", ".join(f"{name} {value}" for name, value in entry.net["init_args"].items())
    rows = {
        "network": f"{entry.net['class_path']} ({net}){(entry.activation and f' with {entry.activation}') or ''}",
        "normalisation": f"mean {entry.mean}, std {entry.std}" if entry.mean else "none",
        "threat model": f"{entry.norm}, eps {entry.eps}",
        "published": f"clean {entry.clean} %, AutoAttack {entry.autoattack} %",
        "paper": entry.paper,
        "weights": entry.url,
        "SHA-256": entry.sha256 or "not published",
        "import": f"lightning-paf import-weights {entry.name} --out RUN",
    }
    return "\n".join([entry.name, *(f"  {name:15}{value}" for name, value in rows.items())])
