"""A package and a hub that the tests make themselves."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest

from enginehouse.evaluation.scoring_processes import ScoringProcesses
from enginehouse.tasks.base import Item, Score, ScoringCall, Task

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the hub has: files by repository and path, and the gated repositories."""

    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)

    def refusal(self, path: str, token: str | None) -> tuple[int, str] | None:
        """The status and error code for a path that this token does not get."""
        repository, revision, file = parse(path)
        if repository not in {name for name, _ in self.files}:
            return 404, "RepoNotFound"
        if repository in self.gated and token != "Bearer good":
            return (401 if token is None else 403), "GatedRepo"
        if revision not in ("main", COMMIT):
            return 404, "RevisionNotFound"
        return None if (repository, file) in self.files else (404, "EntryNotFound")


def parse(path: str) -> tuple[str, str, str]:
    """Repository, revision and file of /datasets/OWNER/NAME/resolve/REVISION/FILE."""
    _, _, owner, name, _, revision, file = path.split("/", 6)
    return f"{owner}/{name}", revision, file


class Handler(BaseHTTPRequestHandler):
    """The hub's download endpoint."""

    hub: FakeHub

    def do_HEAD(self) -> None:
        """What the file is."""
        self._answer()

    def do_GET(self) -> None:
        """The file."""
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        if refusal := self.hub.refusal(self.path, self.headers.get("Authorization")):
            status, code = refusal
            content, extra = b"", {"X-Error-Code": code}
        else:
            repository, _, file = parse(self.path)
            status, content = 200, self.hub.files[repository, file]
            extra = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, **extra}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Nothing on the terminal."""


@pytest.fixture
async def score() -> AsyncIterator[Callable[[Task, Item, str], Awaitable[Score]]]:
    """Scores a text as a run does, by a program where the task says so."""
    processes = ScoringProcesses()

    async def scored(task: Task, item: Item, text: str) -> Score:
        score = task.score_text(item, text)
        return await processes.score(score) if isinstance(score, ScoringCall) else score

    yield scored
    await processes.close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on loopback that HF_ENDPOINT points to, with an empty cache and no token."""
    fake = FakeHub()
    handler = type("BoundHandler", (Handler,), {"hub": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()
