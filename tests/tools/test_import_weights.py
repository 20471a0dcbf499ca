"""The command: a run folder that the other commands understand, or nothing at all."""

import subprocess
import sys

import pytest
import torch
import yaml
from cli_runs import status
from stand_ins import CONFIGS, write_npz_dataset
from torch import nn

from lightning_paf.loading import load_run
from lightning_paf.nets import DMWideResNet, SmallConvNet, WideResNet
from lightning_paf.nn.activations import PSSiLU
from lightning_paf.nn.swap import swap_activations
from lightning_paf.tools import import_weights

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def wide(activation=False):
    net = WideResNet(depth=10, width=1)
    if activation:
        swap_activations(net, lambda: PSSiLU(alpha=1.3, beta=0.1))
    return net.eval()


@pytest.fixture
def folder(tmp_path):
    torch.save({f"module.{key}": value for key, value in wide().state_dict().items()}, tmp_path / "weights.pt")
    return tmp_path


def import_(
    folder, *options, net=CONFIGS / "net" / "wrn28_10.yaml", sizes=("--model.net.depth", 10, "--model.net.width", 1)
):
    words = [folder / "weights.pt", "--net", net, "--out", folder / "run", *options, *sizes]
    return import_weights.main([str(word) for word in words])


def imported(folder):
    return load_run(folder / "run" / "checkpoints" / "imported.ckpt").model


def said(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_the_run_computes_what_the_original_computes(folder, capsys):
    assert import_(folder) == 0
    original = wide()
    original.load_state_dict({k.removeprefix("module."): v for k, v in torch.load(folder / "weights.pt").items()})
    torch.testing.assert_close(imported(folder)(X), original(X), atol=1e-6, rtol=1e-6)
    origin = torch.load(folder / "run" / "checkpoints" / "imported.ckpt", weights_only=True)["imported"]
    assert (origin["file"], origin["averaged"]) == ("weights.pt", False)
    assert len(origin["sha256"]) == 64
    printed = said(capsys)
    assert "module.block1.layer.0.conv1.weight" in printed
    assert "(16, 16, 3, 3)" in printed
    assert "Normalisation: none, since nothing in the file asks for one" in printed
    assert f"lightning-paf test --ckpt_path {folder / 'run' / 'checkpoints' / 'imported.ckpt'}" in printed


def test_test_runs_on_the_result(tmp_path):
    root = write_npz_dataset(tmp_path / "images")
    net = SmallConvNet(num_classes=3, in_channels=3, width=4)
    torch.save({"net": net.state_dict()}, tmp_path / "weights.pt")
    data = ["--data.num_classes", 3, "--data.root", root, "--data.num_workers", 0, "--data.val_size", 12]
    sizes = ("--model.net.width", 4, "--model.net.in_channels", 3)
    assert import_(tmp_path, "--dataset", "npz", *data, net=CONFIGS / "net" / "small.yaml", sizes=sizes) == 0
    few = ["--autoattack.test_examples", 6, "--autoattack.attack", "PGD", "--autoattack.attack.steps", 2]
    quiet = ["--trainer.enable_progress_bar", "false"]
    assert status("test", "--ckpt_path", tmp_path / "run" / "checkpoints" / "imported.ckpt", *few, *quiet) == 0
    assert list((tmp_path / "run" / "test").glob("autoattack*.json"))


def test_a_parametric_activation_is_one_row_for_all_its_places(folder, capsys):
    original = wide(activation=True)
    torch.save({"state_dict": original.state_dict()}, folder / "weights.pt")
    assert import_(folder, "--activation", "PSSiLU") == 0
    torch.testing.assert_close(imported(folder)(X), original(X), atol=1e-6, rtol=1e-6)
    assert "activation.alpha (and 3 more that share it)" in said(capsys)


def test_averaged_weights_are_taken_and_raw_ones_on_request(folder, capsys):
    average, raw = wide(), wide()
    content = {"model_state_dict": average.state_dict(), "unaveraged_model_state_dict": raw.state_dict()}
    torch.save(content, folder / "weights.pt")
    import_(folder)
    torch.testing.assert_close(imported(folder)(X), average(X), atol=1e-6, rtol=1e-6)
    assert (
        "Took the averaged weights under model_state_dict; the file also holds unaveraged_model_state_dict (--raw)"
        in (said(capsys))
    )
    words = [folder / "weights.pt", "--net", "WideResNet", "--out", folder / "raw", "--raw"]
    import_weights.main([*map(str, words), "--model.net.depth", "10", "--model.net.width", "1"])
    raw_run = load_run(folder / "raw" / "checkpoints" / "imported.ckpt")
    torch.testing.assert_close(raw_run.model(X), raw(X), atol=1e-6, rtol=1e-6)


class Normalize(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(-1, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


def test_statistics_in_the_file_are_used_as_they_are(folder):
    original = nn.Sequential(Normalize(), wide())
    torch.save(nn.DataParallel(original).state_dict(), folder / "weights.pt")
    import_(folder)
    torch.testing.assert_close(imported(folder)(X), original(X), atol=1e-6, rtol=1e-6)
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert config["model"]["net"]["class_path"] == "lightning_paf.interop.NormalizedNet"


def test_statistics_may_be_typed(folder):
    net = wide()
    torch.save(net.state_dict(), folder / "weights.pt")
    import_(folder, "--mean", *MEAN, "--std", *STD)
    torch.testing.assert_close(imported(folder)(X), net(Normalize()(X)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("typed", "normalizes"), [("true", True), ("false", False)])
def test_normalize_means_the_statistics_of_the_dataset(folder, typed, normalizes, capsys):
    import_(folder, "--normalize", typed)
    config = yaml.safe_load((folder / "run" / "config.yaml").read_text())
    assert config["model"]["normalize"] is normalizes
    assert config["model"]["net"]["class_path"] == "lightning_paf.nets.WideResNet"
    assert "as typed" in said(capsys)


@pytest.mark.parametrize(("dataset", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_networks_of_deepmind_normalise_although_their_files_do_not_say_so(folder, dataset, classes, capsys):
    mean, std = {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    }[dataset]
    original = DMWideResNet(10, 1, num_classes=classes, mean=mean, std=std).eval()
    torch.save(original.state_dict(), folder / "weights.pt")
    import_(folder, "--dataset", dataset, net=CONFIGS / "net" / "dm_wrn28_10.yaml")
    torch.testing.assert_close(imported(folder)(X), original(X), atol=1e-6, rtol=1e-6)
    assert f"that of DeepMind's wide ResNets for {dataset}" in said(capsys)


def test_a_network_that_normalises_by_itself_is_not_normalised_twice(folder, capsys):
    original = DMWideResNet(10, 1, mean=MEAN, std=STD).eval()
    torch.save(original.state_dict(), folder / "weights.pt")
    own = ["--model.net.mean", str(list(MEAN)), "--model.net.std", str(list(STD))]
    import_(folder, *own, net=CONFIGS / "net" / "dm_wrn28_10.yaml")
    torch.testing.assert_close(imported(folder)(X), original(X), atol=1e-6, rtol=1e-6)
    assert "Normalisation: the network's own" in said(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--activation", "PSSiLU"], "lacks this activation's parameters"),
        (["--dataset", "cifar100"], r"2 of another shape: module\.fc\.weight: \(10, 64\) instead of \(100, 64\)"),
        (["--model.net.depth", "16"], r"missing in the file: block1\.layer\.1"),
        (["--ema"], "asks for averaged weights"),
        (["--model.normalize", "true"], "not --model.normalize"),
        (["--mean", "0.5", "0.5", "0.5"], "--mean and --std together"),
        (["--mean", "0.5", "--std", "0.5", "--normalize", "true"], "Pass one of the two"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(folder, options, message):
    before = sorted(folder.rglob("*"))
    sizes = ("--model.net.depth", 10, "--model.net.width", 1, *(options if "depth" in options[0] else ()))
    with pytest.raises(ValueError, match=message):
        import_(folder, *(() if "depth" in options[0] else options), sizes=sizes)
    assert sorted(folder.rglob("*")) == before


def test_a_run_is_not_written_over(folder):
    import_(folder)
    before = (folder / "run" / "checkpoints" / "imported.ckpt").read_bytes()
    with pytest.raises(ValueError, match="already holds one"):
        import_(folder, "--normalize", "true")
    assert (folder / "run" / "checkpoints" / "imported.ckpt").read_bytes() == before


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys; from lightning_paf.tools import import_weights\n"
        "try: import_weights.main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'numpy', 'lightning'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
