"""The OpenAI API over checkpoints, and Tink's older way to sample."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.tinker_client import MODEL, Client, House, RefusedError, until

import enginehouse
from enginehouse.tinker.routes.openai import sequences_of, tokens_of


async def saved(ada: Client, **metadata: str) -> str:
    """The path of a checkpoint that can be sampled."""
    model = await ada.create_model()
    body = {"model_id": model, "seq_id": 1, "path": "one", "user_metadata": metadata}
    return str((await ada.done("save_weights_for_sampler", body))["path"])


def asked(model: str, **changes: Any) -> dict[str, Any]:
    """A chat."""
    messages = [{"role": "user", "content": "ab"}]
    return {"model": model, "messages": messages, "max_tokens": 3, "seed": 1} | changes


async def test_a_checkpoint_is_a_model_by_its_path_and_its_alias(tmp_path: Path):
    """Both give the same; the base model gives something else."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        path = await saved(ada, alias="mine")
        texts = {}
        tokens = 0
        for name in (path, "mine", MODEL):
            reply = await ada.post("/v1/chat/completions", asked(name))
            assert reply["model"] == name
            texts[name] = reply["choices"][0]["message"]["content"]
            tokens += reply["usage"]["completion_tokens"]
        assert texts[path] == texts["mine"] != texts[MODEL]
        completed = await ada.post("/v1/completions", {"model": "mine", "prompt": "ab"})
        assert completed["object"] == "text_completion"
        tokens += completed["usage"]["completion_tokens"]
        assert running.service.status().sampled_tokens == tokens > 3
        listed = await ada.get("/v1/models")
        assert [entry["id"] for entry in listed["data"]] == [MODEL, path, "mine"]


async def test_enginehouse_evaluates_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By its path or its alias, at the service's address, with a user's key."""
    (tmp_path / "items.jsonl").write_text('{"word": "ab", "right": "c"}\n')
    task = tmp_path / "task.yaml"
    task.write_text(
        "name: next\ndata: items.jsonl\nprompt: '{{ word }}'\nanswer: right\n"
        "metric: contains\nmax_tokens: 4\n"
    )
    house = House(tmp_path / "service")
    async with house.open() as running:
        monkeypatch.setenv("ADAS_KEY", house.keys["ada"])
        ada = await running.client().begin()
        path = await saved(ada, alias="mine")
        for model in (path, "mine"):
            report = await enginehouse.evaluate(
                model, url=running.url, api_key_env="ADAS_KEY", tasks=[str(task)]
            )
            assert (report.tasks[0].samples, report.complete) == (1, True)


async def test_a_stream_is_passed_on_event_by_event(tmp_path: Path):
    """To its end."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        content = await ada.post("/v1/chat/completions", asked(MODEL, stream=True))
        events = [line[6:] for line in content.decode().splitlines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        assert json.loads(events[0])["choices"]


async def test_a_stream_that_nobody_reads_gives_its_place_back(tmp_path: Path):
    """Its client is gone before the first event."""
    house = House(tmp_path)
    async with house.open(max_samples=1) as running:
        ada = await running.client().begin()
        house.engine.running.clear()
        stream = asyncio.create_task(ada.post("/v1/chat/completions", asked(MODEL, stream=True)))
        await until(lambda: house.engine.requests == 1)
        stream.cancel()
        await asyncio.gather(stream, return_exceptions=True)
        house.engine.running.set()
        await ada.post("/v1/chat/completions", asked(MODEL))


async def test_too_many_waiting_requests_are_answered_with_429(tmp_path: Path):
    """As too many waiting samples are."""
    house = House(tmp_path)
    async with house.open(max_samples=1, max_queued_samples=1) as running:
        ada = await running.client().begin()
        house.engine.running.clear()
        held = []
        for waiting in (0, 1):
            held.append(asyncio.create_task(ada.post("/v1/chat/completions", asked(MODEL))))
            await until(
                lambda waiting=waiting: (
                    [(s.in_flight, s.waiting) for s in running.service.status().samples]
                    == [(1, waiting)]
                )
            )
        for route, body in (
            ("/v1/chat/completions", asked(MODEL)),
            ("sample", {"prompts": ["a"]}),
        ):
            with pytest.raises(RefusedError, match="waiting samples") as refused:
                await ada.post(route, body)
            assert refused.value.status == 429
        house.engine.running.set()
        await asyncio.gather(*held)


@pytest.mark.parametrize(
    ("body", "cost"),
    [
        ({}, 500),
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 20, "n": 3}, 60),
        ({"max_tokens": 10, "prompt": ["a", "b"]}, 20),
        ({"max_tokens": 10, "prompt": [1, 2, 3]}, 10),
        ({"max_tokens": -(10**9)}, 1),
        ({"max_tokens": 10**9}, 500),
        ({"max_tokens": "many", "n": -5}, 500),
    ],
)
def test_a_request_is_charged_for_all_that_it_asks_for(body: dict[str, Any], cost: int):
    """And never less than nothing, which would give its user the turns of all others."""
    assert sequences_of(body) * tokens_of(body, longest=500) == cost


async def test_a_request_asks_for_no_more_answers_than_a_user_may_have(tmp_path: Path):
    """Neither by n nor by its prompts."""
    async with House(tmp_path).open(max_samples=4) as running:
        ada = running.client()
        for body in (
            asked(MODEL, n=5),
            {"model": MODEL, "prompt": ["a", "b", "c"], "n": 2, "max_tokens": 1},
        ):
            route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
            with pytest.raises(RefusedError, match="at most 4 per request") as refused:
                await ada.post(route, body)
            assert refused.value.status == 400
        with pytest.raises(RefusedError, match="gives at most 4"):
            await ada.post("sample", {"prompts": ["a"], "sampling_params": {"n": 5}})


async def test_an_older_request_is_accepted_as_all_of_its_prompts(tmp_path: Path):
    """A user who has too many waiting is told to come back; more than 1,024 are refused."""
    house = House(tmp_path)
    async with house.open(max_samples=1, max_queued_samples=4) as running:
        ada = running.client()
        house.engine.running.clear()
        first = asyncio.create_task(ada.post("sample", {"prompts": ["a", "b", "c", "d"]}))
        await until(lambda: sum(load.waiting for load in running.service.status().samples) == 3)
        with pytest.raises(RefusedError, match="3 waiting samples") as refused:
            await ada.post("sample", {"prompts": ["a", "b"]})
        assert refused.value.status == 429
        with pytest.raises(RefusedError, match="1024"):
            await ada.post("sample", {"prompts": ["a"] * 1025})
        house.engine.running.set()
        assert len((await first)["completions"]) == 4


@pytest.mark.slow
async def test_others_models_are_unknown_until_they_are_published(tmp_path: Path):
    """In lists, by path, and by alias."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        path = await saved(ada, alias="mine")
        eve = running.client("eve")
        assert len((await eve.get("/v1/models"))["data"]) == 1
        for name in (path, "mine", "gpt-4"):
            with pytest.raises(RefusedError) as refused:
                await eve.post("/v1/chat/completions", asked(name))
            assert refused.value.status == 404
            assert refused.value.content["error"]["type"] == "invalid_request_error"
        await running.stores.records.set_public(path, user="ada", public=True)
        await eve.post("/v1/chat/completions", asked(path))


async def test_weights_that_continue_training_cannot_be_sampled(tmp_path: Path):
    """And the user is told which save can."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        model = await ada.create_model()
        body = {"model_id": model, "seq_id": 1, "path": "one"}
        path = (await ada.done("save_weights", body))["path"]
        with pytest.raises(RefusedError, match="save_weights_for_sampler"):
            await ada.post("/v1/chat/completions", asked(path))


@pytest.mark.parametrize("route", ["sample", "asample"])
async def test_tinks_older_request(tmp_path: Path, route: str):
    """Texts in, texts out; the model is an alias, a model that is trained, or the base model."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        path = await saved(ada, alias="my_adapter")
        for name in ("my_adapter", f"{ada.session}:train:0", path, None):
            parameters = {"max_tokens": 5, "temperature": 0.8, "top_p": 0.95, "seed": 1}
            body = {"model_id": name, "prompts": ["ab", "c"], "sampling_params": parameters}
            answer = await ada.post(route, body)
            assert answer["model_id"] == (name or MODEL)
            assert len(answer["completions"]) == 2
            assert answer["finish_reasons"] == ["length", "length"]
        with pytest.raises(RefusedError, match="'max_tokens'"):
            await ada.post(route, {"prompts": ["a"], "sampling_params": {"max_tokes": 5}})
        with pytest.raises(RefusedError, match="unknown_adapter") as refused:
            await ada.post(route, {"model_id": "unknown_adapter", "prompts": ["a"]})
        assert refused.value.status == 404


@pytest.mark.parametrize("route", ["sample", "asample"])
async def test_an_older_request_that_is_sent_again(tmp_path: Path, route: str):
    """It is sampled once, also while the first is in progress."""
    async with House(tmp_path).open() as running:
        ada, bob = await running.client().begin(), await running.client("bob").begin()
        body = {"prompts": ["ab"], "sampling_params": {"max_tokens": 5, "temperature": 0}}
        key = {"X-Idempotency-Key": "one"}
        first, second = await asyncio.gather(*(ada.post(route, body, **key) for _ in range(2)))
        assert first == second == await ada.post(route, body, **key)
        assert running.service.status().sampled_tokens == 5
        await bob.post(route, body, **key)
        await ada.post(route, body)
        assert running.service.status().sampled_tokens == 15


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_no_field_is_ignored(tmp_path: Path, path: str):
    """What vLLM would pass over is refused by name; null is as good as left out."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        what = {"messages": [{"role": "user", "content": "ab"}]} if "chat" in path else {}
        body = {"model": MODEL, "max_tokens": 2, **(what or {"prompt": "ab"})}
        for field, said in (
            ("max_tokes", "did you mean 'max_tokens'"),
            ("guided_json", "guided_json"),
            ("priority", "priority"),
            ("prompt_embeds", "prompt_embeds"),
        ):
            with pytest.raises(RefusedError, match=said) as refused:
                await ada.post(path, body | {field: 1})
            assert refused.value.status == 400
        assert await ada.post(path, body | {"min_p": 0.1, "priority": None})
