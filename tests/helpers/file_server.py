"""A file server on the loopback address that interrupts transfers, also as a stand-in for a hub."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api


class FileServer(ThreadingHTTPServer):
    """Files by path, with ranges; `cuts` are the bytes after which the next responses end."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.cuts: list[int] = []
        self.ranges: list[str | None] = []
        self.tagged = self.with_ranges = True

    def url(self, path: str = "") -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Handler(BaseHTTPRequestHandler):
    server: FileServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if listing := re.fullmatch(r"/api/models/(\w+/\w+)(?:/revision/main)?", path):
            root = f"/{listing[1]}/resolve/main/"
            found = [name.removeprefix(root) for name in self.server.files if name.startswith(root)]
            content = {"id": listing[1], "siblings": [{"rfilename": name} for name in found]}
            return self._send(200 if found else 404, json.dumps(content).encode())
        if path not in self.server.files:
            return self._send(404, b"")
        content, asked = self.server.files[path], self.headers["Range"]
        self.server.ranges.append(asked)
        start = int(asked[6:].split("-")[0]) if asked and self.server.with_ranges else 0
        if start >= len(content) > 0:
            return self._send(416, b"")
        return self._send(206 if start else 200, content[start:], content)

    def _send(self, status: int, body: bytes, whole: bytes = b"") -> None:
        path = self.path.partition("?")[0]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound" if "/api/" in path else "EntryNotFound")
        self.send_header("Content-Type", self.server.types.get(path, "application/octet-stream"))
        if whole and self.server.tagged:
            self.send_header("ETag", f'"{hashlib.sha256(whole).hexdigest()}"')
        if "/resolve/" in path:
            self.send_header("X-Repo-Commit", 40 * "a")
        if status == 206:
            self.send_header("Content-Range", f"bytes {len(whole) - len(body)}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: self.server.cuts.pop(0)] if self.server.cuts and whole else body)

    def log_message(self, *words: object) -> None:
        pass


@contextlib.contextmanager
def file_server() -> Iterator[FileServer]:
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def use_as_hub(server: FileServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace huggingface.co by a server with files `/OWNER/NAME/resolve/main/FILE`."""
    template = server.url("/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "ENDPOINT", server.url())
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api.api, "endpoint", server.url())
