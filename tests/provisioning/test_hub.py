from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from safetensors.numpy import save

from enginehouse.core.errors import ModelError, ModelGatedError, ModelNotFoundError
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.hub import hub_snapshot
from enginehouse.provisioning.models import resolve_model
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_right"
WEIGHTS = save({"w": np.zeros(50_000, np.float32)})
WHOLE = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same, older",
    "original/consolidated.00.pth": b"the same, once more",
    "README.md": b"# a card",
}


@dataclass
class Repository:
    """A model of the fake hub; gated and private ones want TOKEN."""

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False


@dataclass
class FakeHub:
    """What the hub has, what was asked of it, and how it misbehaves."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int | None = None
    stalled: threading.Event | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """The parts of the hub's HTTP API that a download uses."""

    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        """Headers only."""
        self.do_GET()

    def do_GET(self) -> None:
        """A model's facts, or a file."""
        path = urlsplit(self.path).path
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.status is not None:
            self.reply(self.hub.status, b"broken", {})
            return
        parts = path.removeprefix("/api/models").strip("/").split("/")
        repository = self.hub.repositories.get("/".join(parts[:2]))
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not authorized):
            self.refuse(401, "RepoNotFound")
        elif path.startswith("/api/models"):
            self.describe("/".join(parts[:2]), parts[2:], repository, authorized=authorized)
        elif repository.gated and not authorized:
            self.refuse(401, "GatedRepo")
        else:
            self.file(repository.files.get("/".join(parts[4:])))

    def describe(
        self, name: str, rest: list[str], repository: Repository, *, authorized: bool
    ) -> None:
        """What the hub knows of a model."""
        files = [(path, content) for path, content in repository.files.items()]
        if rest[:1] == ["auth-check"]:
            if repository.gated and not authorized:
                self.refuse(403, "GatedRepo")
            else:
                self.json({})
        elif rest[:1] == ["tree"]:
            self.json([_entry(path, content) for path, content in files])
        elif rest[:1] == ["revision"] and rest[1] not in {"main", SHA}:
            self.refuse(404, "RevisionNotFound")
        else:
            siblings = [{"rfilename": path, "size": len(content)} for path, content in files]
            gated = "manual" if repository.gated else False
            self.json({"id": name, "sha": SHA, "gated": gated, "siblings": siblings})

    def file(self, content: bytes | None) -> None:
        """A file's content, which may stall half-way."""
        if content is None:
            self.refuse(404, "EntryNotFound")
            return
        if self.command == "GET" and self.hub.stalled is not None and content == WEIGHTS:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:100_000])
            self.wfile.flush()
            self.hub.reached.set()
            self.hub.stalled.wait(60)
            self.wfile.write(content[100_000:])
            return
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        self.reply(200, content, {"X-Repo-Commit": SHA, "ETag": etag})

    def refuse(self, status: int, code: str) -> None:
        """An error, as the hub marks it."""
        self.reply(status, b"", {"X-Error-Code": code, "X-Error-Message": f"said {code}"})

    def json(self, content: object) -> None:
        """A JSON answer."""
        self.reply(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        """Any answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _entry(path: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
    if path.endswith((".safetensors", ".bin")):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return entry


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on loopback with one good model, and an empty cache."""
    fake = FakeHub({"org/model": Repository(dict(WHOLE))})
    handler = type("BoundHandler", (Handler,), {"hub": fake})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "")
    yield fake
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_model_is_downloaded_once_in_one_form(hub: FakeHub, notes: list[str]):
    """Configuration, tokenizer and safetensors; no older copies of the weights, no card."""
    snapshot = await hub_snapshot("org/model", revision=None, notify=notes.append)
    assert snapshot.revision == SHA
    names = {path.name for path in snapshot.folder.iterdir()}
    assert names == {"config.json", "tokenizer.json", "model.safetensors"}
    assert "3 files" in notes[0]
    hub.asked.clear()
    again = await hub_snapshot("org/model", revision=None, notify=notes.append)
    assert again.folder == snapshot.folder
    assert not [line for line in hub.asked if line.startswith("GET /org")]


async def test_a_handle_is_resolved(hub: FakeHub, notes: list[str], layout: Layout, tmp_path: Path):
    """The engine gets the snapshot's folder; the name is the handle, the revision the commit."""
    environment = EngineEnvironment(
        engine="vllm",
        version="0.32.0",
        variant="cpu",
        executable=tmp_path / "python",
        key=None,
        flags={},
    )
    found = await resolve_model(
        "org/model@main",
        environment=environment,
        context=Context(layout=layout, notify=notes.append),
    )
    assert (found.name, found.source, found.revision) == ("org/model", "hub", SHA)
    line = f"{hashlib.sha256(WEIGHTS).hexdigest()}  model.safetensors\n"
    assert found.weights_digest == hashlib.sha256(line.encode()).hexdigest()
    assert SHA in found.path


@pytest.mark.parametrize("token", ["", "hf_wrong"])
async def test_a_gated_model_is_refused_before_a_download(
    token: str, hub: FakeHub, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The hub shows gated models to all: the check comes first, with the page and the token."""
    hub.repositories["org/gated"] = Repository(dict(WHOLE), gated=True)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelGatedError) as caught:
        await hub_snapshot("org/gated", revision=None, notify=notes.append)
    text = str(caught.value)
    assert f"{hub.url}/org/gated" in text
    assert "HF_TOKEN" in text
    assert "hf auth login" in text
    assert ("has not been granted" in text) == bool(token)
    assert not [line for line in hub.asked if "resolve" in line]


@pytest.mark.parametrize("name", ["gated", "private"])
async def test_the_right_token_opens(
    name: str, hub: FakeHub, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """HF_TOKEN is read when it is needed, not when Enginehouse was started."""
    hub.repositories["org/gated"] = Repository(dict(WHOLE), gated=True)
    hub.repositories["org/private"] = Repository(dict(WHOLE), private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    snapshot = await hub_snapshot(f"org/{name}", revision=None, notify=notes.append)
    assert (snapshot.folder / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize("name", ["org/modle", "org/private"])
async def test_missing_and_private_look_alike(name: str, hub: FakeHub, notes: list[str]):
    """The hub does not tell them apart, so the advice is both: spelling, and a token."""
    hub.repositories["org/private"] = Repository(dict(WHOLE), private=True)
    with pytest.raises(ModelNotFoundError) as caught:
        await hub_snapshot(name, revision=None, notify=notes.append)
    assert f"check the spelling of '{name}'" in str(caught.value)
    assert "HF_TOKEN" in str(caught.value)


async def test_a_missing_revision(hub: FakeHub, notes: list[str]):
    """The model is there, what follows @ is not."""
    with pytest.raises(ModelNotFoundError, match="v9"):
        await hub_snapshot("org/model", revision="v9", notify=notes.append)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "LoRA adapter"),
        ({"m.Q4.gguf": b""}, r"hf download org/odd m\.Q4\.gguf"),
        ({"config.json": b"{}"}, "no language model"),
        ({"README.md": b""}, "no language model"),
    ],
)
async def test_a_repository_that_is_no_model(
    files: dict[str, bytes], expected: str, hub: FakeHub, notes: list[str]
):
    """Adapters, GGUF collections and data are told apart before anything is downloaded."""
    hub.repositories["org/odd"] = Repository(files)
    with pytest.raises(ModelError, match=expected):
        await hub_snapshot("org/odd", revision=None, notify=notes.append)
    assert not [line for line in hub.asked if "resolve" in line]


async def test_offline_the_cache_is_used_and_said(
    hub: FakeHub, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """HF_HUB_OFFLINE asks nobody; the notes say that nobody was asked."""
    online = await hub_snapshot("org/model", revision=None, notify=notes.append)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.asked.clear()
    with pytest.raises(ModelNotFoundError):
        await hub_snapshot("org/other", revision=None, notify=notes.append)
    offline = await hub_snapshot("org/model", revision=SHA, notify=notes.append)
    assert offline.folder == online.folder
    assert "HF_HUB_OFFLINE is set" in notes[-1]
    assert offline.notes
    assert hub.asked == []


async def test_offline_a_branch_that_was_downloaded_is_found(
    hub: FakeHub, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The plain handle works offline, too, once it has been downloaded."""
    online = await hub_snapshot("org/model", revision=None, notify=notes.append)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    offline = await hub_snapshot("org/model", revision=None, notify=notes.append)
    assert offline.folder == online.folder
    assert offline.revision == SHA


async def test_offline_and_not_cached(
    hub: FakeHub, notes: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The error names the setting, the cache and the other way: a path."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError) as caught:
        await hub_snapshot("org/model", revision=None, notify=notes.append)
    text = str(caught.value)
    assert "HF_HUB_OFFLINE" in text
    assert str(tmp_path / "hub") in text
    assert "path of a checkpoint folder" in text


@pytest.mark.parametrize("how", ["unreachable", "status 503"])
async def test_a_hub_that_does_not_answer(
    how: str, hub: FakeHub, notes: list[str], monkeypatch: pytest.MonkeyPatch
):
    """With the model in the cache it is used, and said; without, the network is named."""
    await hub_snapshot("org/model", revision=None, notify=notes.append)
    if how == "unreachable":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.status = 503
    snapshot = await hub_snapshot("org/model", revision=None, notify=notes.append)
    assert snapshot.revision == SHA
    assert "from the hub's cache" in notes[-1]
    with pytest.raises(ModelNotFoundError, match="network"):
        await hub_snapshot("org/other", revision=None, notify=notes.append)


async def test_a_cancelled_download_ends(hub: FakeHub, notes: list[str]):
    """Ctrl-C does not wait for the rest of the file; the next try succeeds."""
    hub.stalled = threading.Event()
    task = asyncio.create_task(hub_snapshot("org/model", revision=None, notify=notes.append))
    assert await asyncio.to_thread(hub.reached.wait, 30)
    task.cancel()
    hub.stalled.set()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, timeout=30)
    hub.stalled = None
    assert await hub_snapshot("org/model", revision=None, notify=notes.append)
