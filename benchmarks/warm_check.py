"""Cost and accuracy of warm checks relative to cold ones; a Markdown table.

    python benchmarks/warm_check.py

A small network is trained adversarially on the digits. After every epoch, the same test images are evaluated by a warm
check, as in `WarmEval`, and by a cold one: APGD on the cross-entropy and targeted APGD with all their steps.
"""

import argparse
from fractions import Fraction
from pathlib import Path

import torch
from networks import tensors
from torch import nn

from lightning_paf.attacks import PGD, AutoAttack
from lightning_paf.data.sources import read_dataset
from lightning_paf.evaluation import Samples
from lightning_paf.evaluation.stopping import HalfWidth
from lightning_paf.evaluation.warm import WarmCheck
from lightning_paf.nets import SmallConvNet
from lightning_paf.specs import dataset_spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=360)
    parser.add_argument("--eps", type=Fraction, default=Fraction(1, 5))
    parser.add_argument("--steps", type=int, default=20, help="steps of a warm check")
    parser.add_argument("--half_width", type=float, default=0.05, help="at which a third check, also warm, stops")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = read_dataset(dataset_spec("digits"), Path("data"), download=False)
    x, y = tensors(data.train.images, data.train.labels)
    test_x, test_y = tensors(data.test.images[: options.images], data.test.labels[: options.images])
    samples = Samples.of(test_x, test_y)
    net = SmallConvNet(in_channels=1, num_classes=10)
    attack = AutoAttack(options.eps, version="custom", attacks=["apgd-ce", "apgd-t"])
    train_attack = PGD(options.eps, step_size=options.eps / 4, steps=7)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    warm, stopping = (WarmCheck(attack, steps=options.steps, block_size=60) for _ in range(2))
    print("| epoch | cold | warm | replayed | passes, warm / cold | stopped early | its passes / cold |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for epoch in range(options.epochs):
        for part in torch.randperm(len(x)).split(64):
            x_adv = train_attack(net, x[part], y[part])
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x_adv), y[part]).backward()
            optimizer.step()
        cold = WarmCheck(attack).run(net, samples)
        bound = warm.run(net, samples)
        early = stopping.run(net, samples, HalfWidth(options.half_width))
        accuracies = [f"{100 * check.robust / len(check.ids):.1f} %" for check in (cold, bound, early)]
        costs = [f"{check.passes / cold.passes:.2f}" for check in (bound, early)]
        text = f"{accuracies[2]} of {len(early.ids)}"
        print(
            f"| {epoch} | {accuracies[0]} | {accuracies[1]} | {bound.replayed} | {costs[0]} | {text} | {costs[1]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
