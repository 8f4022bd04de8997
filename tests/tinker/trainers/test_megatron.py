from __future__ import annotations

import asyncio
import re

import pytest
from aiohttp import web

from enginehouse.core.errors import ConfigurationError, ServerGoneError, StartError, TinkerError
from enginehouse.testing.check_trainer import check_trainer
from enginehouse.testing.fake_megatron_trainer import FakeMegatronTrainer
from enginehouse.testing.fake_trainer import Death, FakeTrainer
from enginehouse.testing.trainer_cases.base import STEP, Subject
from enginehouse.tinker.trainers.megatron import MegatronTrainer

MODEL = "fake/bigram"


def subject_of(trainer, folder) -> Subject:
    """What the cases use, for tests of their own."""
    return Subject(trainer=trainer, kill=lambda: None, folder=folder, prefix="test")


@pytest.mark.slow
async def test_client_and_stand_in_pass_the_suite():
    """Everything that a trainer promises, over the contract."""
    server = FakeMegatronTrainer()
    async with server.serving() as url:
        trainer = MegatronTrainer(url, base_model=MODEL)
        await trainer.start()
        assert await check_trainer(trainer, kill=server.restart) == []


async def test_requests_are_forwarded_one_after_another(tmp_path):
    """Though several are asked for together: Megatron computes one job at a time."""
    server = FakeMegatronTrainer()
    async with server.serving() as url:
        trainer = MegatronTrainer(url, base_model=MODEL)
        await trainer.start()
        assert not trainer.info.batches
        subject = subject_of(trainer, tmp_path)
        models = [await subject.model(name) for name in ("a", "b")]
        await trainer.compute([subject.request(model) for model in models])
        computed = [models for call, models in server.trainer.calls if call == "compute"]
        assert computed == [(models[0],), (models[1],)]


async def test_start_forgets_what_the_server_had(tmp_path):
    """A service that starts anew never meets adapters of the one before."""
    server = FakeMegatronTrainer()
    async with server.serving() as url:
        first = MegatronTrainer(url, base_model=MODEL)
        await first.start()
        model = await subject_of(first, tmp_path).model()
        second = MegatronTrainer(url, base_model=MODEL)
        await second.start()
        with pytest.raises(TinkerError):
            await second.optim_step(model, STEP)
        with pytest.raises(ServerGoneError) as raised:  # the first one's instance is gone
            await first.optim_step(model, STEP)
        assert raised.value.why == "optim_step was answered with 409: the server has started again"


async def test_missing_answers_end_it(tmp_path):
    """A server that dies in a call is gone, whatever it did; the next start empties it."""
    server = FakeMegatronTrainer(FakeTrainer(deaths=[Death(call="optim_step", moment="after")]))
    async with server.serving() as url:
        trainer = MegatronTrainer(url, base_model=MODEL)
        await trainer.start()
        subject = subject_of(trainer, tmp_path)
        model = await subject.model()
        await subject.compute(model)
        for _ in range(2):
            with pytest.raises(ServerGoneError):
                await trainer.optim_step(model, STEP)
        await trainer.start()
        with pytest.raises(TinkerError):
            await trainer.optim_step(model, STEP)


async def test_cancelled_calls_end_it(tmp_path):
    """Whether the server did what was asked is not known then, so its memory is not trusted."""
    server = FakeMegatronTrainer(FakeTrainer(seconds_per_call=0.2))
    async with server.serving() as url:
        trainer = MegatronTrainer(url, base_model=MODEL)
        await trainer.start()
        creating = asyncio.create_task(subject_of(trainer, tmp_path).model())
        await asyncio.sleep(0)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        with pytest.raises(ServerGoneError):
            await trainer.unload("x")
        await trainer.start()
        await trainer.unload("x")


async def test_missing_folder_after_a_save_is_told(tmp_path, monkeypatch):
    """A server on another machine writes where we cannot see it."""

    async def save(model_id, folder, *, state):
        """Write elsewhere."""

    server = FakeMegatronTrainer()
    monkeypatch.setattr(server.trainer, "save", save)
    async with server.serving() as url:
        trainer = MegatronTrainer(url, base_model=MODEL)
        await trainer.start()
        model = await subject_of(trainer, tmp_path).model()
        with pytest.raises(TinkerError, match=re.escape(str(tmp_path / "saved"))) as raised:
            await trainer.save(model, tmp_path / "saved", state=True)
        assert raised.value.category == "server"


def test_wrong_address_is_refused():
    """Before anything starts."""
    with pytest.raises(ConfigurationError, match="'localhost'"):
        MegatronTrainer("localhost", base_model=MODEL)


async def test_no_server_is_refused(unused_tcp_port_factory):
    """Nothing listens: the start says so and names the variable."""
    trainer = MegatronTrainer(f"http://127.0.0.1:{unused_tcp_port_factory()}", base_model=MODEL)
    with pytest.raises(StartError, match="Megatron") as raised:
        await trainer.start()
    assert "MEGATRON_SERVER_URL" in raised.value.fix
    with pytest.raises(ServerGoneError):
        await trainer.unload("x")


async def test_another_model_is_refused():
    """Adapters of one base model are of no use on another."""
    async with FakeMegatronTrainer().serving() as url:
        with pytest.raises(StartError, match=r"fake/bigram.* org/other"):
            await MegatronTrainer(url, base_model="org/other").start()


async def test_a_server_without_a_gpu_is_refused():
    """Its description says what it computes on."""
    async with FakeMegatronTrainer(device="cpu").serving() as url:
        with pytest.raises(StartError, match="has no GPU") as raised:
            await MegatronTrainer(url, base_model=MODEL).start()
        assert "--trainer hf" in raised.value.fix


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, "Not Found", "does not train"),
        (405, "", "does not train"),
        (200, "{}", "something else than a trainer"),
        (200, "<html>", "something else than a trainer"),
    ],
)
async def test_other_servers_are_refused(status, body, words):
    """Such as Megatron's own text generation server, which knows only PUT /api."""

    async def answer(request):
        return web.Response(status=status, text=body)

    application = web.Application()
    application.add_routes([web.post("/{path:.*}", answer)])
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        with pytest.raises(StartError, match=words) as raised:
            await MegatronTrainer(f"http://127.0.0.1:{port}", base_model=MODEL).start()
        assert "docs/tinker-megatron.md" in raised.value.fix
    finally:
        await runner.cleanup()
