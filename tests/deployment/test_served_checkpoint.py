"""Where a served checkpoint lies and how long prompts may be, by whatever says it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.sampler import Capabilities
from enginehouse.deployment.served_checkpoint import ServedCheckpoint, served_checkpoint
from enginehouse.engines.options import ServerOptions

BASE = {"id": "base", "max_model_len": 640}
ADAPTER = {"id": "adapter", "parent": "base", "max_model_len": None}


@asynccontextmanager
async def target_of(
    listed: Any, *, model: str = "base", folder: Path | None = None
) -> AsyncIterator[Any]:
    """A model on a server with this list, which is read once; of our own if it has a folder."""
    read = 0

    async def models(_: web.Request) -> web.Response:
        nonlocal read
        read += 1
        return web.json_response(listed, status=200 if listed else 404)

    application = web.Application()
    application.router.add_get("/v1/models", models)
    ours = folder and SimpleNamespace(path=str(folder))
    capabilities = Capabilities(supports=frozenset())
    async with (
        TestServer(application) as server,
        HTTPSampler(str(server.make_url("")), model=model, capabilities=capabilities) as sampler,
    ):
        yield SimpleNamespace(sampler=sampler, deployment=SimpleNamespace(model=ours))
        assert read == 1


async def checkpoint_of(listed: Any, **how: Any) -> ServedCheckpoint:
    """That of such a model."""
    async with target_of(listed, **how) as target:
        return await served_checkpoint(target, ServerOptions())


@pytest.mark.parametrize("model", ["base", "adapter", "alias"])
async def test_the_folder_is_the_one_that_the_server_names(tmp_path: Path, model: str):
    """If it is on this machine; an adapter's own folder has no tokenizer."""
    adapter = ADAPTER | {"root": str(tmp_path / "adapter")}
    for folder, found in ((tmp_path, tmp_path), (tmp_path / "elsewhere", None)):
        listed = {"data": [BASE | {"root": str(folder)}, adapter]}
        assert (await checkpoint_of(listed, model=model)).folder == found


async def test_a_handle_is_not_taken_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where a folder has that name."""
    (tmp_path / "org/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    listed = {"data": [BASE | {"root": "org/model"}]}
    assert await checkpoint_of(listed) == ServedCheckpoint(folder=None, max_model_len=640)


@pytest.mark.parametrize("listed", [None, {"data": [BASE]}])
async def test_the_folder_of_our_own(tmp_path: Path, listed: Any):
    """It is known, and nobody else's is where nothing says it."""
    assert (await checkpoint_of(listed, folder=tmp_path)).folder == tmp_path
    assert (await checkpoint_of(listed)).folder is None


@pytest.mark.parametrize(
    ("model", "length"), [("base", 640), ("adapter", 640), ("alias", 640), ("other", None)]
)
async def test_the_servers_list_says_it(model: str, length: int | None):
    """An adapter is as long as its model; another model of the server is not."""
    listed = {"data": [BASE, ADAPTER, {"id": "other"}]}
    assert (await checkpoint_of(listed, model=model)).max_model_len == length


@pytest.mark.parametrize("listed", [None, {"data": [{"id": "base"}]}, {"models": []}])
async def test_otherwise_a_checkpoint_of_ours_does(tmp_path: Path, listed: Any):
    """Nothing does where there is none, or it does not say it."""
    assert (await checkpoint_of(listed)).max_model_len is None
    assert (await checkpoint_of(listed, folder=tmp_path)).max_model_len is None
    for config in (
        {"max_position_embeddings": 99},
        {"text_config": {"max_position_embeddings": 99}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert (await checkpoint_of(listed, folder=tmp_path)).max_model_len == 99
