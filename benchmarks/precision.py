"""Disagreements of searches in bf16 and fp32, for each attack; a Markdown table and a JSON file.

    python benchmarks/precision.py --cases digits_relu digits_pssilu
    python benchmarks/precision.py --cases cifar_relu cifar_resnet --data DIR --images 100 --eps 4/255

Each attack of `standard` runs alone on the first correctly classified test images: in fp32 with two seeds, and in bf16
with the first of them. Every success is confirmed in fp32. `only fp32` counts images that the fp32 search fools and the
bf16 search does not, `only bf16` the reverse, `two seeds` the images on which the two searches in fp32 disagree. The
row `all` compares the images that at least one attack fools.
"""

import argparse
import json
import time
from fractions import Fraction
from pathlib import Path

import torch
from measure import machine, write
from networks import CASES
from torch import Tensor, nn

from lightning_paf.attacks import AutoAttack
from lightning_paf.attacks.sub_attack import run_sub_attack
from lightning_paf.nn.modes import frozen
from lightning_paf.speed.search_model import Precision, SearchModel

SEARCHES: dict[str, tuple[Precision, int]] = {"fp32": ("fp32", 0), "bf16": ("bf16", 0), "other seed": ("fp32", 1)}


def fooled(model: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> dict[str, dict[str, Tensor]]:
    """Masks (N,) of the fooled images by attack and search; CPU seconds of the searches are printed."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, (precision, seed) in SEARCHES.items():
        started = time.process_time()
        search = SearchModel(model, precision)
        for number, attack in enumerate(AutoAttack(options.eps, norm=options.norm).sub_attacks()):
            if hasattr(attack, "queries"):
                attack.queries = options.queries
            found.setdefault(attack.label, {})[name] = run_sub_attack(attack, search, x, y, 4 * seed + number)[1]
        print(f"  {name}: {time.process_time() - started:.0f} CPU s, searched in {search.precision}", flush=True)
    found["all"] = {name: torch.stack([masks[name] for masks in found.values()]).any(0) for name in SEARCHES}
    return found


def rows(case: str, options: argparse.Namespace) -> list[dict[str, object]]:
    """One row for each attack."""
    model, x, y = CASES[case](options)
    with frozen(model):
        with torch.no_grad():
            correct = (model(x).argmax(1) == y).nonzero().flatten()[: options.images]
        found = fooled(model, x[correct], y[correct], options)
    counts = []
    for attack, masks in found.items():
        single, half, other = (masks[name] for name in SEARCHES)
        counts.append(
            {
                "network": case,
                "eps": f"{options.norm} {options.eps}",
                "attack": attack,
                "images": len(correct),
                "queries": options.queries,
                "robust, fp32": int((~single).sum()),
                "robust, bf16": int((~half).sum()),
                "only fp32": int((single & ~half).sum()),
                "only bf16": int((half & ~single).sum()),
                "two seeds": int((single ^ other).sum()),
            }
        )
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["digits_relu", "digits_pssilu"])
    parser.add_argument("--norm", choices=["linf", "l2"], default="linf")
    parser.add_argument("--eps", type=Fraction, default=Fraction(1, 5))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--queries", type=int, default=5000, help="queries of Square")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--json", type=Path, help="file to write, after each network; existing rows are kept")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kept = json.loads(options.json.read_text())["rows"] if options.json and options.json.is_file() else []
    for case in options.cases:
        made = rows(case, options)
        print("\n".join(f"| {' | '.join(map(str, row.values()))} |" for row in made), flush=True)
        kept = [row for row in kept if row["network"] != case] + made
        write(options.json, {"program": "precision.py", "machine": machine(torch.device("cpu")), "rows": kept})
    print(f"columns: {', '.join(made[0])}")


if __name__ == "__main__":
    main()
