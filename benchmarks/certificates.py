"""Certified and attacked images of trained runs, with the time of every method; a Markdown table and a JSON file.

    python benchmarks/certificates.py runs/ibp runs/at --eps 2/255 --images 60

Each method of `certify` runs alone on the first test images. A method takes the bounds of cheaper ones first, as
`lightning-paf certify` does. The attacks are APGD on the cross-entropy and on the targeted DLR loss, on all correctly
classified images. Times are CPU seconds per image.
"""

import argparse
import time
from fractions import Fraction
from pathlib import Path
from typing import get_args

import torch
from measure import machine, write

from lightning_paf.attacks import AutoAttack
from lightning_paf.cli.evaluated_checkpoint import checkpoint_of
from lightning_paf.evaluation.certificates.certify import MethodName, certify
from lightning_paf.loading import load_run


def row(run: Path, options: argparse.Namespace) -> dict[str, object]:
    """Counts and CPU seconds per image, by method."""
    loaded = load_run(checkpoint_of(run), None, "cpu", ["--data.root", str(options.data)] if options.data else [])
    samples = loaded.samples(options.images)
    x, y = samples.fetch(samples.ids)
    counts, seconds = {}, {}
    for method in options.methods:
        started = time.process_time()
        found = certify(loaded.model, x, y, float(options.eps), method=method)
        counts[method], seconds[method] = int((found.certified & found.correct).sum()), time.process_time() - started
    started = time.process_time()
    attack = AutoAttack(options.eps, version="custom", attacks=["apgd-ce", "apgd-t"])
    robust = attack.run(loaded.model, x, y).robust
    counts["attacked"], seconds["attacked"] = int(robust.sum()), time.process_time() - started
    if bool((found.certified & found.correct & ~robust).any()):
        raise RuntimeError(f"No certified image of {run} may be fooled, got at least one. Report this as a bug.")
    per_image = {name: value / len(x) for name, value in seconds.items()}
    clean = int(found.correct.sum())
    return {"run": run.name, "images": len(x), "clean": clean, "counts": counts, "CPU seconds per image": per_image}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--methods", nargs="+", choices=get_args(MethodName), default=list(get_args(MethodName)))
    parser.add_argument("--eps", type=Fraction, default=Fraction(2, 255), help="linf radius")
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--data", type=Path, help="folder of the images, if not that of the training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write, after each row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    names = [*options.methods, "attacked"]
    print(f"| run | clean | {' | '.join(names)} |\n|{' --- |' * (len(names) + 2)}")
    for run in options.runs:
        rows.append(found := row(run, options))
        cells = [f"{found['counts'][name]} ({found['CPU seconds per image'][name]:.2g})" for name in names]
        print(f"| {found['run']} | {found['clean']} | {' | '.join(cells)} |", flush=True)
        content = {"program": "certificates.py", "machine": machine(torch.device("cpu")), "eps": str(options.eps)}
        write(options.json, {**content, "rows": rows})


if __name__ == "__main__":
    main()
