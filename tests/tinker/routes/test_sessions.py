"""Sessions through HTTP, and what the SDK asks before it makes one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.tinker_client import MODEL, House, RefusedError, until


async def test_the_flags_that_the_sdk_is_given(tmp_path: Path):
    """Only those for which this service has what they switch on."""
    async with House(tmp_path).open() as running:
        ada = running.client()
        flags = await ada.post("client/config", {"sdk_version": "0.38.0"})
        assert flags["sample_use_retrieve_futures"]
        assert flags["parallel_fwdbwd_chunks"]
        assert flags["sample_join_sampling_session"]
        assert not flags["proto_compress_fwdbwd"]
        assert not flags["custom_loss_server_side"]
        assert flags["pjwt_auth_enabled"]
        refreshed = await ada.post("client/dynamic_config", {"sdk_version": "0.38.0"})
        assert refreshed["sample_cancel_enabled"]
        assert (await ada.post("telemetry", {"events": []})) == {"status": "accepted"}
        assert await ada.get("/api/v1/get_server_capabilities") == {
            "supported_models": [
                {
                    "model_name": MODEL,
                    "max_context_length": 512,
                    "trainable": True,
                    "sampleable": True,
                }
            ]
        }


async def test_there_is_only_one_project(tmp_path: Path):
    """A session in another one is refused, not made somewhere else."""
    async with House(tmp_path).open() as running:
        ada = running.client()
        with pytest.raises(RefusedError, match="project research") as refused:
            await ada.post("create_session", {"project_id": "research"})
        assert refused.value.status == 404
        await ada.post("create_session", {"project_id": "default"})


@pytest.mark.slow
async def test_a_session_lives_until_it_is_finished(tmp_path: Path):
    """Heartbeats of a finished one get 410, also after a restart; then nothing can begin in it."""
    house = House(tmp_path)
    async with house.open() as running:
        ada = await running.client().begin()
        beat = {"session_id": ada.session, "type": "session_heartbeat"}
        assert await ada.post("session_heartbeat", beat) == {"type": "session_heartbeat"}
        assert running.service.status().sessions == 1
        finish = {"reason": {"type": "errored"}, "detail": "out of patience"}
        await ada.post(f"sessions/{ada.session}/finish", finish)
        await ada.post(f"sessions/{ada.session}/finish")
        session = await running.stores.records.session(ada.session, user="ada")
        assert (session.finish_reason, session.finish_detail) == ("errored", "out of patience")
        assert running.service.status().sessions == 0
    async with house.open() as running:
        ada._web = running.web
        for route, body, status in (
            ("session_heartbeat", beat, 410),
            (
                "create_model",
                {"session_id": ada.session, "model_seq_id": 0, "base_model": MODEL},
                404,
            ),
        ):
            with pytest.raises(RefusedError, match="has finished") as refused:
                await ada.post(route, body)
            assert refused.value.status == status


async def test_a_session_from_before_a_restart_goes_on(tmp_path: Path):
    """Its heartbeats are answered, and its models are trained on."""
    house = House(tmp_path)
    async with house.open() as running:
        ada = await running.client().begin()
        model = await ada.create_model()
        first = await ada.compute(model, 1, [1, 2, 3])
        await running.service.drain(5)
    async with house.open() as running:
        ada._web = running.web
        await ada.post("session_heartbeat", {"session_id": ada.session})
        assert await ada.compute(model, 2, [1, 2, 3]) == first
        await ada.step(model, 3)


async def test_a_finished_sessions_models_leave_the_trainer(tmp_path: Path):
    """Its checkpoints stay."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        model = await ada.create_model()
        body = {"model_id": model, "seq_id": 1, "path": "one"}
        path = (await ada.done("save_weights_for_sampler", body))["path"]
        await ada.post(f"sessions/{ada.session}/finish")
        await until(lambda: not running.service.status().queue.models)
        await ada.begin()
        await ada.sampler(path=path)


async def test_a_retried_create_session_gives_the_same_session(tmp_path: Path):
    """To the same user only."""
    async with House(tmp_path).open() as running:
        ada, eve = running.client(), running.client("eve")
        body, key = {"tags": [], "sdk_version": "0.38.0"}, {"X-Idempotency-Key": "once"}
        made = [await user.post("create_session", body, **key) for user in (ada, ada, eve)]
        assert made[0] == made[1] != made[2]


async def test_sessions_of_others_are_unknown(tmp_path: Path):
    """To heartbeats as to everything else."""
    async with House(tmp_path).open() as running:
        ada = await running.client().begin()
        eve = running.client("eve")
        for route, body in (
            ("session_heartbeat", {"session_id": ada.session}),
            (f"sessions/{ada.session}/finish", {}),
            ("session_heartbeat", {"session_id": "ses-none"}),
        ):
            with pytest.raises(RefusedError) as refused:
                await eve.post(route, body)
            assert refused.value.status == 404


@pytest.mark.parametrize(
    ("answered_by", "prompts_scored_by", "said"),
    [
        ("hf", "hf", "are sampled by hf: it was tried"),
        ("fake", "hf", "prompts are scored by hf"),
        ("fake", "fake", None),
    ],
)
async def test_users_are_told_who_samples_output_layers(
    tmp_path: Path, answered_by: str, prompts_scored_by: str, said: str | None
):
    """By name: at the beginning of their sessions, and in get_info, status and the log."""
    house = House(tmp_path)
    house.engine.unembedding = {
        "answered_by": answered_by,
        "prompts_scored_by": prompts_scored_by,
        "why": "it was tried",
    }
    async with house.open() as running:
        ada = running.client()
        answer = await ada.post("create_session", {"tags": [], "sdk_version": "0.38.0"})
        ada.session = answer["session_id"]
        info = await ada.post("get_info", {"model_id": await ada.create_model()})
        notices = running.service.status().notices
    assert (info["train_unembed"], info["sampled_by"]) == (True, answered_by)
    log = (tmp_path / "service.jsonl").read_text()
    if said is None:
        assert "info_message" not in answer
        assert info["note"] is None
        assert not notices
    else:
        for told in (answer["info_message"], info["note"], " ".join(notices), log):
            assert said in told


async def test_users_are_told_that_the_output_layer_is_not_trained(tmp_path: Path):
    """At the beginning of their sessions, by the SDK, and in get_info and status."""
    house = House(tmp_path)
    async with house.open(train_unembed=False) as running:
        ada = running.client()
        answer = await ada.post("create_session", {"tags": [], "sdk_version": "0.38.0"})
        assert "does not train the output layer" in answer["info_message"]
        assert any("output layer" in notice for notice in running.service.status().notices)
        ada.session = answer["session_id"]
        model = await ada.create_model()
        info = await ada.post("get_info", {"model_id": model})
        assert (info["train_unembed"], info["train_mlp"]) == (False, True)
        assert "does not train the output layer" in info["note"]
    assert "does not train the output layer" in (tmp_path / "service.jsonl").read_text()
