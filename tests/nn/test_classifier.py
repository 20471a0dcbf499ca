import pytest
import torch
from helpers.fakes import TinyNet, images, spec, tiny_classifier
from torch import nn

from lightning_paf.nn.classifier import Classifier
from lightning_paf.nn.penalties import total_penalty
from lightning_paf.speed.folded_model import FoldedModel


def test_normalisation_is_the_first_line():
    x, _ = images()
    net = TinyNet().eval()
    model = Classifier(net, spec()).eval()
    torch.testing.assert_close(model(x), net((x - 0.5) / 0.25))


def test_without_normalisation_it_is_the_network():
    x, _ = images()
    net = TinyNet().eval()
    torch.testing.assert_close(Classifier(net, spec(), normalize=False).eval()(x), net(x))


def test_features_times_the_head_are_the_logits():
    x, _ = images()
    model = tiny_classifier().eval()
    logits, features, aux = model.outputs(x)
    assert features.shape == (len(x), model.num_features)
    torch.testing.assert_close(model.head(features), logits)
    torch.testing.assert_close(model(x), logits)
    assert aux == ()


def test_hooks_do_not_pile_up():
    model = tiny_classifier()
    model.outputs(images()[0])
    assert not model.head._forward_pre_hooks


def test_networks_with_probes_return_their_logits():
    class Probed(TinyNet):
        def forward_aux(self, x, y):
            return self(x), [self(x) + 1]

    x, y = images()
    outputs = Classifier(Probed(), spec()).eval().outputs(x, y)
    torch.testing.assert_close(outputs.aux[0], outputs.logits + 1)


def test_the_checkpoint_holds_no_statistics():
    assert not [key for key in tiny_classifier().state_dict() if "mean" in key.split(".")[0] or "std" in key]


def test_a_network_without_a_linear_layer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Sequential has none \(it has Conv2d\)"):
        Classifier(nn.Sequential(nn.Conv2d(3, 10, 3)), spec())


def test_another_number_of_classes_is_refused_with_the_repair():
    with pytest.raises(ValueError, match=r"100 classes, but TinyNet has 10 outputs. Pass --model.net.num_classes 100"):
        Classifier(TinyNet(10), spec(100))


class Constant(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor([value]))

    def penalty(self):
        return 2 * self.value


def test_a_shared_penalised_layer_counts_once():
    layer = Constant(3.0)
    torch.testing.assert_close(total_penalty(nn.Sequential(layer, nn.Identity(), layer)), torch.tensor(6.0))
    torch.testing.assert_close(total_penalty(nn.Sequential(layer, Constant(1.0))), torch.tensor(8.0))


def test_no_penalised_layer_gives_zero():
    assert total_penalty(nn.Linear(2, 2)).item() == 0
    assert total_penalty(nn.Sequential()).item() == 0


def test_the_twin_for_attacks_is_no_part_of_the_model():
    model = tiny_classifier()
    keys, modules = list(model.state_dict()), list(model.modules())
    assert model.fast_forward is None
    model.fast_forward = FoldedModel(model)
    with torch.no_grad():
        model.eval().fast_forward.refresh()(images()[0])
    assert model.fast_forward.folded
    assert list(model.state_dict()) == keys
    assert list(model.modules()) == modules
