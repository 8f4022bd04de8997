"""A deployment without a process: it is as good as the folder that it answers as says."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.core.sampler import SampleRequest
from enginehouse.deployment.base import Incidents, Target
from enginehouse.deployment.configuration import ServeConfig
from enginehouse.results.curve import Curve
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.watch.configuration import WatchConfig
from enginehouse.watch.watcher import watch
from tests.support.evaluation_fakes import PROVENANCE, FakeSampler
from tests.support.tiny_adapters import write_adapter
from tests.support.tiny_checkpoints import write_checkpoint

ITEMS = 10
SERVER = Server(
    name="stand-in",
    base_url="http://127.0.0.1:1",
    models=("tiny",),
    pid=None,
    log=None,
    engine="vllm",
    version="0.32.0",
    environment=None,
    command=(),
    api_key=None,
    owned=True,
)


class Place:
    """A folder that is watched, what is put into it, and everything that was asked of servers.

    A checkpoint's or adapter's quality is the number of items (of 10) that it answers rightly; the
    base's is 4.
    """

    server = SERVER
    incidents = Incidents()

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"
        self.out.mkdir()
        self.base = write_checkpoint(root / "tiny")
        self.started: list[ServeConfig] = []
        self.targets: list[str] = []
        self.asked: Counter[tuple[str, int]] = Counter()
        self.refusals: dict[str, list[Exception]] = {}
        self.on_target: Callable[[str], Any] = lambda _: None
        self.on_question: Callable[[str, int], Any] = lambda *_: None
        self.said: list[str] = []
        items = [{"ask": f"Sum number {n}: {n} + 0?", "right": str(n)} for n in range(ITEMS)]
        (root / "sums.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        given = {"name": "sums", "data": "sums.jsonl", "prompt": "{{ ask }}", "answer": "right"}
        (root / "sums.yaml").write_text(json.dumps(given | {"metric": "number"}))

    def checkpoint(self, name: str, quality: int) -> Path:
        """Write (or overwrite) full weights."""
        return self._with(write_checkpoint(self.out / name, seed=quality), quality)

    def adapter(self, name: str, quality: int, *, rank: int = 4) -> Path:
        """Write (or overwrite) an adapter."""
        return self._with(write_adapter(self.out / name, seed=quality, rank=rank), quality)

    def _with(self, folder: Path, quality: int) -> Path:
        (folder / "quality").write_text(str(quality))
        return folder

    async def watch(self, model: Path | None = None, **options: Any) -> Curve:
        """One watch of the folder, with the base unless `model` is the folder itself (none)."""
        return await watch(self.config(model, **options), Context(notify=self.said.append))

    def config(self, model: Path | None = None, **options: Any) -> WatchConfig:
        """What is asked, at once."""
        named = None if model == self.out else str(model or self.base)
        given = {
            "tasks": [str(self.root / "sums.yaml")],
            "once": True,
            "interval": 0.01,
            "concurrency": 1,
        }
        return WatchConfig(directory=self.out, model=named, **given | options)

    @asynccontextmanager
    async def open_deployment(self, plan: ServeConfig, *_: Any, **__: Any) -> AsyncIterator[Place]:
        """As `deployment.opening.open_deployment`."""
        self.started.append(plan)
        for error in self.refusals.get(f"start {Path(str(plan.model)).name}", [])[:1]:
            self.refusals[f"start {Path(str(plan.model)).name}"].remove(error)
            raise error
        yield self

    @asynccontextmanager
    async def target(self, path: Path | None) -> AsyncIterator[Target]:
        """As `deployment.base.Deployment.target`."""
        name = path.name if path else "base"
        self.targets.append(name)
        self.on_target(name)
        if errors := self.refusals.get(name):
            raise errors.pop(0)
        quality = int((path / "quality").read_text()) if path else 4

        def reply(request: SampleRequest) -> Any:
            (number,) = re.findall(r"number (\d+)", request.prompt.messages[-1].content)
            number = int(number)
            self.asked[name, number] += 1
            raised = self.on_question(name, number)
            return raised or (f"It is {number}." if number < quality else "It is 1000.")

        provenance = msgspec.structs.replace(PROVENANCE, model=name)
        yield Target(deployment=self, sampler=FakeSampler(reply), provenance=provenance)

    def times(self, name: str) -> list[int]:
        """How often each item was asked of it."""
        return [self.asked[name, number] for number in range(ITEMS)]


async def until(condition: Callable[[], Any], *, seconds: float = 30.0) -> None:
    """Wait for something true."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)
