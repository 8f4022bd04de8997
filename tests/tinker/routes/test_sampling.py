"""Sampling through HTTP: whose weights, whose turn, once each, and cancelled for nobody."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from tests.support.tinker_client import (
    MODEL,
    Client,
    FailedError,
    House,
    RefusedError,
    Running,
    sample_request,
    tokens_of,
    until,
)

from enginehouse.core.errors import TinkerError
from enginehouse.testing.fake_sampling import FakeSampling
from enginehouse.tinker.sampling.base import TokenPrompt, Weights

PROMPT = [65, 66, 67]
TOKENS = list(range(20, 40))


async def expected(running: Running, path: str | None) -> list[int]:
    """What the engine samples from a checkpoint, or from the base model."""
    key = "base"
    if path is not None:
        key = (await running.stores.records.checkpoint(path, user=None)).folder
    prompt = TokenPrompt(tokens=np.array(PROMPT, np.int32), max_tokens=4, seed=7)
    sampled = await FakeSampling().sample(Weights(key=key, folder=Path("/x")), prompt)
    return sampled.sequences[0].tokens.tolist()


async def save(ada: Client, model: str, seq_id: int, **how: object) -> dict[str, str]:
    """Save a model for sampling."""
    return await ada.done("save_weights_for_sampler", {"model_id": model, "seq_id": seq_id, **how})


async def test_the_base_model_is_sampled_with_an_id_for_each_sequence(tmp_path: Path):
    """The ids are the same when the request is sent again."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        sampler = await ada.sampler()
        asked = await ada.ask_sample(sampler, PROMPT, num_samples=3, seq_id=5)
        assert len(set(asked["sample_sequence_ids"])) == 3
        sequences = tokens_of(await ada.result(asked["request_id"]))
        assert [len(tokens) for tokens in sequences] == [4, 4, 4]
        again = await ada.ask_sample(sampler, PROMPT, num_samples=3, seq_id=5)
        assert again == asked
        assert await ada.get(f"/api/v1/samplers/{sampler}") == {
            "sampler_id": sampler,
            "base_model": MODEL,
            "model_path": None,
        }
        with pytest.raises(RefusedError, match="limit"):
            await ada.get(f"/api/v1/samplers/{sampler}?limit=1")


@pytest.mark.slow
async def test_a_snapshot_keeps_its_weights_and_inflight_ones_follow(tmp_path: Path):
    """Also a snapshot that was made before a newer save, and across a restart."""
    house = House(tmp_path)
    async with house.open() as running:
        ada = await running.client().begin()
        model = await ada.create_model()
        first = await save(ada, model, 1, path="one")
        old = await ada.sampler(path=first["path"])
        mutable = await save(ada, model, 2, sampling_session_seq_id=7, kind="inflight")
        await ada.compute(model, 3, TOKENS)
        await ada.step(model, 4)
        snapshot = await save(ada, model, 5, sampling_session_seq_id=8)
        newest = f"tinker://{model}/sampler_weights/unnamed-000005"
        assert await ada.sample(old, PROMPT) == [await expected(running, first["path"])]
        assert await ada.sample(mutable["sampling_session_id"], PROMPT) == [
            await expected(running, newest)
        ]
        assert await ada.sample(snapshot["sampling_session_id"], PROMPT) == [
            await expected(running, newest)
        ]
    async with house.open() as running:
        ada = running.client()
        ada._samples = 100
        assert await ada.sample(old, PROMPT) == [await expected(running, first["path"])]
        assert await ada.sample(mutable["sampling_session_id"], PROMPT) == [
            await expected(running, newest)
        ]


async def test_unpublishing_ends_the_sampling_of_others(tmp_path: Path):
    """At once, and not that of the owner."""
    async with House(tmp_path).open() as running:
        ada, bob = await running.client("ada").begin(), await running.client("bob").begin()
        path = (await save(ada, await ada.create_model(), 1, path="one"))["path"]
        records = running.stores.records
        await records.set_public(path, user="ada", public=True)
        hers, his = await ada.sampler(path=path), await bob.sampler(path=path)
        wanted = [await expected(running, path)]
        assert await ada.sample(hers, PROMPT) == await bob.sample(his, PROMPT) == wanted
        await records.set_public(path, user="ada", public=False)
        with pytest.raises(FailedError, match="is not yours"):
            await bob.sample(his, PROMPT)
        assert await ada.sample(hers, PROMPT) == wanted


async def test_an_adapter_is_loaded_when_it_is_saved(tmp_path: Path):
    """Not only with its first sample."""
    house = House(tmp_path)
    async with house.open() as running:
        ada = await running.client().begin()
        model = await ada.create_model()
        path = (await save(ada, model, 1, path="one"))["path"]
        saved = await running.stores.records.checkpoint(path, user="ada")
        await until(lambda: house.engine.loads == [saved.folder])


async def test_the_engine_forgets_a_checkpoint_that_was_deleted(tmp_path: Path):
    """So that it cannot answer for it after a restart."""
    house = House(tmp_path)
    async with house.open(tidy_interval=0.02) as running:
        ada = await running.client().begin()
        model = await ada.create_model()
        path = (await save(ada, model, 1, path="one"))["path"]
        await until(lambda: running.service.status().sampling["adapters"])
        await running.stores.checkpoints.remove(path, user="ada")
        await until(lambda: not running.service.status().sampling["adapters"])


async def test_a_deleted_checkpoint_is_not_replaced_by_the_base_model(tmp_path: Path):
    """Its samplers fail, and say what is gone."""
    house = House(tmp_path)
    async with house.open() as running:
        ada = await running.client().begin()
        model = await ada.create_model()
        path = (await save(ada, model, 1, path="one"))["path"]
        sampler = await ada.sampler(path=path)
        await ada.sample(sampler, PROMPT)
        await running.stores.checkpoints.remove(path, user="ada")
        with pytest.raises(FailedError, match="no checkpoint"):
            await ada.sample(sampler, PROMPT)
        with pytest.raises(RefusedError, match="no checkpoint"):
            await ada.sampler(path=path, number=1)
        await ada.compute(model, 2, TOKENS)
        await ada.step(model, 3)
        assert (await save(ada, model, 4, path="one"))["path"] == path
        with pytest.raises(FailedError, match="other weights"):
            await ada.sample(sampler, PROMPT)
        other = await ada.sampler(path=path, number=2)
        assert await ada.sample(other, PROMPT) == [await expected(running, path)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling_params": {"temprature": 1}}, "temprature"),
        ({"prompt_logprobs": True, "unheard_of": 1}, "unheard_of"),
        ({"num_samples": 0}, "num_samples"),
        ({"seq_id": -1}, "seq_id"),
        ({"sampling_session_id": "ses-x:sample:0"}, "ses-x:sample:0"),
    ],
)
async def test_a_sample_that_makes_no_sense_is_refused_by_name(tmp_path: Path, changes, said):
    """At once: nothing waits for it."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        sampler = await ada.sampler()
        with pytest.raises(RefusedError, match=said):
            await ada.ask_sample(sampler, PROMPT, **changes)


async def test_what_the_engine_refuses_is_told_to_its_user(tmp_path: Path):
    """Whose mistake it was, too."""
    house = House(tmp_path)
    async with house.open() as running:
        ada = await running.client().begin()
        sampler = await ada.sampler()
        house.engine.failures += [TinkerError("too long"), ZeroDivisionError()]
        for said, category in (("too long", "user"), ("unexpected", "server")):
            with pytest.raises(FailedError, match=said) as failed:
                await ada.sample(sampler, PROMPT)
            assert failed.value.category == category


async def test_a_greedy_user_leaves_places_for_the_others(tmp_path: Path):
    """Twenty samples of Eve's wait, and Ada's one is next; Eve is told why hers wait."""
    house = House(tmp_path)
    async with house.open(max_samples=2, samples_in_flight=3) as running:
        eve, ada = [await running.client(user).begin() for user in ("eve", "ada")]
        theirs, hers = await eve.sampler(), await ada.sampler()
        house.engine.running.clear()
        asked = [await eve.ask_sample(theirs, PROMPT) for _ in range(20)]
        one = await ada.ask_sample(hers, PROMPT)
        await until(lambda: house.engine.requests == 3)
        load = {entry.user: entry for entry in running.service.status().samples}
        assert (load["eve"].in_flight, load["eve"].waiting) == (2, 18)
        assert (load["ada"].in_flight, load["ada"].waiting) == (1, 0)
        last = running.stores.futures._futures[asked[-1]["request_id"]]
        assert last.reason is not None
        assert "2 are the most of one user" in last.reason
        house.engine.running.set()
        for answer in asked:
            await eve.result(answer["request_id"])
        await ada.result(one["request_id"])


async def test_samples_of_many_sequences_take_as_many_places(tmp_path: Path):
    """One of Eve's has all that she may have: three others' samples are beside it, not behind."""
    house = House(tmp_path)
    async with house.open() as running:
        eve = await running.client("eve").begin()
        theirs = await eve.sampler()
        house.engine.running.clear()
        asked = [await eve.ask_sample(theirs, PROMPT, num_samples=1024) for _ in range(10)]
        asked += [await eve.ask_sample(theirs, PROMPT, prompt_alt_tokens_k=64) for _ in range(10)]
        small = [await running.client(user).begin() for user in ("ada", "ada", "bob")]
        ones = [await client.ask_sample(await client.sampler(), PROMPT) for client in small]
        await until(lambda: house.engine.requests == 4)
        load = {entry.user: entry for entry in running.service.status().samples}
        assert (load["eve"].in_flight, load["eve"].waiting) == (128, 19)
        assert {load[user].waiting for user in ("ada", "bob")} == {0}
        house.engine.running.set()
        for client, one in zip(small, ones, strict=True):
            await client.result(one["request_id"])


async def test_too_many_waiting_samples_are_answered_with_429(tmp_path: Path):
    """The SDK then sends them again; one that was accepted is not refused."""
    house = House(tmp_path)
    async with house.open(max_samples=1, max_queued_samples=2) as running:
        ada = await running.client().begin()
        sampler = await ada.sampler()
        house.engine.running.clear()
        asked = [await ada.ask_sample(sampler, PROMPT) for _ in range(3)]
        with pytest.raises(RefusedError, match="waiting") as refused:
            await ada.ask_sample(sampler, PROMPT, seq_id=3)
        assert refused.value.status == 429
        assert await ada.ask_sample(sampler, PROMPT, seq_id=2) == asked[2]
        house.engine.running.set()
        for answer in asked:
            await ada.result(answer["request_id"])
        await ada.sample(sampler, PROMPT, seq_id=3)


async def test_a_cancelled_sample_makes_room(tmp_path: Path):
    """What runs in the engine is given up, too."""
    house = House(tmp_path)
    async with house.open(max_samples=1) as running:
        ada = await running.client().begin()
        sampler = await ada.sampler()
        house.engine.running.clear()
        first, second = [await ada.ask_sample(sampler, PROMPT) for _ in range(2)]
        await until(lambda: house.engine.requests == 1)
        await ada.post("cancel_future", {"request_id": first["request_id"]})
        await until(lambda: house.engine.requests == 2)
        house.engine.running.set()
        await ada.result(second["request_id"])
        with pytest.raises(FailedError, match="cancelled"):
            await ada.result(first["request_id"])


async def test_samples_of_a_silent_session_are_cancelled(tmp_path: Path):
    """Those of a session that is heard of go on."""
    house = House(tmp_path)
    async with house.open(tidy_interval=0.02) as running:
        silent, heard = [await running.client(user).begin() for user in ("ada", "bob")]
        samplers = [await silent.sampler(), await heard.sampler()]
        house.engine.running.clear()
        lost = await silent.ask_sample(samplers[0], PROMPT)
        kept = await heard.ask_sample(samplers[1], PROMPT)
        sessions = running.service._rooms.sessions.heartbeats._sessions
        sessions[silent.session].last_heard -= 301  # the default is five minutes
        with pytest.raises(FailedError, match="cancelled"):
            await silent.result(lost["request_id"])
        house.engine.running.set()
        await heard.result(kept["request_id"])


@pytest.mark.slow
async def test_what_was_accepted_is_answered_after_a_restart(tmp_path: Path):
    """By the next service with the same home."""
    house = House(tmp_path)
    async with house.open() as running:
        ada = await running.client().begin()
        sampler = await ada.sampler()
        house.engine.running.clear()
        asked = await ada.ask_sample(sampler, PROMPT)
    house.engine.running.set()
    async with house.open() as running:
        payload = await running.client().result(asked["request_id"])
        assert tokens_of(payload) == [await expected(running, None)]


@pytest.mark.slow
async def test_clients_that_join_a_sampling_session_get_numbers_of_their_own(tmp_path: Path):
    """Never 0, which is the first client's; also after a restart."""
    house = House(tmp_path)
    numbers = []
    for _ in range(2):
        async with house.open() as running:
            ada = running.client()
            if not numbers:
                await ada.begin()
                sampler = await ada.sampler()
            for _ in range(2):
                body = {"sampling_session_id": sampler}
                key = {"X-Idempotency-Key": str(len(numbers))}
                joined = await ada.post("join_sampling_session", body, **key)
                assert await ada.post("join_sampling_session", body, **key) == joined
                numbers.append(joined["client_counter"])
    assert len(set(numbers)) == 4
    assert all(0 < number < 1_000_000_000 for number in numbers)


async def test_another_users_sampler_and_checkpoint_do_not_exist(tmp_path: Path):
    """Until the checkpoint is published."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        eve = await running.client("eve").begin()
        model = await ada.create_model()
        path = (await save(ada, model, 1, path="one"))["path"]
        sampler = await ada.sampler(path=path)
        for refused in (
            eve.ask_sample(sampler, PROMPT),
            eve.sampler(path=path),
            eve.get(f"/api/v1/samplers/{sampler}"),
            eve.post("join_sampling_session", {"sampling_session_id": sampler}),
        ):
            with pytest.raises(RefusedError) as error:
                await refused
            assert error.value.status == 404
        await running.stores.records.set_public(path, user="ada", public=True)
        assert await eve.sample(await eve.sampler(path=path), PROMPT) == [
            await expected(running, path)
        ]


async def test_the_word_prompts_may_be_a_stop_string(tmp_path: Path):
    """Only a field of that name makes a request one of Tink's older ones."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        parameters = {"max_tokens": 4, "seed": 7, "stop": ["prompts"]}
        sampled = await ada.sample(await ada.sampler(), PROMPT, sampling_params=parameters)
        assert len(sampled[0]) == 4


async def test_a_save_that_is_sent_again_is_done_once(tmp_path: Path):
    """The SDK numbers its sampling session on when it does, and takes the one that is answered."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        model = await ada.create_model()
        first = await save(ada, model, 1, sampling_session_seq_id=7)
        assert await save(ada, model, 1, sampling_session_seq_id=8) == first
        with pytest.raises(RefusedError, match="another request"):
            await save(ada, model, 1, sampling_session_seq_id=8, kind="inflight")


@pytest.mark.slow
async def test_heartbeats_are_answered_beside_many_samples_and_large_bodies(tmp_path: Path):
    """512 samples and 200 bodies of 3 MB, and four sessions that would lapse without heartbeats."""
    house = House(tmp_path)
    async with house.open() as running:
        users = [await running.client(user).begin() for user in ("ada", "bob", "eve", "ada")]
        sampler = await users[0].sampler()
        theirs = await users[1].sampler()
        body = json.dumps(sample_request(theirs, [70] * 1_000_000, seq_id=314159)).encode()
        assert len(body) > 3_000_000  # and more than the engine takes
        delays: dict[str, list[float]] = {client.session: [] for client in users}
        clock = asyncio.get_running_loop().time

        async def beat(client: Client) -> None:
            while True:
                began = clock()
                await client.post("session_heartbeat", {"session_id": client.session})
                delays[client.session].append(clock() - began)
                await asyncio.sleep(0.1)

        async def large(seq_id: int) -> None:
            asked = await users[1].post("asample", body.replace(b"314159", b"%d" % seq_id))
            with pytest.raises(FailedError, match="at most"):
                await users[1].result(asked["request_id"])

        began = clock()
        beats = [asyncio.create_task(beat(client)) for client in users]
        async with asyncio.TaskGroup() as work:
            for _ in range(512):
                work.create_task(users[0].sample(sampler, PROMPT))
            for number in range(200):
                work.create_task(large(100_000 + number))
        took = clock() - began
        for task in beats:
            task.cancel()
        ends = await asyncio.gather(*beats, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        assert running.service.status().sessions == len(users)
        slowest = max(delay for each in delays.values() for delay in each)
        assert slowest < took / 3  # none waited for all of the work
        for each in delays.values():  # a tenth of a second after each, the next one is sent
            assert len(each) >= max(5, took / (0.15 + slowest) - 1)
