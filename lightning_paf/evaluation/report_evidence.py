"""Which broken samples a report shows, and where their images come from."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lightning_paf.attacks import Attack
from lightning_paf.evaluation.encodings import NONE
from lightning_paf.evaluation.receipt_content import Receipt
from lightning_paf.evaluation.report_pictures import Example
from lightning_paf.evaluation.result import EvaluationResult, Verdict
from lightning_paf.evaluation.samples import Samples
from lightning_paf.functional.predictions import predicted
from lightning_paf.nn.modes import frozen

SHOWN = 12
"""Examples in a report."""


def result_of(receipt: Receipt, name: str) -> EvaluationResult:
    """The verdicts of a receipt; it does not say what the attacks cost.

    Args:
        receipt: As read.
        name: What to call the evaluation.
    """
    manifest = receipt.manifest
    return EvaluationResult(
        name,
        manifest["attack"],
        receipt.verdicts,
        float("nan"),
        receipt.ids,
        receipt.labels,
        receipt.broken_by.astype(np.int16),
        fingerprints={"model": manifest["weights"], "code": manifest["code"]},
        seed=manifest["seed"],
        precision=manifest["precision"],
        total=manifest["counts"]["total"],
    )


def receipt_examples(receipt: Receipt, samples: Samples, count: int = SHOWN) -> list[Example]:
    """Broken samples with the images that the receipt holds.

    Args:
        receipt: Whose images are shown.
        samples: Where the clean images come from.
        count: How many at most.
    """
    proven = np.flatnonzero((receipt.verdicts == Verdict.BROKEN) & (receipt.encoding != NONE))
    places = proven[varied(receipt.labels[proven], count)]
    if not len(places):
        return []
    x = samples.fetch(receipt.ids[places])[0].float().cpu()
    images = torch.from_numpy(receipt.judged_images(places, x.numpy()))
    stages = receipt.manifest["stages"]
    return [
        Example(
            id=int(receipt.ids[place]),
            clean=x[row],
            adversarial=images[row],
            label=int(receipt.labels[place]),
            predicted=int(receipt.adversarial[place]),
            stage=stages[receipt.broken_by[place]],
        )
        for row, place in enumerate(places)
    ]


def receipt_flips(receipt: Receipt, classes: int) -> NDArray[np.int64]:
    """How often each class (rows) became which other (columns) on the broken samples, (classes, classes)."""
    proven = (receipt.verdicts == Verdict.BROKEN) & (receipt.encoding != NONE) & (receipt.adversarial >= 0)
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (receipt.labels[proven], receipt.adversarial[proven]), 1)
    return counts


def attacked_again(
    result: EvaluationResult, model: nn.Module, attack: Attack, samples: Samples, count: int = SHOWN
) -> list[Example]:
    """Broken samples with images that are made for the report, where the evaluation kept none.

    Args:
        result: Whose broken samples are shown; those that the attack does not break are left out.
        model: Images to logits.
        attack: Makes the images; with the threat model of the result.
        samples: Where the clean images come from.
        count: How many at most.
    """
    ids = np.arange(len(result.verdicts)) if result.ids is None else result.ids
    broken = ids[result.verdicts == Verdict.BROKEN]
    if not len(broken):
        return []
    x, y = samples.fetch(broken)
    with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
        torch.manual_seed(0)
        chosen = varied(y.cpu().numpy(), 2 * count)
        x, y, broken = x[chosen], y[chosen], broken[chosen]
        x_adv = attack(model, x, y)
    with torch.no_grad(), frozen(model):
        classes = predicted(model(x_adv))
    rows = (classes != y).nonzero().flatten()[:count].tolist()
    return [
        Example(int(broken[row]), x[row].cpu(), x_adv[row].cpu(), int(y[row]), int(classes[row]), attack.label)
        for row in rows
    ]


def varied(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Places of up to `count` entries: of every class the first, then of every class the second, and so on.

    Args:
        labels: (n,) Classes.
        count: How many at most.
    """
    turn = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        mine = labels == label
        turn[mine] = np.arange(mine.sum())
    return np.asarray(np.lexsort((labels, turn))[:count])


def names_of(dataset: str) -> Sequence[str]:
    """Names of the classes of CIFAR-10; of other datasets none, so that numbers stand for them."""
    if dataset != "cifar10":
        return ()
    return ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
