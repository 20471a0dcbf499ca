"""Number of queries of attacks, compared with a hook of the network."""

import pytest
import torch
from helpers.digits_net import trained

from lightning_paf.analysis.queries import counted, query_curve
from lightning_paf.attacks import FGSM, OPT, PGD, ZOO, Boundary, CarliniWagner, DeepFool, OnePixel, SignOPT, Square

ATTACKS = [
    FGSM(0.1),
    PGD(0.1, step_size=0.05, steps=3),
    Square(0.1, queries=20),
    CarliniWagner(steps=5, searches=2),
    DeepFool(steps=3),
    OnePixel(population=10, generations=2),
    Boundary(queries=60),
    OPT(queries=60, starts=3, directions=2),
    SignOPT(queries=60, starts=3, directions=10),
    ZOO(queries=60),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.label)
def test_every_image_of_a_forward_pass_is_counted(attack):
    net, x, y = trained()
    x, y, seen = x[:6], y[:6], []
    handle = net.register_forward_hook(lambda module, args, logits: seen.append(len(args[0])))
    torch.manual_seed(0)
    found, passes = counted(attack, net, x, y)
    handle.remove()
    assert passes.forward + passes.exact == sum(seen)
    torch.manual_seed(0)
    assert torch.equal(found, attack(net, x, y))


def test_gradients_are_counted_per_image():
    net, x, y = trained()
    _, passes = counted(PGD(0.1, step_size=0.05, steps=3), net, x[:5], y[:5])
    assert (passes.forward, passes.backward) == (15, 15)
    _, passes = counted(DeepFool(steps=1, candidates=4), net, x[:5], y[:5])
    assert passes.backward >= 5 * 5


def test_distances_fall_with_the_budget():
    net, x, y = trained()
    torch.manual_seed(0)
    curve = query_curve(lambda n: SignOPT(queries=n, starts=10, directions=30), net, x[:4], y[:4], (150, 600))
    assert [point.budget for point in curve] == [150, 600]
    assert all(point.queries <= point.budget for point in curve)
    assert curve[0].median > curve[1].median > 0
    assert curve[1].found > 0.8
    with pytest.raises(ValueError, match="at least one image"):
        query_curve(lambda n: SignOPT(queries=n), net, x[:0], y[:0], (10,))
