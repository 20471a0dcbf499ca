"""`import-weights` writes a run folder for the other commands, or nothing."""

import pytest
import torch
import yaml
from helpers.cli_runs import status
from helpers.fakes import CONFIGS, write_npz_dataset
from helpers.originals import MEAN, STD, Normalize, randomised, renamed, shifted, wide
from torch import nn

from lightning_paf.commands import import_weights
from lightning_paf.loading import load_run
from lightning_paf.nets import DMWideResNet, PreActResNet, SmallConvNet
from lightning_paf.utils import files

X = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    torch.save(renamed(wide(activation=False).state_dict(), "module."), tmp_path / "weights.pt")
    return tmp_path


def import_(folder, *options, net="wrn28_10", sizes=("--model.net.depth", 10, "--model.net.width", 1), run="run"):
    words = [folder / "weights.pt", "--net", CONFIGS / "net" / f"{net}.yaml", "--out", folder / run, *options, *sizes]
    assert import_weights.main([str(word) for word in words]) == 0


def assert_imported(folder, original, run="run"):
    """The imported model has the logits of the original."""
    imported = load_run(folder / run / "checkpoints" / "imported.ckpt").model
    torch.testing.assert_close(imported(X), original(X), atol=1e-6, rtol=1e-6)


def config(folder):
    return yaml.safe_load((folder / "run" / "config.yaml").read_text())["model"]


def printed(capsys) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_the_run_has_the_logits_of_the_original(folder, capsys):
    import_(folder)
    original = wide(activation=False)
    original.load_state_dict({k.removeprefix("module."): v for k, v in torch.load(folder / "weights.pt").items()})
    assert_imported(folder, original)
    checkpoint = folder / "run" / "checkpoints" / "imported.ckpt"
    origin = torch.load(checkpoint, weights_only=True)["imported"]
    assert (origin["file"], origin["averaged"]) == ("weights.pt", False)
    assert len(origin["sha256"]) == 64
    text = printed(capsys)
    assert "module.block1.layer.0.conv1.weight -> block1.layer.0.conv1.weight (16, 16, 3, 3)" in text
    assert "Normalisation: none, since the file records none" in text
    assert f"lightning-paf test --ckpt_path {checkpoint}" in text


def test_commands_run_on_the_result(tmp_path, capsys):
    root = write_npz_dataset(tmp_path / "images")
    net = SmallConvNet(num_classes=3, in_channels=3, width=4)
    torch.save({"net": net.state_dict()}, tmp_path / "weights.pt")
    data = ["--data.num_classes", 3, "--data.root", root, "--data.num_workers", 0, "--data.val_size", 12]
    sizes = ("--model.net.width", 4, "--model.net.in_channels", 3)
    import_(tmp_path, "--dataset", "npz", *data, net="small", sizes=sizes)
    few = ["--autoattack.test_examples", 6, "--autoattack.attack", "PGD", "--autoattack.attack.steps", 2]
    quiet = ["--trainer.enable_progress_bar", "false"]
    assert status("test", "--ckpt_path", tmp_path / "run" / "checkpoints" / "imported.ckpt", *few, *quiet) == 0
    assert list((tmp_path / "run" / "test").glob("autoattack*.json"))
    assert status("certify", tmp_path / "run", "--sigma", 0.1, "--samples", 2, 4, "--examples", 2) == 0
    assert "Note: the configuration trains without noise" in printed(capsys)
    assert status("status", tmp_path / "run") == 0
    text = printed(capsys)
    assert "run: imported checkpoint imported.ckpt: " in text
    assert "lightning-paf fit" not in text


def test_a_parametric_activation_is_one_row_for_all_its_layers(folder, capsys):
    original = wide()
    torch.save({"state_dict": original.state_dict()}, folder / "weights.pt")
    import_(folder, "--activation", "PSSiLU")
    assert_imported(folder, original)
    assert "activation.alpha (shared with 3 more)" in printed(capsys)


def test_averaged_weights_are_taken_and_raw_ones_on_request(folder, capsys):
    average, raw = wide(activation=False), wide(activation=False)
    raw.load_state_dict(shifted(raw.state_dict()))
    content = {"model_state_dict": average.state_dict(), "unaveraged_model_state_dict": raw.state_dict()}
    torch.save(content, folder / "weights.pt")
    import_(folder)
    assert_imported(folder, average)
    text = (
        "Imported the averaged weights under model_state_dict; the file also holds unaveraged_model_state_dict (--raw)."
    )
    assert text in printed(capsys)
    import_(folder, "--raw", run="raw")
    assert_imported(folder, raw, "raw")


def test_statistics_of_the_file_or_the_command_line_are_used(folder):
    original = nn.Sequential(Normalize(), wide(activation=False))
    torch.save(nn.DataParallel(original).state_dict(), folder / "weights.pt")
    import_(folder)
    assert_imported(folder, original)
    assert config(folder)["net"]["class_path"] == "lightning_paf.interop.NormalizedNet"
    torch.save(original[1].state_dict(), folder / "weights.pt")
    import_(folder, "--mean", *MEAN, "--std", *STD, run="typed")
    assert_imported(folder, original, "typed")


@pytest.mark.parametrize(("typed", "normalizes"), [("true", True), ("false", False)])
def test_normalize_means_the_statistics_of_the_dataset(folder, typed, normalizes, capsys):
    import_(folder, "--normalize", typed)
    assert config(folder)["normalize"] is normalizes
    assert config(folder)["net"]["class_path"] == "lightning_paf.nets.WideResNet"
    assert "from the command line" in printed(capsys)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_networks_of_deepmind_get_their_normalisation(folder, dataset, capsys):
    mean, std = {
        "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    }[dataset]
    original = DMWideResNet(10, 1, num_classes=int(dataset[5:]), mean=mean, std=std).eval()
    torch.save(original.state_dict(), folder / "weights.pt")
    import_(folder, "--dataset", dataset, net="dm_wrn28_10")
    assert_imported(folder, original)
    assert f"that of DeepMind's networks for {dataset}" in printed(capsys)


def test_a_network_with_its_own_normalisation_is_not_normalised_twice(folder, capsys):
    original = DMWideResNet(10, 1, mean=MEAN, std=STD).eval()
    torch.save(original.state_dict(), folder / "weights.pt")
    import_(folder, "--model.net.mean", list(MEAN), "--model.net.std", list(STD), net="dm_wrn28_10")
    assert_imported(folder, original)
    assert "Normalisation: the network's own" in printed(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--activation", "PSSiLU"], "lacks this activation's parameters"),
        (["--dataset", "cifar100"], r"2 of another shape: module\.fc\.weight: \(10, 64\) instead of \(100, 64\)"),
        (["--model.net.depth", "16"], r"missing in the file: block1\.layer\.1"),
        (["--ema"], "--ema requires averaged weights"),
        (["--model.normalize", "true"], "--model.normalize must not be given to import-weights. Pass --normalize"),
        (["--drop", "head.*"], r"--drop must match keys of the file \(.*, got head"),
        (["--entry", "best"], r"--entry must be a state dict of .*, got best"),
        (["--dataset", "npz", "--data.num_classes", "10", "--normalize", "true"], "got npz. Pass --mean and --std"),
        (["--mean", "125", "--std", "62"], r"must be for images in \[0, 1\], got .*Divide both by 255"),
        (["--mean", "0.5", "0.5", "0.5"], "must be given by --mean and --std"),
        (["--mean", "0.5", "--std", "0.5", "--normalize", "true"], "Pass one of the two"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_nothing_is_written(folder, options, message):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=message):
        import_(folder, sizes=("--model.net.depth", 10, "--model.net.width", 1, *options))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("content", [{"1": None}, {"state_dict": None, "config": {"input_normalization": True}}])
def test_a_normalisation_without_statistics_must_be_passed(folder, content):
    state = wide(activation=False).state_dict()
    content = renamed(state, "1.") if "1" in content else {**content, "state_dict": state}
    torch.save(content, folder / "weights.pt")
    with pytest.raises(ValueError, match=r"normalisation of .* must be passed.*--normalize true for those of cifar10"):
        import_(folder)
    import_(folder, "--normalize", "false")


@pytest.mark.parametrize("shortcut", ["activated", "raw"])
def test_options_on_which_keys_do_not_depend_must_be_passed(tmp_path, shortcut):
    original = randomised(PreActResNet(width=2, shortcut=shortcut))
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    sizes = ["--model.net.width", 2]
    with pytest.raises(ValueError, match=r"shortcut of PreActResNet must be passed.*raw \(Wong et al\. 2020.*Rice"):
        import_(tmp_path, net="preact_resnet18", sizes=sizes)
    import_(tmp_path, net="preact_resnet18", sizes=[*sizes, "--model.net.shortcut", shortcut])
    assert_imported(tmp_path, original)


class Owner(nn.Module):
    """A network whose state dict holds its normalisation."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.register_buffer("mu", torch.full((3, 1, 1), 0.4))
        self.register_buffer("sigma", torch.full((3, 1, 1), 0.2))
        self.fc = nn.Linear(3, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(((x - self.mu) / self.sigma).mean((2, 3)))


def test_statistics_that_the_network_owns_stay_in_it(tmp_path, capsys):
    original = Owner()
    torch.save(original.state_dict(), tmp_path / "weights.pt")
    words = [tmp_path / "weights.pt", "--net", f"{__name__}.Owner", "--out", tmp_path / "run"]
    assert import_weights.main([str(word) for word in words]) == 0
    assert "Normalisation: the network's own" in printed(capsys)
    weights = torch.load(tmp_path / "run" / "checkpoints" / "imported.ckpt", weights_only=True)["state_dict"]
    assert {"model.net.mu", "model.net.sigma"} <= weights.keys()


def test_a_run_is_not_overwritten(folder):
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(ValueError, match="must be a folder without a run"):
        import_(folder, "--normalize", "true")
    assert [path.name for path in (folder / "run").rglob("*.*")] == ["last.ckpt"]


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_a_command_that_was_killed_can_be_repeated(folder, monkeypatch):
    """The configuration is written last."""
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_whole", interrupt)
        with pytest.raises(KeyboardInterrupt):
            import_(folder, "--normalize", "true")
    assert [path.name for path in (folder / "run").rglob("*.*")] == ["imported.ckpt"]
    import_(folder, "--normalize", "true")
    assert (folder / "run" / "config.yaml").is_file()
