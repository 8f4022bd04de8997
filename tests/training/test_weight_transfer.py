"""A trainer's weights sent to a fake vLLM by a stand-in for vLLM's end of the transfer."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.support.command_line import House
from tests.support.stand_in import Torch
from tests.support.tiny_checkpoints import write_checkpoint

from enginehouse.core.errors import ServerFaultError, UnknownNameError, WeightsError
from enginehouse.deployment.configuration import AskConfig
from enginehouse.deployment.opening import open_deployment
from enginehouse.deployment.swapping import weights_info
from enginehouse.engines.vllm.wire import VLLM_WEIGHTS
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.testing.fake_engine import running_fake_engine
from enginehouse.training import WeightSender

ASKED = {"prompt": "x", "max_tokens": 8, "ignore_eos": True, "temperature": 0}


@dataclass
class Server:
    """A fake vLLM that may be sent weights."""

    url: str

    def answer(self) -> str:
        """To always the same question; fails when the server lets requests wait."""

        async def ask() -> str:
            timeout = aiohttp.ClientTimeout(total=10)
            async with (
                aiohttp.ClientSession(self.url, timeout=timeout) as session,
                session.post("/v1/completions", json=ASKED) as reply,
            ):
                return (await reply.json())["choices"][0]["text"]

        return asyncio.run(ask())

    def info(self) -> Any:
        """Which weights it has."""
        return asyncio.run(weights_info(self.url, layout=Layout.from_environment()))


Serve = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Run a fake with the checkpoint `a`, while the test's own thread is free to block."""

    @contextmanager
    def make(*flags: str, **options: Any):
        flags = flags or ("--weight-transfer-config", '{"backend": "fake"}')
        folder = write_checkpoint(tmp_path / "a", seed=1)
        with asyncio.Runner() as runner:
            running = running_fake_engine(*flags, model=str(folder), **options)
            handle = runner.run(running.__aenter__())
            try:
                yield Server(handle.url)
            finally:
                runner.run(running.__aexit__(None, None, None))

    return make


class Trainer:
    """What vLLM's NCCL and IPC trainers do, without their data: one thread calls, one sends."""

    def __init__(self, sender: WeightSender, *, seed: int = 1) -> None:
        self.client = sender.client
        self.seed = seed
        self.fault: BaseException | None = None
        self.info: dict[str, Any] = {"names": ["a"]}
        self.freed = threading.Event()
        self.freed.set()
        self.threads: list[threading.Thread] = []
        self.late: list[Exception] = []
        self.client.init_weight_transfer_engine({"packed": False})

    def send_weights(self) -> None:
        """Start, update on another thread as NCCL's does, send, finish."""
        self.threads.append(threading.current_thread())
        self.client.start_weight_update()
        with ThreadPoolExecutor(1) as pool:
            update = pool.submit(self.client.update_weights, self.info | {"seed": self.seed})
            self.freed.wait(30)
            if self.fault is not None:
                raise self.fault
            try:
                update.result()
                self.client.finish_weight_update("a name that is not ours")
            except WeightsError as error:
                self.late.append(error)
                raise


def test_weights_are_sent(serve: Serve):
    """They answer; the name says that they are on no disk, and what a restart brings back."""
    with serve() as server:
        first = server.answer()
        sender = WeightSender(server.url)
        assert sender.world_size() == 1
        trainer = Trainer(sender)
        done = sender.send(trainer.send_weights, name="step-1")
        sent = server.answer()
        assert sent != first
        trainer.seed = 2
        sender.send(trainer.send_weights, name="step-2", in_flight="abort", deadline=20)
        assert server.answer() not in {first, sent}
        info = server.info()
        assert (info.path, info.version, info.agrees) == (None, 2, True)
        assert info.declared == Path(done.before.path)
        assert info.digest.endswith("-step-2")
        assert all(not thread.is_alive() for thread in trainer.threads)


async def test_in_a_notebook(tmp_path: Path):
    """Where an event loop runs, it blocks that, and works."""
    a = write_checkpoint(tmp_path / "a")
    async with running_fake_engine("--weight-transfer-config", "{}", model=str(a)) as engine:
        sender = WeightSender(engine.url)
        assert sender.send(Trainer(sender).send_weights, name="n").after.version == 1


def test_a_sender_that_raises(serve: Serve):
    """Its error is the cause; the weights are those from before, and the next one succeeds."""
    with serve() as server:
        first = server.answer()
        sender = WeightSender(server.url)
        trainer = Trainer(sender)
        trainer.fault = RuntimeError("NCCL error: unhandled system error")
        with pytest.raises(WeightsError, match="old ones") as caught:
            sender.send(trainer.send_weights, name="step-1")
        assert (caught.value.kind, caught.value.restored) == ("sender", True)
        assert "RuntimeError: NCCL error: unhandled system error" in caught.value.why
        assert caught.value.__cause__.__cause__ is trainer.fault
        assert server.answer() == first
        trainer.fault = None
        sender.send(trainer.send_weights, name="step-1")
        assert server.answer() != first


@pytest.mark.slow
def test_a_sender_that_hangs(serve: Serve):
    """The deadline ends it; when it wakes up it can do nothing to the server any more."""
    with serve() as server:
        first = server.answer()
        sender = WeightSender(server.url)
        trainer = Trainer(sender)
        trainer.freed.clear()
        with pytest.raises(WeightsError) as caught:
            sender.send(trainer.send_weights, name="step-1", deadline=0.7)
        assert (caught.value.kind, caught.value.restored) == ("deadline", True)
        assert caught.value.why == "the transfer: not done within 0.7 s"
        assert server.answer() == first
        with pytest.raises(WeightsError, match="earlier transfer"):
            sender.send(trainer.send_weights, name="step-2")
        trainer.freed.set()
        trainer.threads[0].join(10)
        (late,) = trainer.late
        assert late.kind == "over"
        assert server.answer() == first
        sender.send(trainer.send_weights, name="step-2")


@pytest.mark.slow
def test_ctrl_c(serve: Serve):
    """It takes effect when the old weights are back."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with serve() as server:
        first = server.answer()
        sender = WeightSender(server.url)
        trainer = Trainer(sender)
        trainer.freed.clear()
        interrupt = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            sender.send(trainer.send_weights, name="step-1")
        signal.signal(signal.SIGINT, handler)
        assert server.answer() == first
        assert trainer.threads
        trainer.freed.set()
        trainer.threads[0].join(10)
        assert trainer.late


def test_a_server_that_fails_while_the_sender_waits_for_it(serve: Serve):
    """As in NCCL, where the sender would wait for ever: said at once, not at the deadline."""
    with serve() as server:
        first = server.answer()
        sender = WeightSender(server.url)
        trainer = Trainer(sender)
        trainer.freed.clear()
        trainer.info = {"no": "names"}
        with pytest.raises(WeightsError, match="old ones") as caught:
            sender.send(trainer.send_weights, name="step-1", deadline=20)
        assert "Invalid update_info" in caught.value.why
        trainer.freed.set()
        trainer.threads[0].join(10)
        assert server.answer() == first


@pytest.mark.slow
def test_a_server_that_hangs_in_the_update(serve: Serve):
    """The call is given up at the deadline, and its thread with it."""
    with serve(faults=[{"fault": "hang", "path": "/update_weights", "nth": [1]}]) as server:
        first = server.answer()
        sender = WeightSender(server.url)
        trainer = Trainer(sender)
        with pytest.raises(WeightsError, match="old ones") as caught:
            sender.send(trainer.send_weights, name="step-1", deadline=0.7)
        assert caught.value.kind == "deadline"
        trainer.threads[0].join(10)
        assert not trainer.threads[0].is_alive()
        assert server.answer() == first


@pytest.mark.parametrize("calls", [(), ("start_weight_update",)])
def test_a_sender_that_does_not_finish(serve: Serve, calls: tuple[str, ...]):
    """Nothing has come: the old weights are back."""
    with serve() as server:
        first = server.answer()
        sender = WeightSender(server.url)

        def send_weights() -> None:
            for call in calls:
                getattr(sender.client, call)()

        with pytest.raises(WeightsError) as caught:
            sender.send(send_weights, name="step-1")
        assert "without finishing" in caught.value.why
        assert server.answer() == first


def test_updates_outside_of_a_swap(serve: Serve):
    """As in vLLM's examples, they would change weights under requests: refused."""
    with serve() as server:
        trainer = Trainer(WeightSender(server.url))
        with pytest.raises(WeightsError) as caught:
            trainer.send_weights()
        assert caught.value.kind == "over"
        assert server.info().named == "default"


def test_a_server_that_was_not_started_for_it(serve: Serve, caplog: pytest.LogCaptureFixture):
    """In words and with the flag, also in the log: NCCL's side may never raise."""
    with serve("--max-num-seqs", "4") as server:
        sender = WeightSender(server.url)
        with caplog.at_level(logging.ERROR), pytest.raises(WeightsError) as caught:
            Trainer(sender)
        assert caught.value.message == "the server was not started to be sent weights"
        assert "weight_transfer_config" in caught.value.why
        assert "--extra-args '--weight-transfer-config.backend ipc'" in caught.value.fix
        assert "was not started to be sent weights" in caplog.text


@pytest.mark.slow
def test_handles_of_gpu_memory(serve: Serve):
    """They go as a pickle, which the server must have been told to read; else that is said."""
    handles = [{"GPU-1": (b"\x00\xff", 1)}]
    transfer = VLLM_WEIGHTS.transfer
    assert transfer is not None
    for info in ({"names": ["a"], "ipc_handles": handles}, [{"names": [], "ipc_handles": handles}]):
        body = transfer.update(info).body
        assert body is not None
        plain = json.loads(body)["update_info"]
        first = plain[0] if isinstance(plain, list) else plain
        assert set(first) == {"names", "ipc_handles_pickled"}
        assert pickle.loads(base64.b64decode(first["ipc_handles_pickled"])) == handles
    with serve() as server:
        sender = WeightSender(server.url)
        trainer = Trainer(sender)
        trainer.info |= {"ipc_handles": handles}
        with pytest.raises(WeightsError, match="old ones") as caught:
            sender.send(trainer.send_weights, name="step-1")
        assert "--env VLLM_ALLOW_INSECURE_SERIALIZATION=1" in caught.value.fix
    with serve(env={"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}) as server:
        sender = WeightSender(server.url)
        trainer = Trainer(sender)
        trainer.info |= {"ipc_handles": handles}
        sender.send(trainer.send_weights, name="step-1")


@pytest.mark.slow
def test_a_handshake_that_hangs(serve: Serve):
    """NCCL's rendezvous with a wrong world size, for one: the deadline ends our side."""
    hang = {"fault": "hang", "path": "/init_weight_transfer_engine"}
    with serve(faults=[hang]) as server:
        sender = WeightSender(server.url, deadline=0.5)
        with pytest.raises(WeightsError, match=r"0\.5 s") as caught:
            Trainer(sender)
        assert caught.value.kind == "deadline"


def test_a_handshake_that_the_server_refuses(serve: Serve):
    """In the server's own words."""
    with serve() as server:
        sender = WeightSender(server.url)
        with pytest.raises(ServerFaultError, match="Invalid init_info"):
            sender.client.init_weight_transfer_engine({"packed": "yes"})


@pytest.mark.slow
def test_a_server_of_ours(house: House):
    """By its name. One without the flag is refused at once: NCCL's side would wait for ever."""
    own = write_checkpoint(house.work / "own", seed=1)
    swaps = ("--enable-weight-swap",)
    sent = (*swaps, "--extra-args", "--weight-transfer-config ipc")
    for name, flags in (("plain", swaps), ("sent", sent)):
        assert house.run("serve", str(own), "--detach", "--name", name, *flags).code == 0
    with pytest.raises(WeightsError, match="sent weights") as caught:
        WeightSender("plain")
    assert caught.value.why == "its command line has no --weight-transfer-config"
    sender = WeightSender("sent")
    done = sender.send(Trainer(sender).send_weights, name="step-1")
    said = house.run("weights", "info", "sent").out
    assert str(own) in said
    assert done.after.digest in said
    assert "the server calls its weights" not in said

    records = [status["record"] for status in house.run("ps", "--json").report]
    (url,) = [record["base_url"] for record in records if record["name"] == "sent"]

    async def evaluate() -> None:
        async with (
            open_deployment(AskConfig(url=url), Context()) as deployment,
            deployment.target(own),
        ):
            pytest.fail("the weights that were sent could not be brought back")

    with pytest.raises(WeightsError, match="no disk"):
        asyncio.run(evaluate())
    assert house.run("weights", "info", "sent", "--json").report["digest"] == done.after.digest
    for name in ("plain", "sent"):
        assert house.run("stop", name).code == 0


def test_no_such_server():
    """Said when it is named."""
    with pytest.raises(UnknownNameError, match="'nobody'"):
        WeightSender("nobody")


def test_the_senders_thread_is_on_the_callers_gpu(serve: Serve, torch: Torch):
    """Each thread has a current device of its own, 0 at first."""
    seen: list[int] = []
    torch.cuda.synchronize = lambda: seen.append(-1)
    torch.cuda.current_device = lambda: 3
    torch.cuda.set_device = seen.append
    with serve() as server:
        sender = WeightSender(server.url)
        sender.send(Trainer(sender).send_weights, name="step-1")
    assert seen == [-1, 3]
