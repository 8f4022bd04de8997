from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from enginehouse.engines.options import ServerOptions
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.provisioning.environments import EngineEnvironment
from enginehouse.provisioning.models import ResolvedModel
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.servers.readiness import StartLimits
from enginehouse.servers.records import ServerRecord, find_server, list_servers
from enginehouse.servers.server import OwnedServer, launch_detached, start_server
from enginehouse.servers.stopping import stop_server
from enginehouse.servers.timings import Timings
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_environment import make_fake_environment


@pytest.fixture
def layout(tmp_path) -> Layout:
    """Folders of this test's own."""
    home = tmp_path / "layout"
    return Layout(cache=home / "cache", state=home / "state", config=home / "config")


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> EngineEnvironment:
    """An environment whose vLLM is the fake engine."""
    python = make_fake_environment(tmp_path_factory.mktemp("environment") / "vllm")
    return EngineEnvironment(
        engine="vllm", version="0.32.0", variant="cpu", executable=python, key="fake", flags={}
    )


@pytest.fixture
def model(tmp_path) -> ResolvedModel:
    """A model that the fake engine takes on trust."""
    return ResolvedModel(
        reference="org/Tiny-Model",
        name="Tiny-Model",
        source="path",
        path=Path(tmp_path),
        weights_digest="w",
        chat_template_digest="c",
        unknown={},
        notes=(),
    )


_LIMITS = StartLimits(total=30.0, silence=30.0)
# A fake that ignores SIGTERM is killed soon.
TIMINGS = Timings(orphan_grace=0.2, stop_grace=3.0, start_grace=1.0, probe=0.5)


class Starter:
    """Start servers of the fake engine; fakes misbehave by VLLM_FAKE_… in `env`."""

    def __init__(self, *, model, environment, layout) -> None:
        self.environment = environment
        self.model = model
        self.layout = layout
        self.said: list[str] = []

    @asynccontextmanager
    async def __call__(self, **settings: object) -> AsyncIterator[Server]:
        """A foreground server for a block."""
        async with self.owned(**settings) as owned:
            yield owned.server

    def owned(
        self, *, name=None, limits=_LIMITS, timings=TIMINGS, env=None, **options: object
    ) -> AbstractAsyncContextManager[OwnedServer]:
        """A foreground server for a block, as its owner has it."""
        return start_server(self._server(limits, timings, env, options), name=name)

    async def detached(self, *, name=None, env=None, **options: object) -> ServerRecord:
        """A detached server's record."""
        owned = self._server(_LIMITS, TIMINGS, env, options)
        server = await launch_detached(owned, name=name)
        return find_server(server.name, layout=self.layout)

    def _server(self, limits, timings, env, options):
        return OwnedServer(
            model=self.model,
            engine=VllmEngine(),
            environment=self.environment,
            options=ServerOptions(env_vars=env or {}, **options),
            context=Context(layout=self.layout, notify=self.said.append),
            limits=limits,
            timings=timings,
        )


@pytest.fixture
async def start(model, environment, layout):
    """What starts servers; anything that a test leaves detached is stopped after it."""
    yield Starter(model=model, environment=environment, layout=layout)
    for status in list_servers(layout):
        await stop_server(status.record.name, layout=layout, timings=Timings(stop_grace=1))
