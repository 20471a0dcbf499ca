"""Weight files by path, URL or Hugging Face repository, cached and verified."""

import contextlib
import hashlib
import http.client
import re
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path

from lightning_paf.utils.files import explained
from lightning_paf.utils.terminal import clause

_CHUNK = 1 << 20
_TIMEOUT = 30.0
"""Seconds without data until a connection counts as interrupted."""
_LOOPBACK = ("localhost", "ip6-localhost")
_BY_HAND = "or download the file by other means and pass its path"
_WEIGHTS = (".safetensors", ".pt", ".pth", ".pth.tar", ".bin", ".ckpt", ".tar")
_USUAL = ("model.safetensors", "model.pt", "pytorch_model.bin")
"""Files that are preferred in a repository with several, in this order."""


def weight_file(source: str | Path, sha256: str | None = None) -> Path:
    """Return the local path of a file, after a download if needed.

    URLs are cached in `checkpoints` of `torch.hub.get_dir()`, with a hash of the URL before the name. An interrupted
    download resumes, also in a later process. Hugging Face repositories are cached by `huggingface_hub`.

    Args:
        source: Path, `https://` URL, `http://` URL of this machine, or `hf://OWNER/NAME[@REVISION][/FILE]`. Without a
            file, the repository must hold one weight file, or one with a usual name such as `model.safetensors`.
        sha256: Expected SHA-256 of the file, 64 hexadecimal digits.

    Raises:
        ValueError: A source of another kind, no network, no such file, a web page instead of a file, an interrupted
            download without progress, or another SHA-256.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"--sha256 must be 64 hexadecimal digits, got {sha256}.")
    scheme, separator, rest = str(source).partition("://")
    if not separator:
        path = Path(source)
    elif scheme == "hf":
        path = _from_hub(rest)
    else:
        return _from_url(str(source), sha256)
    if sha256 and path.is_file():
        _verify(path, sha256, str(source))
    return path


def _from_url(url: str, sha256: str | None) -> Path:
    import torch
    from filelock import FileLock

    _check_url(url)
    name = re.sub(r"[^\w.-]", "_", Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name)[-100:] or "file"
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{name}"
    with explained(folder, "a cache folder"):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if path.is_file():
                _verify(path, sha256, url, f" Remove {path} to download it again.")
                return path
            partial = _download(url, path)
            try:
                _verify(partial, sha256, url)
            except ValueError:
                partial.unlink()
                raise
            partial.replace(path)
    return path


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))):
        raise ValueError(f"A source must be a file, an https:// URL or hf://OWNER/NAME, got {url}. Pass one of these.")


def _is_loopback(host: str) -> bool:
    try:
        return host in _LOOPBACK or ip_address(host).is_loopback
    except ValueError:
        return False


def _verify(path: Path, sha256: str | None, source: str, hint: str = "") -> None:
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest() if sha256 else None
    if sha256 and digest != sha256.lower():
        raise ValueError(f"SHA-256 of {source} must be {sha256}, got {digest}. Pass another --sha256 or file.{hint}")


def _download(url: str, path: Path) -> Path:
    """Download to a partial file; repeat after interruptions that follow progress."""
    while True:
        start = _size(path)
        try:
            return _append(url, path)
        except urllib.error.HTTPError as error:
            if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise ValueError(
                    f"{url} must be a file, got HTTP {error.code} {error.reason}. Check the URL."
                ) from error
            (_partial(path) or path).unlink(missing_ok=True)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if _size(path) <= start:
                reason = clause(getattr(error, "reason", error)) or type(error).__name__
                hint = f"Check the network and run the same command again, {_BY_HAND}."
                raise ValueError(f"{url} cannot be downloaded: {reason}. {hint}") from error


def _append(url: str, path: Path) -> Path:
    """Append the rest of the file; start over if the server has another version."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    before, start = _partial(path), _size(path)
    headers = {"User-Agent": "lightning-paf"} | ({"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
        _check_url(response.url)
        if response.headers.get_content_type() == "text/html":
            raise ValueError(f"{url} must be a file, got a web page. Open it in a browser, {_BY_HAND}.")
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        total = start * resumed + int(response.headers.get("Content-Length", 0))
        version = response.headers["ETag"] or response.headers["Last-Modified"]
        partial = path.with_name(f"{path.name}.{hashlib.sha256(f'{version} {total}'.encode()).hexdigest()[:8]}.part")
        if before and (before != partial or not version):
            before.unlink()
            if resumed:
                return _append(url, path)
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        progress = Progress(*columns, console=Console(stderr=True))
        with partial.open("ab" if resumed else "wb") as stream, progress as bar:
            task = bar.add_task("", total=total or None, completed=stream.tell())
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                bar.advance(task, len(chunk))
            done = stream.tell()
    if done < total:
        raise ConnectionError(f"the connection closed after {done} of {total} bytes")
    return partial


def _partial(path: Path) -> Path | None:
    """Partial file of an interrupted download, named by version and size."""
    return next(iter(path.parent.glob(f"{path.name}.*.part")), None)


def _size(path: Path) -> int:
    partial = _partial(path)
    return partial.stat().st_size if partial else 0


def _from_hub(name: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?", name)
    if not found:
        raise ValueError(f"A repository must be hf://OWNER/NAME[/FILE], got hf://{name}. Pass its full name.")
    repository, revision, file = found.groups()
    try:
        info = HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT)  # the only request without retries
        files = [item.rfilename for item in info.siblings or ()]
        weights = sorted(name for name in files if name.endswith(_WEIGHTS))
        usual = [name for name in _USUAL if name in weights]
        if file or usual or len(weights) == 1:
            return Path(hf_hub_download(repository, file or (usual or weights)[0], revision=revision))
    except Exception as error:  # of the network, the repository, or the library
        if file:
            with contextlib.suppress(OSError):
                return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
        raise ValueError(
            f"hf://{name} cannot be downloaded: {clause(error)}. Check the name and the network; "
            f"without one, hf://OWNER/NAME/FILE is read from the cache."
        ) from error
    raise ValueError(
        f"hf://{name} must have one weight file ({', '.join(_WEIGHTS)}), got {', '.join(weights or files[:8])}. "
        "Pass hf://OWNER/NAME/FILE."
    )
