"""The commands of docs/migration.md run, on small networks and a server on the loopback address."""

import hashlib
import re
import shlex
from dataclasses import replace

import pytest
import torch
from helpers.cli_runs import status
from helpers.fakes import CONFIGS
from helpers.file_server import file_server, use_as_hub
from helpers.originals import wide
from safetensors.torch import save

from lightning_paf.__main__ import TRAINING
from lightning_paf.interop import zoo
from lightning_paf.nets import timm_net

PAGE = (CONFIGS.parent / "docs" / "migration.md").read_text()
COMMANDS = [
    shlex.split(line)[1:] for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()
]
SMALL = ["--model.net.depth", "10", "--model.net.width", "1"]


@pytest.fixture
def replaced(tmp_path, monkeypatch):
    """Placeholders of the page and their values; the folder holds the recipes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = wide(activation=False).state_dict()
    torch.save(state, tmp_path / "FILE")
    content = (tmp_path / "FILE").read_bytes()
    with file_server() as server:
        use_as_hub(server, tmp_path / "hub", monkeypatch)
        server.files["/FILE.pt"] = content
        server.files["/OWNER/NAME/resolve/main/model.safetensors"] = save(state)
        server.files["/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"] = save(
            timm_net("test_resnet", num_classes=1000).state_dict()
        )
        name, size = "cifar10/linf/Wang2023Better_WRN-28-10", {"depth": 10, "width": 1}
        entry = replace(zoo.zoo_entry(name), net={"class_path": "WideResNet", "init_args": size}, mean=(), std=())
        entry = replace(entry, url=server.url("/FILE.pt"))
        monkeypatch.setattr(zoo, "zoo", lambda: (entry,))
        yield {"https://HOST/FILE.pt": server.url("/FILE.pt"), "SHA256": hashlib.sha256(content).hexdigest()}


def test_the_commands_run_in_their_order(replaced, capsys):
    assert len(COMMANDS) == 10
    for words in COMMANDS:
        typed = [replaced.get(word, word) for word in words]
        if typed[0] in TRAINING:
            typed += ["--print_config"]
        elif typed[0] == "import-weights" and "configs/net/wrn28_10.yaml" in typed:
            typed += SMALL
        elif typed[0] == "export":
            typed += ["--formats", "safetensors", "--examples", "0"]
        assert status(*typed) == 0, (typed, capsys.readouterr().err)
    assert "Not uploaded to hf://OWNER/NAME" in capsys.readouterr().out
