import pytest
from helpers.fakes import TinyNet

from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.parameter_groups import parameter_groups


@pytest.mark.parametrize(
    ("decay", "excluded"),
    [
        ("all", set()),
        ("activation_free", {"activation.alpha", "activation.beta"}),
        ("weights", {"activation.alpha", "activation.beta", "bn.weight", "bn.bias", "fc.bias"}),
    ],
)
def test_each_rule_excludes_its_parameters(decay, excluded):
    net = TinyNet()
    net.activation = PSSiLU()
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    groups = parameter_groups(net, decay)
    free = {names[id(p)] for group in groups for p in group["params"] if group.get("weight_decay") == 0}
    everything = [names[id(p)] for group in groups for p in group["params"]]
    assert free == excluded
    assert sorted(everything) == sorted(names.values())


def test_frozen_parameters_are_left_out():
    net = TinyNet()
    net.activation = PSSiLU(learn_alpha=False)
    given = {id(p) for group in parameter_groups(net, "all") for p in group["params"]}
    assert id(net.activation.alpha) not in given
    assert id(net.activation.beta) in given
