"""As much of huggingface.co as uploading and downloading a repository asks for."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

NAME = "user/net"
COMMIT = "0123456789" * 4


class Hub(BaseHTTPRequestHandler):
    """One repository, ``user/net``, whose files are those of a folder.

    Only who has logged in uploads; without a folder the repository has not been created.
    """

    def __init__(self, *args: object, folder: Path) -> None:
        self.folder = folder
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        names = sorted(file.name for file in self.folder.glob("*"))
        if path.startswith(f"/api/models/{NAME}") and self.folder.exists():
            files = [{"rfilename": name} for name in names]
            tree = [{"type": "file", "path": name, "size": 1, "oid": COMMIT} for name in names]
            info = {"id": NAME, "sha": COMMIT, "siblings": files}
            self.answer(json.dumps(tree if "/tree/" in path else info).encode())
        elif path.startswith(f"/{NAME}/resolve/") and path.rpartition("/")[2] in names:
            name = path.rpartition("/")[2]
            self.answer((self.folder / name).read_bytes(), name)
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}/{NAME}"
        reply: dict[str, Any]
        if self.path == "/api/validate-yaml":
            reply = {"errors": [], "warnings": []}
        elif "Authorization" not in self.headers:
            self.send_error(401, "Invalid username or password.")
            return
        elif self.path == "/api/repos/create":
            self.folder.mkdir(exist_ok=True)
            reply = {"url": address, "name": NAME}
        elif self.path == f"/api/models/{NAME}/preupload/main":
            paths = [file["path"] for file in json.loads(body)["files"]]
            given = {"uploadMode": "regular", "shouldIgnore": False}
            reply = {"files": [{"path": path, **given} for path in paths]}
        elif self.path == f"/api/models/{NAME}/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    (self.folder / line["value"]["path"]).write_bytes(content)
            done = f"{address}/commit/{COMMIT}"
            reply = {"success": True, "commitOid": COMMIT, "commitUrl": done}
        else:
            self.send_error(404)
            return
        self.answer(json.dumps(reply).encode())

    def answer(self, content: bytes, etag: str = "") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on standard error."""


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub on this machine in place of huggingface.co.

    Args:
        folder: of the repository ``user/net``.
        monkeypatch: what points huggingface_hub to it.

    Yields:
        Its address.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    cache = str(folder.with_name("hub-cache"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(
        huggingface_hub.constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield address
    server.shutdown()
    server.server_close()
