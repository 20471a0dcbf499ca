"""Recall of attacks among the violations that exist, decided exactly; a Markdown table and a JSON file.

    python benchmarks/recall.py --images 300 --json docs/results/recall.json

Small ReLU networks are trained on the digits: plainly, adversarially by PGD, and adversarially by one step, with
cross-entropy or one-hot regression. A test image is violated if an attack fools the network, or if `decide` finds a
misclassified image in the box; it is proven if `decide` excludes one. The default radii leave few images to decide.
Recall is the fraction of the violated images that an attack finds. The ablation searches the violated images that
APGD misses, with variants of `SmoothedPGD` of equal cost.
"""

import argparse
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from measure import machine, write
from networks import tensors
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lightning_paf.attacks import PGD, AutoAttack, ReferenceAutoAttack, SmoothedPGD
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


NETS = {  # loss, training eps, steps of the training attack, width, hidden layers, radii that violate most images
    "regression, one step": (squared, 0.3, 1, 64, 2, (0.18, 0.2)),
    "regression, one step, deeper": (squared, 0.3, 1, 48, 3, (0.18, 0.2)),
    "regression, PGD": (squared, 0.15, 5, 32, 2, (0.2, 0.25)),
    "cross-entropy, PGD": (cross_entropy, 0.15, 5, 32, 2, (0.2, 0.25)),
    "regression, plain": (squared, 0.1, 0, 32, 2, (0.1, 0.12)),
    "cross-entropy, plain": (cross_entropy, 0.1, 0, 32, 2, (0.08, 0.1)),
}
VARIANTS = {
    "exact gradients": {"widths": [1e-6] * 3},
    "width 1": {"widths": [1.0] * 3},
    "width 2": {"widths": [2.0] * 3},
    "width 4": {"widths": [4.0] * 3},
    "widths 1, 2, 4": {},
    "widths 1, 2, 4, 20 smoothed steps of 80": {"smoothed_steps": 20},
    "widths 1, 2, 4, 70 smoothed steps of 80": {"smoothed_steps": 70},
}


def trained(name: str, train: Images, epochs: int, seed: int) -> nn.Module:
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


def found_by(net: nn.Module, x: Tensor, y: Tensor, eps: float, seed: int) -> dict[str, Tensor]:
    """Whether each attack fools the network, (N,) bool: PGD-20, then `strong` after each of its attacks."""
    with seeded(seed, x.device):
        found = {"pgd-20": net(PGD(eps, step_size=eps / 8, steps=20)(net, x, y)).argmax(1) != y}
    search, robust = SearchModel(net), torch.ones(len(x), dtype=torch.bool)
    for number, attack in enumerate(AutoAttack(eps, version="strong").sub_attacks()):
        rows = robust.nonzero().flatten()
        if len(rows):
            robust[rows] = ~run_sub_attack(attack, search, x[rows], y[rows], 4 * seed + number)[1]
        found[attack.label] = ~robust
    return found | {"standard": found["square"], "strong": found["smoothed-pgd"]}


def measured(net: nn.Module, images: Images, eps: float, options: argparse.Namespace) -> tuple[dict, Images]:
    """Counts for one radius, and the violated images that APGD misses."""
    started = time.perf_counter()
    found, (x, y) = found_by(net, *images, eps, options.seed), images
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
    hard = violated & ~found["apgd-t"]
    return row, (x[hard], y[hard])


def rows(options: argparse.Namespace) -> Iterator[tuple[dict, nn.Module, Images]]:
    """Results for each network and radius, with the network and its hard images."""
    data = read_dataset(dataset_spec("digits"), Path("data"), download=False)
    train, test = (tensors(part.images, part.labels) for part in (data.train, data.test))
    for name in options.nets:
        net = trained(name, train, options.epochs, options.seed)
        correct = (net(test[0]).argmax(1) == test[1]).nonzero().flatten()
        accuracy, correct = len(correct) / len(test[0]), correct[: options.images]
        for eps in options.eps or NETS[name][-1]:
            row, hard = measured(net, (test[0][correct], test[1][correct]), eps, options)
            yield {"network": name, "accuracy": accuracy, **row}, net, hard


def ablation(cases: list[tuple[nn.Module, Images, float]], seeds: int) -> dict[str, list[int]]:
    """Number of hard images that each variant finds, for each seed."""
    counts = {}
    for name, settings in VARIANTS.items():
        counts[name] = [0] * seeds
        for net, (x, y), eps in cases:
            for seed in range(seeds):
                _, fooled = run_sub_attack(SmoothedPGD(eps, **settings), SearchModel(net), x, y, seed)
                counts[name][seed] += int(fooled.sum())
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--eps", nargs="+", type=float, help="radii, instead of those of each network")
    parser.add_argument("--images", type=int, default=300, help="first correctly classified test images")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--time_limit", type=float, default=60.0, help="seconds to decide an image")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the ablation; 0 for none")
    parser.add_argument("--reference", action="store_true", help="also run the reference package on missed images")
    parser.add_argument("--seed", type=int, default=0, help="seed of trainings and attacks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write, after each row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    attacks, results, cases = ("pgd-20", "standard", "strong"), [], []
    columns = ["network", "eps", "images", "violated", "proven", "undecided", *attacks]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    settings = {name: str(value) for name, value in vars(options).items() if not isinstance(value, Path)}
    content = {"program": "recall.py", "machine": machine(torch.device("cpu")), "settings": settings, "rows": results}
    for row, net, hard in rows(options):
        results.append(row)
        cells = ((row | row["found"])[name] for name in columns)
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
        cases += [(net, hard, row["eps"])] if len(hard[0]) else []
        total = sum(row["violated"] for row in results)
        recall = {name: exact_accuracy(sum(row["found"][name] for row in results), total) for name in attacks if total}
        content["recall"] = {name: str(value) for name, value in recall.items()}
        write(options.json, content)
    print("\n".join(f"{name} finds {value.correct} of {value.total}: {value}" for name, value in recall.items()))
    if cases and options.seeds:
        content["ablation"] = {"images": sum(len(x) for _, (x, _), _ in cases), "found": ablation(cases, options.seeds)}
        print("\n".join(f"{name}: {counts}" for name, counts in content["ablation"]["found"].items()))
        write(options.json, content)


if __name__ == "__main__":
    main()
