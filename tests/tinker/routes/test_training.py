"""Training through HTTP: accepted once, done in order, and failing in its turn."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.support.tinker_client import (
    MODEL,
    PROTOBUF,
    FailedError,
    House,
    RefusedError,
    loss_request,
    until,
)

TOKENS = list(range(20, 40))


@pytest.mark.slow
async def test_a_supervised_loop_learns(tmp_path: Path):
    """Losses fall, and each job is answered with the metrics that the SDK expects."""
    async with House(tmp_path).open() as service:
        ada = await service.client().begin()
        model = await ada.create_model()
        losses = []
        for step in range(4):
            metrics = await ada.compute(model, 2 * step + 1, TOKENS)
            losses.append(metrics["loss:sum"])
            answer = await ada.step(model, 2 * step + 2)
            assert answer["type"] == "optim_step"
            assert answer["metrics"]["grad_norm:mean"] > 0
        assert losses == sorted(losses, reverse=True)
        assert losses[0] > losses[-1]


async def test_jobs_are_done_in_the_order_of_their_numbers(tmp_path: Path):
    """Whatever order they arrive in: 3 and 2 wait for 1."""
    house = House(tmp_path)
    async with house.open() as service:
        ada = await service.client().begin()
        model = await ada.create_model()
        step = {"model_id": model, "adam_params": {}}
        third = await ada.post("optim_step", {**step, "seq_id": 3})
        second = await ada.post("forward_backward", loss_request(model, 2, TOKENS), **PROTOBUF)
        await until(lambda: service.service.status().futures == 2)
        first = await ada.post("forward_backward", loss_request(model, 1, TOKENS), **PROTOBUF)
        for asked in (third, second, first):
            await ada.result(asked["request_id"])
    order = [call for call, _ in house.trainer.calls if call in {"compute", "optim_step"}]
    assert order[-1] == "optim_step"
    assert set(order[:-1]) == {"compute"}


async def test_a_retried_request_is_applied_once(tmp_path: Path):
    """The same number gives the same future, waiting or answered, and nothing is done again."""
    house = House(tmp_path)
    async with house.open() as service:
        ada = await service.client().begin()
        model = await ada.create_model()
        body = loss_request(model, 1, TOKENS)
        asked = await asyncio.gather(
            *(ada.post("forward_backward", body, **PROTOBUF) for _ in range(5))
        )
        assert len({answer["request_id"] for answer in asked}) == 1
        await ada.result(asked[0]["request_id"])
        assert (await ada.post("forward_backward", body, **PROTOBUF)) == asked[0]
        with pytest.raises(RefusedError, match="another request") as refused:
            await ada.post("forward_backward", loss_request(model, 1, [1, 2]), **PROTOBUF)
        assert refused.value.status == 400
    assert [call for call, _ in house.trainer.calls].count("compute") == 1


async def test_a_retried_create_model_gives_the_same_model(tmp_path: Path):
    """And makes one adapter."""
    house = House(tmp_path)
    async with house.open() as service:
        ada = await service.client().begin()
        assert await ada.create_model() == await ada.create_model()
    assert [call for call, _ in house.trainer.calls].count("create") == 1


async def test_a_bad_job_fails_in_its_turn_and_blocks_nobody(tmp_path: Path):
    """Its batch is not applied, the user is told which job it was, and the next batch works."""
    async with House(tmp_path).open() as service:
        ada = await service.client().begin()
        model = await ada.create_model()
        outside = loss_request(model, 1, [1, 2, 3], targets=[5, 999_999])
        with pytest.raises(FailedError, match="999999") as failed:
            await ada.done("forward_backward", outside, **PROTOBUF)
        assert failed.value.category == "user"
        with pytest.raises(FailedError):
            await ada.step(model, 2)
        with pytest.raises(FailedError, match="'momentum'"):
            await ada.done("optim_step", {"model_id": model, "seq_id": 3, "momentum": 1})
        with pytest.raises(FailedError, match="rank"):
            await ada.create_model(number=1, rank=4096)
        assert (await ada.compute(model, 4, TOKENS))["loss:sum"] > 0
        await ada.step(model, 5)


@pytest.mark.parametrize(
    ("route", "body", "headers", "status", "said"),
    [
        ("forward_backward", b"{}", {}, 400, "x-protobuf"),
        ("forward_backward", b"\xff\xff\xff", PROTOBUF, 400, "protobuf"),
        ("forward_backward", b"", PROTOBUF | {"Content-Encoding": "zstd"}, 400, "zstd"),
        ("optim_step", {"seq_id": 1}, {}, 400, "model_id"),
        ("optim_step", {"model_id": "ses-x:train:0", "seq_id": 1}, {}, 404, "ses-x:train:0"),
        ("optim_step", {"model_id": "ses-x:train:0", "seq_id": 0}, {}, 400, "seq_id"),
        ("create_custom_loss", {}, {}, 400, "forward_backward_custom"),
        ("get_info", {"model_id": "ses-x:train:0"}, {}, 404, "ses-x:train:0"),
        ("load_weights", {"path": "tinker://x", "optimizer": True}, {}, 400, "session_id"),
    ],
)
async def test_what_cannot_be_accepted_is_refused_at_once(
    tmp_path: Path, route, body, headers, status, said
):
    """With a status that the SDK does not retry."""
    async with House(tmp_path).open() as service:
        ada = await service.client().begin()
        with pytest.raises(RefusedError, match=said) as refused:
            await ada.post(route, body, **headers)
        assert refused.value.status == status


async def test_too_many_waiting_jobs_are_answered_with_429(tmp_path: Path):
    """New models among them; the job that the others wait for is accepted all the same."""
    async with House(tmp_path).open(max_queued_jobs=1) as service:
        ada = await service.client().begin()
        model = await ada.create_model()
        step = {"model_id": model, "adam_params": {}}
        await ada.post("optim_step", {**step, "seq_id": 2})
        body = {"session_id": ada.session, "model_seq_id": 1, "base_model": MODEL}
        for route, refused in (("optim_step", {**step, "seq_id": 3}), ("create_model", body)):
            with pytest.raises(RefusedError, match="waiting") as error:
                await ada.post(route, refused)
            assert error.value.status == 429
        await ada.compute(model, 1, TOKENS)
        await until(lambda: not service.service.status().futures)
        await ada.post("create_model", body)


@pytest.mark.slow
async def test_models_take_turns_in_the_trainers_memory(tmp_path: Path):
    """With one place for two models, each comes back from the disk as it was."""
    house = House(tmp_path)
    losses: dict[int, list[float]] = {1: [], 2: []}
    for places, seen in losses.items():
        async with house.open(max_resident=places) as service:
            ada = await service.client().begin()
            models = [await ada.create_model(number=number) for number in (0, 1)]
            for step in range(2):
                for model in models:
                    metrics = await ada.compute(model, 2 * step + 1, TOKENS)
                    seen.append(metrics["loss:sum"])
                    await ada.step(model, 2 * step + 2)
            resident = [model.resident for model in service.service.status().queue.models]
            assert sum(resident) == places
    assert losses[1] == losses[2]


async def test_a_seed_that_no_generator_takes_is_refused(tmp_path: Path):
    """Before a model is accepted that cannot be made."""
    async with House(tmp_path).open() as service:
        ada = await service.client().begin()
        with pytest.raises(RefusedError, match="seed") as refused:
            await ada.create_model(seed=2**63)
        assert refused.value.status == 400


async def test_another_base_model_is_named_with_the_one_there_is(tmp_path: Path):
    """So that the user sees what to write."""
    async with House(tmp_path).open() as service:
        ada = await service.client().begin()
        body = {"session_id": ada.session, "model_seq_id": 0, "base_model": "other/model"}
        with pytest.raises(RefusedError, match=f"other/model .*{MODEL}"):
            await ada.post("create_model", body)


async def test_a_full_queue_is_answered_with_429(tmp_path: Path):
    """Only for what is not the next job of its model, which must always get in."""
    async with House(tmp_path).open(max_queued_jobs=2) as service:
        ada = await service.client().begin()
        model = await ada.create_model()
        step = {"model_id": model, "adam_params": {}}
        for seq_id in (2, 3):
            await ada.post("optim_step", {**step, "seq_id": seq_id})
        with pytest.raises(RefusedError, match="waiting") as refused:
            await ada.post("optim_step", {**step, "seq_id": 4})
        assert refused.value.status == 429
        await ada.compute(model, 1, TOKENS)


async def test_a_saved_model_is_loaded_into_a_new_one(tmp_path: Path):
    """Create-via-load: the same losses follow as in the model that was saved."""
    async with House(tmp_path).open() as service:
        ada = await service.client().begin()
        model = await ada.create_model()
        await ada.compute(model, 1, TOKENS)
        await ada.step(model, 2)
        saved = await ada.done("save_weights", {"model_id": model, "seq_id": 3, "path": "a"})
        assert saved["path"] == f"tinker://{model}/weights/a"
        body = {
            "session_id": ada.session,
            "model_seq_id": 1,
            "path": saved["path"],
            "optimizer": True,
        }
        loaded = await ada.done("load_weights", body)
        assert loaded["model_id"] == f"{ada.session}:train:1"
        expected = await ada.compute(model, 4, TOKENS)
        assert await ada.compute(loaded["model_id"], 1, TOKENS) == expected


async def test_a_model_is_its_owners_only(tmp_path: Path):
    """For another user it does not exist."""
    async with House(tmp_path).open() as service:
        ada = await service.client().begin()
        model = await ada.create_model()
        eve = await service.client("eve").begin()
        create = {"session_id": ada.session, "model_seq_id": 5, "base_model": MODEL}
        for route, body, headers in (
            ("get_info", {"model_id": model}, {}),
            ("optim_step", {"model_id": model, "seq_id": 1}, {}),
            ("forward_backward", loss_request(model, 1, TOKENS), PROTOBUF),
            ("create_model", create, {}),
        ):
            with pytest.raises(RefusedError) as refused:
                await eve.post(route, body, **headers)
            assert refused.value.status == 404, route
        info = await ada.post("get_info", {"model_id": model})
        assert info["model_data"]["model_name"] == MODEL
        assert (info["is_lora"], info["lora_rank"], info["sampled_by"]) == (True, 4, "fake")


async def test_the_longest_sequence_is_a_limit_of_training_too(tmp_path: Path):
    """--max-model-len is, where it is lower than the model's."""
    async with House(tmp_path).open(max_model_len=16) as running:
        ada = await running.client().begin()
        model = await ada.create_model()
        await ada.compute(model, 1, TOKENS[:17])
        with pytest.raises(FailedError, match="the longest sequence here is 16"):
            await ada.compute(model, 2, TOKENS[:18])
