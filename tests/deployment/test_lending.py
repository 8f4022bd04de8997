from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from tests.support.lora_servers import fake, loaded
from tests.support.tiny_adapters import write_adapter

from enginehouse.core.errors import ServerGoneError
from enginehouse.deployment.adapters import adapters_of
from enginehouse.deployment.configuration import AskConfig
from enginehouse.deployment.opening import open_deployment
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout


class Borrowing:
    """What is borrowed from a server, and what was said meanwhile."""

    def __init__(self, url: str, layout: Layout) -> None:
        self.url = url
        self.layout = layout
        self.said: list[str] = []

    @asynccontextmanager
    async def of(self, folder: Path, *, host: str = "127.0.0.1") -> AsyncIterator[str]:
        """One adapter, for the block."""
        plan = AskConfig(url=self.url.replace("127.0.0.1", host), adapter=folder)
        context = Context(layout=self.layout, notify=self.said.append)
        async with open_deployment(plan, context) as deployment:
            self.said.clear()
            yield deployment.sampler.model


class TestBorrowed:
    """An adapter is there until the last of those who asked for it is done."""

    async def test_two_borrowers_of_one_adapter(self, layout, tmp_path):
        """The end of the first takes nothing from the second, whatever they call the server."""
        folder = write_adapter(tmp_path / "step-1")
        async with fake() as url:
            them, first = Borrowing(url, layout), AsyncExitStack()
            model = await first.enter_async_context(them.of(folder))
            assert model.startswith("step-1.lent@")
            async with them.of(folder, host="localhost") as same:
                assert same == model
                await first.aclose()
                assert await loaded(url) == [model]
            assert await loaded(url) == []
            assert them.said == []

    @pytest.mark.slow
    async def test_many_who_come_and_go_at_once(self, layout, tmp_path):
        """It is there for each, and nothing is left of it."""
        folder = write_adapter(tmp_path / "step-1")

        async def use(them: Borrowing, pauses: int) -> None:
            async with them.of(folder) as model:
                for _ in range(pauses):
                    assert model in await loaded(them.url)

        async with fake() as url:
            await asyncio.gather(*(use(Borrowing(url, layout), pauses % 3) for pauses in range(6)))
            assert await loaded(url) == []
        assert list((layout.adapters / ".lent").glob("*/*")) == []

    async def test_others_of_that_name_are_nobody_s_business(self, layout, tmp_path):
        """Loaded, replaced and unloaded by others, it is still there for the borrower."""
        folder = write_adapter(tmp_path / "step-1")
        other = write_adapter(tmp_path / "other", seed=1)
        async with fake() as url, adapters_of(url, Context(layout=layout)) as theirs:
            await theirs.load("step-1", folder)
            async with Borrowing(url, layout).of(folder) as model:
                await theirs.load("step-1", other)
                await theirs.unload("step-1")
                assert await loaded(url) == [model]

    @pytest.mark.slow
    async def test_one_whose_borrower_was_killed(self, layout, tmp_path):
        """The next one takes it back."""
        folder = write_adapter(tmp_path / "step-1")
        async with fake() as url:
            async with Borrowing(url, layout).of(folder):
                (held,) = (layout.adapters / ".lent").glob("*/*")
            held.touch()  # as a killed process leaves it: the file without its lock
            async with adapters_of(url, Context(layout=layout)) as its:
                await its.load("step-1.lent", folder)
            async with Borrowing(url, layout).of(folder):
                pass
            assert await loaded(url) == []

    async def test_it_is_gone_at_the_end(self, layout, tmp_path):
        """That is what was wanted: nothing is raised, and nothing said."""
        folder = write_adapter(tmp_path / "step-1")
        async with fake() as url:
            them = Borrowing(url, layout)
            async with them.of(folder), adapters_of(url, Context(layout=layout)) as its:
                await its.unload("step-1.lent")
            assert them.said == []

    @pytest.mark.slow
    async def test_it_cannot_be_taken_back(self, layout, tmp_path):
        """What was asked is as good: it is said; and an error of the block is the one raised."""
        folder = write_adapter(tmp_path / "step-1")
        refuse = {"fault": "status", "path": "/v1/unload_lora_adapter", "status": 400}
        async with fake(refuse) as url:
            them = Borrowing(url, layout)
            async with them.of(folder):
                pass
            (said,) = them.said
            assert said.startswith(f"step-1.lent may still be loaded at {url}: ")
            with pytest.raises(ServerGoneError, match="it died"):
                async with them.of(folder):
                    raise ServerGoneError("it died")
