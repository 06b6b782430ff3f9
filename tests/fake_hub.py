"""A hub of models on a free port of this machine, as much of it as huggingface_hub asks for; it can misbehave."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import reset_sessions


@dataclass
class FakeHub:
    """Models by name, each with its commits and its branches."""

    url: str = ""
    commits: dict[str, dict[str, Path]] = field(default_factory=dict)
    """model -> sha -> folder"""
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    """model -> branch -> sha"""
    status: int | None = None
    """answered to everything, for a hub that is out of order or a model that is gated"""
    error_code: str = ""
    delay: threading.Event = field(default_factory=threading.Event)
    """answers wait for it when `is_slow`"""
    is_slow: bool = False
    downloaded: list[str] = field(default_factory=list)

    def push(self, model: str, folder: Path, branch: str = "main") -> str:
        """Publish a folder as the newest commit of a branch."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sha = hashlib.sha1(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()
        self.commits.setdefault(model, {})[sha] = folder
        self.branches.setdefault(model, {})[branch] = sha
        return sha

    def commit_of(self, model: str, revision: str) -> str | None:
        known = self.commits.get(model, {})
        found = [sha for sha in known if len(revision) >= 7 and sha.startswith(revision)]
        return self.branches.get(model, {}).get(revision) or (found[0] if found else None)


def _handler(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            if hub.is_slow:
                hub.delay.wait(60)
            if hub.status is not None:
                return self._refuse(hub.status, hub.error_code)
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                return self._describe("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
            model, sha, name = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            content = (hub.commits[model][sha] / name).read_bytes()
            self.send_response(200)
            self.send_header("X-Repo-Commit", sha)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if with_body:
                hub.downloaded.append(name)
                self.wfile.write(content)

        def _describe(self, model: str, revision: str) -> None:
            if model not in hub.commits:
                return self._refuse(404, "RepoNotFound")
            sha = hub.commit_of(model, revision)
            if sha is None:
                return self._refuse(404, "RevisionNotFound")
            folder = hub.commits[model][sha]
            names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            body = json.dumps({"id": model, "sha": sha, "siblings": [{"rfilename": name} for name in names]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal of the tests."""

    return Handler


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.delay.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


def point_at(hub: FakeHub | None, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub of this process ask this hub, or none (offline), and keep its files in ``cache``.

    Args:
        hub: None takes the network away, as HF_HUB_OFFLINE=1 does.
        cache: what HF_HOME/hub would be.
        patch: takes everything back after the test.
    """
    url = hub.url if hub else "http://127.0.0.1:9"
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_OFFLINE", hub is None)
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    reset_sessions()
