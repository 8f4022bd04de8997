"""One machine's part of a server that spans several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.command_line import House

from enginehouse.commands.serve import serve_worker
from enginehouse.core.errors import ServerGoneError, UnsupportedError
from enginehouse.deployment.configuration import ServeConfig, parse
from enginehouse.engines.vllm.engine import VllmEngine
from enginehouse.processes.process import Command
from enginehouse.runtime.context import Context


def plan(house: House, **values: Any) -> ServeConfig:
    """A tiny model."""
    return parse(ServeConfig, {"model": str(house.model()), **values}, origin="test")


@pytest.mark.slow
async def test_a_part_that_ends(house: House, monkeypatch: pytest.MonkeyPatch):
    """Its end is an error, with code 0 too, and nothing of it is left."""
    ending = Command(argv=("/bin/sh", "-c", "echo the head is gone"), env={})
    monkeypatch.setattr(VllmEngine, "worker", lambda *_, **__: ending)
    with pytest.raises(ServerGoneError, match="code 0") as caught:
        await serve_worker(plan(house), Context(), head="node0", node=1)
    assert caught.value.log is not None
    assert "the head is gone" in caught.value.log.read_text()
    house.nothing_left()


async def test_a_build_without_parts(house: House):
    """The fake is the CPU build."""
    with pytest.raises(UnsupportedError):
        await serve_worker(plan(house), Context(), head="node0", node=1)
    house.nothing_left()


@pytest.mark.parametrize("option", ["--detach", "--announce=servers"])
def test_options_that_make_no_sense(call: Callable[..., Any], house: House, option: str):
    """A part answers nobody, and ends with the server."""
    assert call("serve", str(house.model()), "--head", "node0", option).code == 2
