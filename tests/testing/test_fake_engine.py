"""The fake engine: vLLM's surface beyond what the conformance suite checks through a Sampler."""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestClient, TestServer

from enginehouse.testing.fake_engine import FakeEngineHandle, running_fake_engine
from enginehouse.testing.fake_engine.application import make_application
from enginehouse.testing.fake_engine.arguments import make_arg_parser
from enginehouse.testing.fake_engine.model import Model
from enginehouse.testing.fake_engine.state import Engine

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


async def ask(
    engine: FakeEngineHandle,
    path: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    """The status, and the body as JSON if it is, else as text."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            "GET" if body is None else "POST", engine.url + path, json=body, headers=headers
        ) as response,
    ):
        text = await response.text()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, text


def chat(content: str = "Hi", **fields: Any) -> dict[str, Any]:
    """A chat request's body."""
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, **fields}


async def answer(engine: FakeEngineHandle, content: str = "Hi", **fields: Any) -> str:
    """The text of a chat answer."""
    status, body = await ask(engine, CHAT, chat(content, **fields))
    assert status == 200, body
    return str(body["choices"][0]["message"]["content"])


@pytest.mark.asyncio(loop_scope="module")
class TestSurface:
    """Endpoints and errors, against one engine."""

    async def test_health_version_and_models(self, engine: FakeEngineHandle):
        """As a launcher reads them."""
        assert await ask(engine, "/health") == (200, "")
        assert await ask(engine, "/version") == (200, {"version": "0.32.0"})
        _, models = await ask(engine, "/v1/models")
        cards = [(card["id"], card["root"], card["max_model_len"]) for card in models["data"]]
        assert cards == [("tiny", "fake-model", 64), ("alias", "fake-model", 64)]

    @pytest.mark.parametrize(
        ("path", "body", "status", "message"),
        [
            (CHAT, chat(model="x"), 404, "The model `x` does not exist."),
            (CHAT, chat(max_tokens=65), 400, "max_tokens=65 cannot be greater than max_model_len"),
            (CHAT, chat("word " * 40), 400, "maximum context length is 64 tokens. However, your"),
            (CHAT, chat("word " * 4000), 400, "your prompt contains at least 65 input tokens"),
            (CHAT, chat(max_tokens=0), 400, "max_tokens must be at least 1, got 0."),
            (CHAT, chat(n=0), 400, "n must be at least 1, got 0."),
            (CHAT, chat(n=2), 400, "n must be 1 when using greedy sampling, got 2."),
            (CHAT, chat(temperature=-1), 400, "temperature must be non-negative, got -1.0."),
            (CHAT, chat(top_p=0), 400, "top_p must be in (0, 1], got 0.0."),
            (CHAT, chat(temperature="hot"), 400, "1 validation error"),
            (CHAT, chat(seed=2**70), 400, "1 validation error"),
            (CHAT, {"messages": []}, 400, "empty conversation"),
            (CHAT, {}, 400, "messages"),
            (TEXT, {"prompt": "a", "logprobs": 50}, 400, "greater than max allowed: 20"),
            (TEXT, {"prompt": [10**9]}, 400, "Token id 1000000000 is out of vocabulary"),
            (TEXT, {"prompt": []}, 400, "at least one prompt"),
            (TEXT, {"prompt": ""}, 400, "non-empty"),
            ("/tokenize", {"model": "x", "prompt": "a"}, 404, "The model `x` does not exist."),
            ("/collective_rpc", {}, 400, "Missing 'method' in request body"),
            ("/v1/unload_lora_adapter", {"lora_name": "x"}, 404, "'x' cannot be found"),
        ],
    )
    async def test_refusals(
        self, engine: FakeEngineHandle, path: str, body: Any, status: int, message: str
    ):
        """Statuses, shapes and words are vLLM 0.32's."""
        got, reply = await ask(engine, path, body)
        assert got == status
        assert message in reply["error"]["message"]
        assert reply["error"]["code"] == status

    async def test_unknown_paths_and_methods(self, engine: FakeEngineHandle):
        """As FastAPI answers."""
        assert await ask(engine, "/nope") == (404, {"detail": "Not Found"})
        assert await ask(engine, CHAT) == (405, {"detail": "Method Not Allowed"})

    async def test_removed_fields_are_ignored_without_a_word(self, engine: FakeEngineHandle):
        """The trap that the client must refuse: 200, and no constraint."""
        assert await answer(engine, guided_json={"type": "object"}) == await answer(engine)

    async def test_max_tokens_is_cut_to_the_room_left(self, engine: FakeEngineHandle):
        """As vLLM does, silently."""
        body = {"prompt": "word " * 20, "max_tokens": 60, "ignore_eos": True}
        _, reply = await ask(engine, TEXT, body)
        assert reply["usage"]["total_tokens"] == 64

    async def test_tokens_there_and_back(self, engine: FakeEngineHandle):
        """Of texts and of conversations."""
        _, tokens = await ask(engine, "/tokenize", {"prompt": "Hello, wörld"})
        assert tokens["count"] == len(tokens["tokens"])
        _, text = await ask(engine, "/detokenize", {"tokens": tokens["tokens"]})
        assert text == {"prompt": "Hello, wörld"}
        _, turns = await ask(engine, "/tokenize", {"messages": chat()["messages"]})
        _, reply = await ask(engine, CHAT, chat(return_token_ids=True))
        assert reply["prompt_token_ids"] == turns["tokens"]

    async def test_metrics_count(self, engine: FakeEngineHandle):
        """Gauges and counters with vLLM's names and labels."""

        async def generated() -> float:
            _, page = await ask(engine, "/metrics")
            labels = '{engine="0",model_name="tiny"} '
            assert f"vllm:num_requests_running{labels}0.0" in page
            assert f"vllm:num_requests_waiting{labels}0.0" in page
            line = page.split(f"vllm:generation_tokens_total{labels}")[1].splitlines()[0]
            return float(line)

        before = await generated()
        _, reply = await ask(engine, CHAT, chat())
        assert await generated() - before == reply["usage"]["completion_tokens"]

    async def test_an_adapter_changes_the_answers_and_unloading_ends_it(
        self, engine: FakeEngineHandle, tmp_path: Path
    ):
        """By its content, under its own name, beside the base model."""
        (tmp_path / "adapter_config.json").write_text("{}")
        load = {"lora_name": "ada", "lora_path": str(tmp_path)}
        assert (await ask(engine, "/v1/load_lora_adapter", load))[0] == 200
        assert (await ask(engine, "/v1/load_lora_adapter", load))[0] == 400
        first = await answer(engine, model="ada")
        assert first != await answer(engine)
        (tmp_path / "adapter_model.safetensors").write_bytes(b"other")
        await ask(engine, "/v1/load_lora_adapter", load | {"load_inplace": True})
        assert await answer(engine, model="ada") != first
        assert (await ask(engine, "/v1/unload_lora_adapter", {"lora_name": "ada"}))[0] == 200
        assert (await ask(engine, CHAT, chat(model="ada")))[0] == 404

    async def test_an_adapter_that_is_not_there(self, engine: FakeEngineHandle):
        """404 that names the path."""
        load = {"lora_name": "b", "lora_path": "/nowhere"}
        status, reply = await ask(engine, "/v1/load_lora_adapter", load)
        assert status == 404
        assert "No adapter found for /nowhere" in reply["error"]["message"]

    async def test_reloading_weights_changes_the_answers_and_back(
        self, engine: FakeEngineHandle, tmp_path: Path
    ):
        """The same weights give the same answers again."""
        (tmp_path / "model.safetensors").write_bytes(b"weights")
        before = await answer(engine)

        async def reload(path: str | None) -> int:
            kwargs = {} if path is None else {"weights_path": path}
            call = {"method": "reload_weights", "kwargs": kwargs}
            return (await ask(engine, "/collective_rpc", call))[0]

        assert await reload(str(tmp_path)) == 200
        assert await answer(engine) != before
        assert await reload("/nowhere") == 500
        assert await reload(None) == 200
        assert await answer(engine) == before
        assert await ask(engine, "/reset_prefix_cache", {}) == (200, {"success": True})

    async def test_sleeping(self, engine: FakeEngineHandle):
        """Requests wait until all is awake; weights that were forgotten must be loaded again."""
        before = await answer(engine)
        _, slept = await ask(engine, "/sleep?level=2", {})
        assert slept == {"status": "sleeping", "level": 2}
        assert await ask(engine, "/is_sleeping") == (200, {"is_sleeping": True})
        waiting = asyncio.create_task(answer(engine))
        assert (await ask(engine, "/wake_up?tags=weights", {}))[1]["status"] == "sleeping"
        await ask(engine, "/collective_rpc", {"method": "reload_weights"})
        assert not waiting.done()
        assert (await ask(engine, "/wake_up?tags=kv_cache", {}))[1]["status"] == "awake"
        assert await ask(engine, "/is_sleeping") == (200, {"is_sleeping": False})
        assert await waiting == before
        await ask(engine, "/sleep?level=2", {})
        assert (await ask(engine, "/wake_up", {}))[1] == {"status": "awake", "tags": None}
        assert await answer(engine) != before
        await ask(engine, "/collective_rpc", {"method": "reload_weights"})

    async def test_pausing(self, engine: FakeEngineHandle):
        """Requests wait for the resumption; a mode that is none is refused."""
        assert (await ask(engine, "/pause?mode=perhaps", {}))[0] == 400
        for mode in ("wait", "abort"):
            assert (await ask(engine, f"/pause?mode={mode}", {}))[1] == {"status": "paused"}
            assert (await ask(engine, "/is_paused"))[1] == {"is_paused": True}
            waiting = asyncio.create_task(answer(engine))
            await ask(engine, "/health")
            assert not waiting.done()
            assert (await ask(engine, "/resume", {}))[1] == {"status": "resumed"}
            assert await waiting

    async def test_the_weights_have_a_name(self, engine: FakeEngineHandle):
        """It is "default" until it is given another."""
        assert (await ask(engine, "/weight_info"))[1] == {"weight_version": "default"}
        named = (await ask(engine, "/update_weight_version", {"new_version": "7"}))[1]
        assert named == {"success": True, "new_version": "7"}
        assert (await ask(engine, "/weight_info"))[1] == {"weight_version": "7"}

    async def test_weights_are_not_sent_to_it(self, engine: FakeEngineHandle):
        """It was not started for that, and says so as vLLM does."""
        for path in ("start_weight_update", "finish_weight_update"):
            status, reply = await ask(engine, f"/{path}", {})
            assert status == 500
            assert "Please set weight_transfer_config" in reply["error"]["message"]


async def test_the_order_of_a_weight_transfer(tmp_path: Path):
    """Start, update, finish; an update that fails is the end, and what it leaves spoils a reload.

    Read in vLLM 0.32 (v1/worker/gpu_worker.py, model_loader/reload/layerwise.py).
    """
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    reload = {"method": "reload_weights", "kwargs": {"weights_path": str(tmp_path)}}
    async with running_fake_engine("--weight-transfer-config", "{}", "-tp", "2") as engine:

        async def refused(path: str, body: Any = {}) -> str:  # noqa: B006
            status, reply = await ask(engine, path, body)
            assert status == 500
            return str(reply["error"]["message"])

        async def taken(path: str, body: Any = {}) -> None:  # noqa: B006
            assert (await ask(engine, path, body))[0] == 200

        assert await ask(engine, "/get_world_size") == (200, {"world_size": 2})
        await taken("/collective_rpc", reload)
        whole = await answer(engine)
        await taken("/init_weight_transfer_engine", {"init_info": {}})
        part = {"update_info": {"names": ["a"]}}
        assert "must be called before update_weights" in await refused("/update_weights", part)
        assert "without a matching start" in await refused("/finish_weight_update")
        await taken("/start_weight_update")
        assert "is already active" in await refused("/start_weight_update")
        await taken("/update_weights", part)
        assert await answer(engine) == whole
        await taken("/finish_weight_update")
        sent = await answer(engine)
        assert sent != whole

        await taken("/start_weight_update")
        await taken("/update_weights", part)
        assert "Invalid update_info" in await refused("/update_weights", {"update_info": {}})
        assert "without a matching start" in await refused("/finish_weight_update")
        await taken("/collective_rpc", reload)
        assert await answer(engine) not in {whole, sent}
        for path in ("/start_weight_update", "/finish_weight_update"):
            await taken(path)
        await taken("/collective_rpc", reload)
        assert await answer(engine) == whole


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
async def test_a_pause_drains_or_aborts(stream):
    """What runs ends first, or at once with the finish reason "abort"."""
    async with running_fake_engine(token_latency=0.02) as engine:

        async def long() -> str:
            fields = chat(stream=stream, max_tokens=40, ignore_eos=True)
            url = engine.url + CHAT
            async with aiohttp.ClientSession() as session, session.post(url, json=fields) as reply:
                text = await reply.text()
            return "abort" if '"finish_reason":"abort"' in text else "length"

        async def is_idle() -> bool:
            async with aiohttp.ClientSession() as session:
                text = await (await session.get(engine.url + "/metrics")).text()
            return re.search(r"vllm:num_requests_running{.*} 0", text) is not None

        for mode, reason in (("wait", "length"), ("abort", "abort")):
            asked = asyncio.create_task(long())
            async with asyncio.timeout(10):
                while await is_idle():  # noqa: ASYNC110 - the server brings it about
                    await asyncio.sleep(0.01)
            await ask(engine, f"/pause?mode={mode}", {})
            assert await asked == reason
            await ask(engine, "/resume", {})


@pytest.mark.slow
async def test_answers_are_the_same_in_another_process():
    """Nothing depends on the process, the port or the time."""
    async with running_fake_engine() as first, running_fake_engine() as second:
        for fields in ({}, {"temperature": 1, "seed": 3}, {"temperature": 1}):
            assert await answer(first, **fields) == await answer(second, **fields)
    async with running_fake_engine(model="other") as other, running_fake_engine() as again:
        assert await answer(other) != await answer(again)


async def test_canned_answers():
    """The first pattern that is found in the last user message answers, constraints permitting."""
    canned = {r"capital of (France|Gaul)": "Answer: Paris", r"": "I do not know."}
    async with running_fake_engine(answers=canned) as engine:
        assert await answer(engine, "The capital of Gaul?") == "Answer: Paris"
        assert await answer(engine, "Why?") == "I do not know."
        assert await answer(engine, "Why?", max_tokens=2) == "I do"
        choice = {"choice": ["yes", "no"]}
        assert await answer(engine, "Why?", structured_outputs=choice) in ("yes", "no")
        words = {"regex": "[A-Z] do .*"}
        assert await answer(engine, "Why?", structured_outputs=words) == "I do not know."
        for beyond in ({"regex": "(a|b)+"}, {"grammar": "root ::= root root"}):
            body = {"prompt": "Why?", "structured_outputs": beyond}
            assert (await ask(engine, TEXT, body))[0] == 501
        _, reply = await ask(engine, TEXT, {"prompt": "the capital of France is", "max_tokens": 20})
        assert reply["choices"][0]["text"] == "Answer: Paris"


async def test_endpoints_that_vllm_switches_on_are_off_without_their_variables():
    """No adapters and no development endpoints by default."""
    off = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "0", "VLLM_SERVER_DEV_MODE": "0"}
    async with running_fake_engine(env=off) as engine:
        for path in ("/v1/load_lora_adapter", "/collective_rpc", "/sleep", "/reset_prefix_cache"):
            assert (await ask(engine, path, {}))[0] == 404


async def test_the_api_key_guards_v1_only():
    """As vLLM's does: health, metrics and tokenize stay open."""
    async with running_fake_engine("--api-key", "k1", "k2") as engine:
        assert await ask(engine, "/v1/models") == (401, {"error": "Unauthorized"})
        assert (await ask(engine, "/v1/models", headers={"Authorization": "Bearer k2"}))[0] == 200
        assert (await ask(engine, "/v1/models", headers={"Authorization": "k2"}))[0] == 401
        assert (await ask(engine, "/health"))[0] == 200


async def test_lora_must_be_enabled(tmp_path: Path):
    """Otherwise 500, in vLLM's words."""
    (tmp_path / "adapter_config.json").write_text("{}")
    async with running_fake_engine() as engine:
        load = {"lora_name": "a", "lora_path": str(tmp_path)}
        status, reply = await ask(engine, "/v1/load_lora_adapter", load)
    assert status == 500
    assert "Use --enable-lora" in reply["error"]["message"]


async def test_json_schemas_of_every_kind():
    """Instances hold what the schema demands."""
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 7},
            "kind": {"const": "move"},
            "count": {"type": "integer", "minimum": 3},
            "share": {"type": ["number", "null"]},
            "sure": {"type": "boolean"},
            "where": {"type": "array", "items": {"$ref": "#/$defs/place"}, "minItems": 2},
            "maybe": {"anyOf": [{"type": "null"}]},
        },
        "$defs": {"place": {"enum": ["here"]}},
    }
    async with running_fake_engine() as engine:
        written = await answer(
            engine,
            max_tokens=400,
            response_format={"type": "json_schema", "json_schema": {"schema": schema}},
        )
    assert json.loads(written) == {
        "name": "steammm",
        "kind": "move",
        "count": 3,
        "share": 0.0,
        "sure": True,
        "where": ["here", "here"],
        "maybe": None,
    }


async def test_a_full_disk_under_its_log_changes_no_answer(monkeypatch: pytest.MonkeyPatch):
    """As with vLLM, whose access log is lost there."""
    arguments = make_arg_parser(argparse.ArgumentParser()).parse_args(["--model", "m"])
    engine = Engine(arguments=arguments, version="0", model=Model(), token_latency=0.0)
    application = make_application(engine, environment={}, middlewares=[])

    def full(_: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", SimpleNamespace(write=full, flush=lambda: None))
        async with TestClient(TestServer(application)) as client:
            for _ in range(3):
                assert (await client.get("/health")).status == 200
            assert (await client.post(TEXT, json={"prompt": "Hi"})).status == 200


async def test_a_fake_that_does_not_start_says_why():
    """Its output is in the error: argparse's, here."""
    with pytest.raises(RuntimeError, match="unrecognized arguments: --swap-space"):
        async with running_fake_engine("--swap-space", "4"):
            pass


async def test_an_echoed_prompt_has_its_log_probabilities() -> None:
    """As vLLM 0.32 writes them: none for the first token, and those of the answer at the end."""
    wanted = {"temperature": 0, "max_tokens": 1, "logprobs": 1}
    async with running_fake_engine() as engine:
        plain = (await ask(engine, TEXT, {"prompt": "Once upon", "prompt_logprobs": 0, **wanted}))[
            1
        ]
        _, body = await ask(engine, TEXT, {"prompt": ["Once upon"], "echo": True, **wanted})
        status, _ = await ask(engine, TEXT, {"prompt": ["a", "b"], "echo": True, **wanted})
    (before,), (echoed,) = plain["choices"], body["choices"]
    assert echoed["text"] == "Once upon" + before["text"]
    values = echoed["logprobs"]["token_logprobs"]
    expected = [next(iter(one.values()))["logprob"] for one in before["prompt_logprobs"][1:]]
    assert values == [None, *expected, *before["logprobs"]["token_logprobs"]]
    assert echoed["logprobs"]["top_logprobs"][0] is None
    assert len(echoed["logprobs"]["tokens"]) == len(values) == body["usage"]["total_tokens"]
    assert status == 400
