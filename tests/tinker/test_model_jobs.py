"""Creating, saving and loading models."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.tinker_records import a_model
from tests.support.training_service import MODEL, VOCABULARY, TrainingService, training_service

from enginehouse.core.errors import TinkerError
from enginehouse.testing.fake_trainer import FakeTrainer
from enginehouse.tinker.future import Future
from enginehouse.tinker.limits import Limits

OTHER = "ses-2:train:0"


async def load(
    service: TrainingService, path: str, model_id: str = OTHER, *, user: str = "ada", **more: Any
) -> Future:
    """Send a create-via-load, or with a seq_id a load into a model that exists."""
    session_id, _, number = model_id.split(":")
    body: dict[str, Any] = {"path": path, "optimizer": True, **more}
    if "seq_id" in more:
        body |= {"model_id": model_id}
    else:
        body |= {"session_id": session_id, "model_seq_id": int(number)}
    seq_id = more.get("seq_id", 0)
    return await service.send("load_weights", model_id, seq_id, body, user=user)


async def test_a_new_model_is_recorded(tmp_path: Path):
    """With its owner, and with the seed that was drawn for it."""
    async with training_service(tmp_path) as service:
        answer = await service.answer(await service.create(rank=8, train_mlp=False))
        assert answer == {"model_id": MODEL, "type": "create_model"}
        record = await service.records.model(MODEL, user="ada")
        assert (record.session_id, record.base_model) == ("ses-1", "fake/bigram")
        assert (record.spec.rank, record.spec.train_mlp) == (8, False)
        assert record.spec.seed is not None


@pytest.mark.parametrize(
    ("config", "limits", "message"),
    [
        ({"rank": 65}, {}, "limit of 64"),
        ({"train_mlp": False, "train_attn": False}, {"train_unembed": False}, "nothing"),
        ({"alpha": 16}, {}, "alpha"),
        ({"rank": 0}, {}, "rank"),
    ],
)
async def test_a_model_that_is_not_possible_is_refused(
    tmp_path: Path, config: dict[str, Any], limits: dict[str, Any], message: str
):
    """Nothing is left of it, and its later jobs fail with it."""
    async with training_service(tmp_path, limits=Limits(**limits)) as service:
        failure = await service.answer(await service.create(**config))
        assert failure["category"] == "user"
        assert message in failure["error"]
        later = await service.answer(await service.forward_backward(1))
        assert "error" in later
        with pytest.raises(TinkerError):
            await service.records.model(MODEL, user="ada")


async def test_a_copied_checkpoint_is_not_trained_under_its_own_name(tmp_path: Path):
    """What is saved of it would be recorded with the copy's shape."""
    async with training_service(tmp_path) as service:
        await service.records.add_model(a_model(MODEL, trainable=False))
        answer = await service.answer(await service.create())
        assert "is a copy of a checkpoint" in answer["error"]
        assert answer["category"] == "user"


async def test_a_service_without_unembedding_trains_the_rest(tmp_path: Path):
    """And the record says so."""
    async with training_service(tmp_path, limits=Limits(train_unembed=False)) as service:
        await service.answer(await service.create())
        assert not (await service.records.model(MODEL, user="ada")).spec.train_unembed
        await service.answer(await service.save(1, "a"))
        assert not any(
            "lm_head" in name for name in await service.weights(f"tinker://{MODEL}/weights/a")
        )


async def test_a_user_can_train_only_so_many_models(tmp_path: Path):
    """Others are not affected, and an ended session makes place."""
    async with training_service(tmp_path, limits=Limits(adapters=2)) as service:
        for number in (0, 1):
            await service.answer(await service.create(f"ses-1:train:{number}"))
        failure = await service.answer(await service.create("ses-1:train:2"))
        assert "2 models" in failure["error"]
        assert "model_id" in await service.answer(await service.create(OTHER, user="bob"))
        service.queue.retire("ses-1")
        assert "model_id" in await service.answer(await service.create("ses-3:train:0"))


async def test_a_resumed_model_trains_as_one_that_was_never_saved(tmp_path: Path):
    """Weights and optimizer come back, pending gradients do not."""
    async with training_service(tmp_path) as service:
        await service.create(seed=7)
        await service.forward_backward(1)
        await service.optim_step(2)
        saved = await service.answer(await service.save(3, "half"))
        assert saved == {"path": f"tinker://{MODEL}/weights/half", "type": "save_weights"}
        await service.forward_backward(4)
        await service.optim_step(5)
        await service.finish(6)
        loaded = await service.answer(await load(service, saved["path"]))
        assert loaded == {"path": saved["path"], "model_id": OTHER, "type": "load_weights"}
        await service.forward_backward(1, OTHER, seed=4)
        await service.optim_step(2, OTHER)
        await service.finish(3, OTHER)
        assert await service.final_weights(OTHER) == await service.final_weights()
        record = await service.records.model(OTHER, user="ada")
        assert (record.spec.rank, record.base_model) == (4, "fake/bigram")


async def test_a_load_survives_the_deletion_of_its_checkpoint(tmp_path: Path):
    """What was loaded is in the model's own state when the load is answered."""
    trainer = FakeTrainer(vocabulary=VOCABULARY)
    async with training_service(tmp_path, trainer=trainer) as service:
        await service.train(steps=1)
        path = f"tinker://{MODEL}/weights/final"
        expected = await service.final_weights()
        await service.answer(await load(service, path))
        await service.checkpoints.remove(path, user="ada")
        trainer.kill()
        await service.finish(1, OTHER)
        assert await service.final_weights(OTHER) == expected


async def test_the_older_form_loads_into_a_model_that_exists(tmp_path: Path):
    """It must have the same shape."""
    async with training_service(tmp_path) as service:
        await service.train(steps=1)
        path = f"tinker://{MODEL}/weights/final"
        await service.create(OTHER, seed=1)
        answer = await service.answer(await load(service, path, seq_id=1, optimizer=False))
        assert answer["model_id"] == OTHER
        await service.finish(2, OTHER)
        assert await service.final_weights(OTHER) == await service.final_weights()
        await service.create("ses-3:train:0", rank=8)
        failure = await service.answer(await load(service, path, "ses-3:train:0", seq_id=1))
        assert "rank 4" in failure["error"]
        assert "rank 8" in failure["error"]


async def test_only_published_checkpoints_of_others_can_be_loaded(tmp_path: Path):
    """For all others it is as if they did not exist."""
    async with training_service(tmp_path) as service:
        await service.train(steps=1)
        path = f"tinker://{MODEL}/weights/final"
        failure = await service.answer(await load(service, path, user="bob"))
        assert failure["category"] == "user"
        missing = await service.answer(
            await load(service, path.replace("final", "none"), "ses-3:train:0", user="bob")
        )
        assert failure["error"].replace("final", "none") == missing["error"]
        await service.records.set_public(path, user="ada", public=True)
        answer = await service.answer(await load(service, path, "ses-4:train:0", user="bob"))
        assert answer["model_id"] == "ses-4:train:0"


@pytest.mark.parametrize(
    ("path", "more", "message"),
    [
        ("tinker://ses-1:train:0/sampler_weights/s", {}, "no optimizer state"),
        ("tinker://ses-1:train:0/external_weights/e", {}, "other software"),
        ("tinker://ses-1:train:0/weights/../../x", {}, "path of a checkpoint"),
        ("tinker://ses-1:train:0/weights/w", {"weights_access_token": "a"}, "not supported"),
        ("tinker://ses-1:train:0/weights/w", {"base_model": "other"}, "adapter of fake/bigram"),
    ],
)
async def test_what_cannot_be_loaded_is_refused(
    tmp_path: Path, path: str, more: dict[str, Any], message: str
):
    """With the reason."""
    async with training_service(tmp_path) as service:
        await service.create()
        await service.save(1, "w")
        await service.save(2, "s", job="save_weights_for_sampler")
        await service.answer(await service.save(3, "e", job="save_weights_external"))
        failure = await service.answer(await load(service, path, **more))
        assert failure["category"] == "user"
        assert message in failure["error"]


async def test_a_sampler_checkpoint_can_be_loaded_without_its_optimizer(tmp_path: Path):
    """As the weights are there."""
    async with training_service(tmp_path) as service:
        await service.create()
        saved = await service.answer(await service.save(1, "s", job="save_weights_for_sampler"))
        loaded = await service.answer(await load(service, saved["path"], optimizer=False))
        assert loaded["model_id"] == OTHER


async def test_a_checkpoint_is_replaced_only_on_request(tmp_path: Path):
    """With `overwrite`; the first one stays until the second is whole."""
    async with training_service(tmp_path) as service:
        await service.create(seed=7)
        await service.answer(await service.save(1, "same"))
        await service.forward_backward(2)
        await service.optim_step(3)
        failure = await service.answer(await service.save(4, "same"))
        assert failure["category"] == "user"
        before = await service.weights(f"tinker://{MODEL}/weights/same")
        await service.answer(await service.save(5, "same", overwrite=True))
        after = await service.weights(f"tinker://{MODEL}/weights/same")
        assert any(before[name].tobytes() != after[name].tobytes() for name in before)


async def test_a_checkpoint_has_what_its_owner_says(tmp_path: Path):
    """A time to live, and metadata; without them it lives for ever."""
    async with training_service(tmp_path) as service:
        await service.create()
        await service.save(1, "short", ttl_seconds=3600, user_metadata={"step": "1"})
        await service.answer(await service.save(2, "long"))
        short, long = [
            await service.records.checkpoint(f"tinker://{MODEL}/weights/{name}", user="ada")
            for name in ("short", "long")
        ]
        assert short.expires_at is not None
        assert (short.expires_at - short.created).total_seconds() == pytest.approx(3600, abs=5)
        assert short.user_metadata == {"step": "1"}
        assert long.expires_at is None


async def test_a_sampler_is_made_with_the_weights_that_it_samples_from(tmp_path: Path):
    """By name, or for a new sampling session: of a snapshot, or one that follows the model."""
    async with training_service(tmp_path) as service:
        await service.create()
        job = "save_weights_for_sampler"
        named = await service.answer(await service.save(1, "s", job=job))
        assert named == {"path": f"tinker://{MODEL}/sampler_weights/s", "type": job}
        snapshot = await service.save(2, None, job=job, sampling_session_seq_id=0)
        follower = await service.save(3, None, job=job, sampling_session_seq_id=1, kind="inflight")
        answers = [await service.answer(future) for future in (snapshot, follower)]
        assert [answer["sampling_session_id"] for answer in answers] == [
            "ses-1:sample:0",
            "ses-1:sample:1",
        ]
        sessions = [
            await service.records.sampling_session(f"ses-1:sample:{number}", user="ada")
            for number in (0, 1)
        ]
        assert [session.follows for session in sessions] == [None, MODEL]
        assert sessions[0].checkpoint == f"tinker://{MODEL}/sampler_weights/unnamed-000002"
        assert [checkpoint.name for checkpoint in service.samplers] == [
            "s",
            "unnamed-000002",
            "unnamed-000003",
        ]


async def test_snapshots_end_with_their_session_and_named_checkpoints_do_not(tmp_path: Path):
    """They get an hour for samples that are in flight."""
    async with training_service(tmp_path) as service:
        await service.create()
        job = "save_weights_for_sampler"
        await service.save(1, "named", job=job)
        await service.answer(await service.save(2, None, job=job, sampling_session_seq_id=0))
        refused = await service.answer(await service.save(3, "unnamed-000002", job=job))
        assert "cannot begin" in refused["error"]
        service.queue.retire("ses-1")
        await service.answer(await service.create(OTHER))
        page = await service.records.checkpoints("ada")
        assert {record.name: record.expires_at is None for record in page.entries} == {
            "named": True,
            "unnamed-000002": False,
        }


async def test_an_external_checkpoint_is_a_peft_folder(tmp_path: Path):
    """Without the optimizer's state; encryption is refused rather than forgotten."""
    async with training_service(tmp_path) as service:
        await service.create()
        job = "save_weights_external"
        saved = await service.answer(await service.save(1, "e", job=job))
        record = await service.records.checkpoint(saved["path"], user="ada")
        assert saved["size_bytes"] == record.size_bytes
        folder = service.checkpoints.folder(record)
        assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
        assert "training_state.safetensors" not in service.checkpoints.files(record)
        failure = await service.answer(
            await service.save(2, "f", job=job, age_encryption_recipients=["age1xyz"])
        )
        assert "age_encryption_recipients" in failure["error"]


async def test_a_full_disk_fails_the_save_and_nothing_else(tmp_path: Path):
    """Nothing of the checkpoint is visible, and training goes on."""
    trainer = _OnFullDisk()
    async with training_service(tmp_path, trainer=trainer) as service:
        await service.create()
        failure = await service.answer(await service.save(1, "a"))
        assert failure["category"] == "server"
        assert "full" in failure["error"]
        assert (await service.records.checkpoints("ada")).total == 0
        await service.forward_backward(2)
        assert "metrics" in await service.answer(await service.optim_step(3))
        trainer.full = False
        assert "path" in await service.answer(await service.save(4, "a"))


class _OnFullDisk(FakeTrainer):
    """Leaves half a folder when its disk is full."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)
        self.full = True

    async def save(self, model_id: str, folder: Path, *, state: bool) -> None:
        if self.full:
            _write_half(folder)
            raise TinkerError("the disk is full", category="server")
        await super().save(model_id, folder, state=state)


def _write_half(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"half")


async def test_a_save_that_was_done_before_a_restart_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The job finds its own checkpoint, and does not take its name for taken."""
    done = asyncio.Event()

    async def never(*_: Any, **__: Any) -> None:
        done.set()
        await asyncio.Event().wait()

    async with training_service(tmp_path) as service:
        await service.answer(await service.create())
        monkeypatch.setattr(service.futures, "finish", never)
        future = await service.save(1, "a")
        await done.wait()
    async with training_service(tmp_path) as service:
        again = service.futures.accepted(future.key)
        assert again is not None
        assert "path" in await service.answer(again)
        assert (await service.records.checkpoints("ada")).total == 1
