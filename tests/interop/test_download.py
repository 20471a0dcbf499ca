"""Downloads from a server on the loopback address: resumed, verified, cached."""

import hashlib

import pytest
import torch
from helpers.cli_runs import status
from helpers.file_server import file_server, use_as_hub
from huggingface_hub import constants
from torch import nn

from lightning_paf.interop import read_checkpoint, weight_file

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Server with `/net.pt`; an empty cache folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with file_server() as server:
        server.files["/net.pt"] = CONTENT
        yield server


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """The server in place of huggingface.co."""
    use_as_hub(server, tmp_path / "hub", monkeypatch)
    return server


def cached(tmp_path) -> list[str]:
    suffixes = {path.suffix for path in (tmp_path / "cache" / "hub" / "checkpoints").iterdir()}
    return sorted(suffixes - {".lock"})


@pytest.mark.parametrize("sha256", [None, SHA256, SHA256.upper()])
def test_a_download_is_cached(server, sha256):
    path = weight_file(server.url("/net.pt"), sha256)
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("-net.pt")
    assert weight_file(server.url("/net.pt"), sha256) == path
    assert server.ranges == [None]


def test_urls_with_the_same_file_name_have_two_entries(server):
    server.files["/other/net.pt"] = b"other"
    assert weight_file(server.url("/net.pt")).read_bytes() == CONTENT
    assert weight_file(server.url("/other/net.pt")).read_bytes() == b"other"


def test_an_interrupted_transfer_resumes_where_it_stopped(server, tmp_path):
    server.cuts = [3000, 4000]
    assert weight_file(server.url("/net.pt"), SHA256).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=3000-", "bytes=7000-"]
    assert cached(tmp_path) == [".pt"]


def test_a_later_process_resumes(server, tmp_path):
    server.cuts = [3000, 0]
    with pytest.raises(ValueError, match=r"closed after 3000 of 10240 bytes. Check the network and run the same"):
        weight_file(server.url("/net.pt"))
    assert cached(tmp_path) == [".part"]
    assert weight_file(server.url("/net.pt"), SHA256).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=3000-"


@pytest.mark.parametrize("kind", ["changed", "shorter", "untagged", "without ranges"])
def test_a_part_of_another_version_is_not_continued(kind, server):
    server.cuts = [3000, 0] + [0] * (kind == "untagged")  # the second response is of the range, the third of the file
    server.tagged = kind != "untagged"
    with pytest.raises(ValueError, match="cannot be downloaded"):
        weight_file(server.url("/net.pt"))
    expected = {"changed": CONTENT[::-1], "shorter": CONTENT[:100]}.get(kind, CONTENT)
    server.files["/net.pt"] = expected
    server.with_ranges = kind != "without ranges"
    assert weight_file(server.url("/net.pt")).read_bytes() == expected


def test_another_checksum_is_refused_and_not_cached(server, tmp_path):
    with pytest.raises(ValueError, match=rf"SHA-256 of http://.*net.pt must be {64 * '0'}, got {SHA256}"):
        weight_file(server.url("/net.pt"), 64 * "0")
    assert cached(tmp_path) == []
    path = weight_file(server.url("/net.pt"))
    with pytest.raises(ValueError, match=rf"got {SHA256}.*Remove {path} to download it again"):
        weight_file(server.url("/net.pt"), 64 * "0")
    with pytest.raises(ValueError, match=rf"SHA-256 of {path} must be"):
        weight_file(path, 64 * "0")
    assert weight_file(path, SHA256) == path


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("/absent.pt", "must be a file, got HTTP 404 Not Found. Check the URL"),
        ("/page.pt", "must be a file, got a web page. Open it in a browser, or download the file by other means"),
        (
            "http://example.org/net.pt",
            "A source must be a file, an https:// URL or hf://OWNER/NAME, got http://example",
        ),
        ("ftp://127.0.0.1/net.pt", "A source must be a file, an https:// URL"),
        ("https:///net.pt", "A source must be a file, an https:// URL"),
        ("https://no-such-host.invalid/net.pt", r"cannot be downloaded: .*\. Check the network and run the same"),
    ],
)
def test_a_source_that_cannot_be_downloaded(url, message, server):
    server.files["/page.pt"], server.types["/page.pt"] = b"<html>", "text/html; charset=utf-8"
    with pytest.raises(ValueError, match=message):
        weight_file(server.url(url) if url.startswith("/") else url)


def test_a_checksum_of_another_length_is_refused():
    with pytest.raises(ValueError, match="--sha256 must be 64 hexadecimal digits, got abc"):
        weight_file("net.pt", "abc")


def test_a_checkpoint_is_read_from_a_url(server, tmp_path):
    net = nn.Linear(2, 1)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    server.files["/net.pt"] = (tmp_path / "net.pt").read_bytes()
    assert torch.equal(read_checkpoint(server.url("/net.pt")).choose().tensors["weight"], net.weight)


@pytest.mark.parametrize("name", ["owner/name", "owner/name/model.safetensors", "owner/name@main"])
def test_a_file_of_a_repository(name, hub, tmp_path):
    hub.files |= {f"/owner/name/resolve/main/{file}": CONTENT for file in ("README.md", "model.safetensors", "old.pt")}
    path = weight_file(f"hf://{name}", SHA256)
    assert (path.name, path.read_bytes()) == ("model.safetensors", CONTENT)
    assert path.is_relative_to(tmp_path / "hub")


def test_a_cached_file_of_a_repository_needs_no_network(hub, monkeypatch):
    hub.files["/owner/name/resolve/main/net.pt"] = CONTENT
    path = weight_file("hf://owner/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weight_file("hf://owner/name/net.pt") == path
    with pytest.raises(ValueError, match=r"cannot be downloaded: .*\. Check the name and the network; without"):
        weight_file("hf://owner/name")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/cards", r"must have one weight file \(.safetensors, .*\), got README.md. Pass hf://OWNER/NAME/FILE"),
        ("owner/several", r"must have one weight file \(.*\), got a.pt, b.pth. Pass hf://OWNER/NAME/FILE"),
        ("owner/absent", "hf://owner/absent cannot be downloaded: 404 .* Repository Not Found for url"),
        ("owner/cards/absent.pt", "hf://owner/cards/absent.pt cannot be downloaded: "),
        ("owner", r"A repository must be hf://OWNER/NAME\[/FILE\], got hf://owner"),
    ],
)
def test_a_repository_without_one_weight_file(name, message, hub):
    hub.files |= {f"/owner/{file}": CONTENT for file in ("cards/resolve/main/README.md",)}
    hub.files |= {f"/owner/several/resolve/main/{file}": CONTENT for file in ("a.pt", "b.pth", "README.md")}
    with pytest.raises(ValueError, match=message) as error:
        weight_file(f"hf://{name}")
    assert "\n" not in str(error.value)


def test_the_command_reports_in_one_line(server, tmp_path, capsys):
    words = ["import-weights", server.url("/absent.pt"), "--net", "SmallConvNet", "--out", tmp_path / "run"]
    assert status(*words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lightning-paf: error: http://127.0.0.1")
