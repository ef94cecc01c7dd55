"""A stand-in for the Hugging Face hub: a small HTTP server that serves folders as models.

It answers the requests of `huggingface_hub` (a model's facts, a file's headers, a file), and
refuses as the real hub does: facts of a gated model are public, its files are not; to users without
access, a private model does not exist.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Model:
    """A repository: branches and commits, each a folder."""

    commits: dict[str, Path]  # sha -> files, oldest first
    gated: bool = False
    private: bool = False
    refused: str = ""  # a folder in it whose files alone are gated

    @property
    def main(self) -> str:
        return list(self.commits)[-1]


@dataclass
class Hub:
    """The server's models and the requests that it received."""

    models: dict[str, Model] = field(default_factory=dict)
    tokens: dict[str, set[str]] = field(default_factory=dict)  # token -> models it may read
    asked: list[str] = field(default_factory=list)  # "GET path" of every request
    seen_tokens: set[str] = field(default_factory=set)
    busy: int = 0  # the number of requests to answer with 429
    cut: int = 0  # the number of weight downloads to break off half-way; -1: all
    delay: float = 0.0  # seconds half-way in every download of weights
    endpoint: str = ""

    def add(self, name: str, folder: Path, **facts: object) -> str:
        """Serve `folder` as the newest commit of model `name`; return the commit."""
        sha = hashlib.sha1(f"{name} {folder}".encode()).hexdigest()
        model = self.models.setdefault(name, Model({}))
        model.commits[sha] = Path(folder)
        for key, value in facts.items():
            setattr(model, key, value)
        return sha

    def downloads(self) -> list[str]:
        """Paths in the repositories of the files that were sent, in order."""
        return [a.split("/", 5)[-1] for a in self.asked if a.startswith("GET") and "/resolve/" in a]


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Serve a hub, at first without models, until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub, "protocol_version": "HTTP/1.1"})
    )
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _send(self, code: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, code: int, error: str = "", message: str = "", **headers: str) -> None:
        if error:
            headers["X-Error-Code"] = error
        if message:
            headers["X-Error-Message"] = message
        self._send(code, headers, json.dumps({"error": message or error}).encode())

    def _answer(self) -> None:
        hub, path = self.hub, self.path.partition("?")[0]
        hub.asked.append(f"{self.command} {path}")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        hub.seen_tokens.add(token)
        if hub.busy and path != "/api/agent-harnesses":  # asked once per process, and never used
            hub.busy -= 1
            return self._refuse(429, message="slow down", **{"Retry-After": "7"})
        if token and token not in hub.tokens:
            return self._refuse(401, message="Invalid credentials in Authorization header")
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not about and not file:
            return self._refuse(404, message="no such page")
        name, revision = (about or file)[1], (about or file)[2] or "main"
        model = hub.models.get(name)
        allowed = name in hub.tokens.get(token, ())
        if model is None or (model.private and not allowed):
            if not token:  # the hub does not distinguish missing models from hidden ones
                return self._refuse(401, message="Invalid username or password.")
            return self._refuse(404, "RepoNotFound", "Repository not found")
        commit = model.main if revision == "main" else revision
        folder = model.commits.get(commit)
        if folder is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if about:
            return self._tell(name, commit, folder, model)
        shut = model.gated or (model.refused and file[3].startswith(model.refused + "/"))
        if shut and not allowed:
            return self._refuse(
                403 if token else 401, "GatedRepo", f"Access to model {name} is restricted."
            )
        if not (folder / file[3]).is_file():
            return self._refuse(
                404, "EntryNotFound", "Entry not found", **{"X-Repo-Commit": commit}
            )
        return self._give(commit, folder / file[3])

    def _tell(self, name: str, commit: str, folder: Path, model: Model) -> None:
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        facts = {
            "id": name,
            "sha": commit,
            "private": model.private,
            "gated": "manual" if model.gated else False,
            "siblings": [
                {"rfilename": p.relative_to(folder).as_posix(), "size": p.stat().st_size}
                for p in files
            ],
        }
        self._send(200, {"Content-Type": "application/json"}, json.dumps(facts).encode())

    def _give(self, commit: str, path: Path) -> None:
        content = path.read_bytes()
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        code, first = 200, 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            code, first = 206, int(wanted[1])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        weights = self.command == "GET" and path.suffix == ".safetensors"
        if not weights or not (self.hub.cut or self.hub.delay):
            return self._send(code, headers, content[first:])
        half = len(content) // 2
        self._send(code, headers | {"Content-Length": str(len(content) - first)})
        self.wfile.write(content[first : max(first, half)])
        self.wfile.flush()
        time.sleep(self.hub.delay)
        if self.hub.cut:
            self.hub.cut -= self.hub.cut > 0
            self.close_connection = True
            self.connection.close()
        else:
            self.wfile.write(content[max(first, half) :])
