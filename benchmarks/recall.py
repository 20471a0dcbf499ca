"""Recall of attacks among the violations that exist, decided exactly; a Markdown table and a JSON file.

    python benchmarks/recall.py --images 300 --json docs/results/recall.json

Small ReLU networks are trained on the digits: plainly, adversarially by PGD, and adversarially by one step, with
cross-entropy or one-hot regression. A test image is violated if an attack fools the network, or if `decide` finds a
misclassified image in the box; it is proven if `decide` excludes one. The time limit is wall time. Recall is the
fraction of the violated images that an attack finds. Networks of few units, trained by regression against one step,
are chosen since `standard` misses violations there that can be decided. The ablation searches the violated images that
APGD misses, with variants of `SmoothedPGD` of equal cost.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import torch
from measure import machine, write
from networks import tensors
from search_variants import VARIANTS
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lightning_paf.attacks import PGD, AutoAttack, ReferenceAutoAttack
from lightning_paf.attacks.sub_attack import run_sub_attack, seeded
from lightning_paf.data.sources import read_dataset
from lightning_paf.evaluation import exact_accuracy
from lightning_paf.evaluation.certificates.exact import Decision, decide
from lightning_paf.functional import cross_entropy
from lightning_paf.specs import dataset_spec
from lightning_paf.speed.search_model import SearchModel

Images = tuple[Tensor, Tensor]
"""Images (N, 1, 8, 8) and labels (N,)."""


def squared(logits: Tensor, y: Tensor) -> Tensor:
    """Squared distance to the one-hot label, (N,)."""
    return (logits - one_hot(y, logits.shape[1]).to(logits)).square().sum(1)


NETS = {  # loss, training eps, steps of the training attack, width, hidden layers, radii
    "regression, one step, 16 units": (squared, 0.3, 1, 16, 2, (0.12,)),
    "regression, one step, 24 units": (squared, 0.3, 1, 24, 2, (0.12,)),
    "regression, one step, 32 units": (squared, 0.3, 1, 32, 2, (0.12,)),
    "regression, one step": (squared, 0.3, 1, 64, 2, (0.18, 0.2)),
    "regression, one step, deeper": (squared, 0.3, 1, 48, 3, (0.18, 0.2)),
    "regression, PGD": (squared, 0.15, 5, 32, 2, (0.2, 0.25)),
    "cross-entropy, PGD": (cross_entropy, 0.15, 5, 32, 2, (0.2, 0.25)),
    "regression, plain": (squared, 0.1, 0, 32, 2, (0.1, 0.12)),
    "cross-entropy, plain": (cross_entropy, 0.1, 0, 32, 2, (0.08, 0.1)),
}


class Case(NamedTuple):
    """A network, its violated images that APGD misses, and perturbations (M, 1, 8, 8) that APGD found."""

    net: nn.Sequential
    images: Images
    eps: float
    found: Tensor


def trained(name: str, train: Images, epochs: int, seed: int) -> nn.Sequential:
    """A network, trained by Adam in batches of 64."""
    loss, eps, steps, width, depth, _ = NETS[name]
    torch.manual_seed(seed)
    sizes = [train[0][0].numel(), *[width] * depth]
    hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    net = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))
    attack = PGD(eps, step_size=1.25 * eps if steps == 1 else eps / 2, steps=max(steps, 1), loss=loss)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for rows in (rows for _ in range(epochs) for rows in torch.randperm(len(train[0])).split(64)):
        x, y = (part[rows] for part in train)
        x = attack(net, x, y) if steps else x
        optimizer.zero_grad()
        loss(net(x), y).mean().backward()
        optimizer.step()
    return net.eval().requires_grad_(False)


def found_by(net: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Whether each attack fools the network, (N,) bool: PGD-20, then `strong` after each of its attacks; its images."""
    with seeded(seed, x.device):
        found = {"pgd-20": net(PGD(eps, step_size=eps / 8, steps=20)(net, x, y)).argmax(1) != y}
    search, robust, x_adv = SearchModel(net), torch.ones(len(x), dtype=torch.bool), x.clone()
    for number, attack in enumerate(AutoAttack(eps, version="strong").sub_attacks()):
        rows = robust.nonzero().flatten()
        if len(rows):
            x_adv[rows], fooled = run_sub_attack(attack, search, x[rows], y[rows], 4 * seed + number)
            robust[rows] = ~fooled
        found[attack.label] = ~robust
    return found | {"standard": found["square"], "strong": found["smoothed-pgd"]}, x_adv


def measured(net: nn.Sequential, images: Images, eps: float, options: argparse.Namespace) -> tuple[dict, Case]:
    """Counts for one radius, and the violated images that APGD misses."""
    started, (x, y) = time.perf_counter(), images
    found, x_adv = found_by(net, x, y, eps, options.seed)
    searched = time.perf_counter()
    violated, decisions = found["strong"] | found["pgd-20"], dict.fromkeys(Decision, 0)
    for row in (~violated).nonzero().flatten().tolist():
        decision = decide(net, x[row : row + 1], y[row : row + 1], eps, options.time_limit).decision
        decisions[decision] += 1
        violated[row] = decision is Decision.VIOLATED
    counts = {name: int((found[name] & violated).sum()) for name in ("pgd-20", "standard", "strong")}
    missed = violated & ~found["standard"]
    if options.reference and bool(missed.any()):
        reference = ReferenceAutoAttack(eps, seed=options.seed).run(net, x[missed], y[missed])
        counts["reference, of those that standard misses"] = int((~reference.robust).sum())
    row = {"eps": eps, "images": len(x), "violated": int(violated.sum())}
    row |= {decision.value: decisions[decision] for decision in (Decision.PROVEN, Decision.UNDECIDED)}
    row |= {"found": counts, "search seconds": searched - started, "decision seconds": time.perf_counter() - searched}
    hard, easy = violated & ~found["apgd-t"], found["apgd-t"]
    return row, Case(net, (x[hard], y[hard]), eps, (x_adv - x)[easy])


def rows(options: argparse.Namespace) -> Iterator[tuple[dict, Case]]:
    """Results for each network, training and radius, with the hard images."""
    data = read_dataset(dataset_spec("digits"), Path("data"), download=False)
    train, test = (tensors(part.images, part.labels) for part in (data.train, data.test))
    for name, seed in product(options.nets, options.training_seeds):
        net = trained(name, train, options.epochs, seed)
        correct = (net(test[0]).argmax(1) == test[1]).nonzero().flatten()
        accuracy, correct = len(correct) / len(test[0]), correct[: options.images]
        for eps in options.eps or NETS[name][-1]:
            row, case = measured(net, (test[0][correct], test[1][correct]), eps, options)
            yield {"network": name, "training seed": seed, "accuracy": accuracy, **row}, case


def ablation(case: Case, seeds: int) -> dict[str, list[int]]:
    """Number of hard images that each variant finds, for each seed."""
    net, (x, y), eps, found = case
    search, counts = SearchModel(net), {}
    for name, variant in VARIANTS.items():
        attack = variant(net, eps, found)
        counts[name] = [int(run_sub_attack(attack, search, x, y, seed)[1].sum()) for seed in range(seeds)]
    return counts


def summed(ablations: list[dict]) -> dict:
    """Sums over networks and radii."""
    found = {
        name: [sum(of) for of in zip(*(part["found"][name] for part in ablations), strict=True)] for name in VARIANTS
    }
    return {"images": sum(part["images"] for part in ablations), "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--eps", nargs="+", type=float, help="radii, instead of those of each network")
    parser.add_argument("--images", type=int, default=300, help="first correctly classified test images")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--time_limit", type=float, default=60.0, help="seconds to decide an image")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the ablation; 0 for none")
    parser.add_argument("--reference", action="store_true", help="also run the reference package on missed images")
    parser.add_argument("--training_seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seed", type=int, default=0, help="seed of attacks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write, after each row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    attacks, results = ("pgd-20", "standard", "strong"), []
    columns = ["network", "training seed", "eps", "images", "violated", "proven", "undecided", *attacks]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    settings = {name: str(value) for name, value in vars(options).items() if not isinstance(value, Path)}
    content = {"program": "recall.py", "machine": machine(torch.device("cpu")), "settings": settings, "rows": results}
    for row, case in rows(options):
        hard = len(case.images[0])
        row["ablation"] = {"images": hard, "found": ablation(case, options.seeds if hard and len(case.found) else 0)}
        results.append(row)
        cells = ((row | row["found"])[name] for name in columns)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        total = sum(row["violated"] for row in results)
        recall = {name: exact_accuracy(sum(row["found"][name] for row in results), total) for name in attacks if total}
        content["recall"] = {name: str(value) for name, value in recall.items()}
        content["ablation"] = summed([row["ablation"] for row in results if any(row["ablation"]["found"].values())])
        write(options.json, content)
    print("\n".join(f"{name} finds {value.correct} of {value.total}: {value}" for name, value in recall.items()))
    print(f"Hard images: {content['ablation']['images']}; found by")
    print("\n".join(f"{name}: {counts}" for name, counts in content["ablation"]["found"].items()))


if __name__ == "__main__":
    main()
