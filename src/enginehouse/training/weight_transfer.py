"""Sends weights from a trainer's memory to a running vLLM, without a file.

vLLM ships both ends of the transfer itself (NCCL, CUDA IPC, …: its distributed/weight_transfer).
The trainer's end needs vLLM in the trainer's environment, or a sender of its own. This module does
the rest: requests wait, and the server gets all of the new weights or keeps the old ones.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

from enginehouse.client.wire import InFlight
from enginehouse.core.errors import WeightsError
from enginehouse.deployment.running_servers import find_running
from enginehouse.deployment.swapping import swapper_of
from enginehouse.runtime.blocking import run_blocking
from enginehouse.runtime.interrupts import Interrupts, interrupts_deferred
from enginehouse.store.layout import Layout
from enginehouse.training.sync_client import WeightSyncClient
from enginehouse.weights.declared import Weights
from enginehouse.weights.limits import DEADLINE
from enginehouse.weights.replacement import Send
from enginehouse.weights.swap import Swapped, WeightSwapper
from enginehouse.weights.transfer import ask_about_transfer, transfer_endpoints

Result = TypeVar("Result")
_THREAD = "enginehouse-weights"
_GRACE = 1.0  # seconds that a sender has to end after its transfer was given up


class WeightSender:
    """Replaces one server's weights by those in a trainer's memory. Blocking.

    `server` is a name that `enginehouse ps` lists, or the address of a vLLM on this machine. It
    must have been started with --enable-weight-swap and --weight-transfer-config. `client` is what
    vLLM's end in the trainer drives, in the process whose rank is 0:

        sender = WeightSender("it")
        engine = WeightTransferTrainerFactory.trainer_init(
            IPCTrainerInitInfo(rank=0), client=sender.client, source=ModuleSource(model)
        )
        sender.send(engine.send_weights, name="step-40")

    Trainers of several processes call `engine.send_weights` itself in the others. `deadline`, in
    seconds, bounds trainer_init's request, and each `send` that names no other. Raises WeightsError
    and UnsupportedError for a server that cannot be sent weights, and what `swapper_of` does.
    """

    def __init__(self, server: str, *, deadline: float = DEADLINE) -> None:
        self._server = server
        self._deadline = deadline
        self._layout = Layout.from_environment()
        self._thread: threading.Thread | None = None

        async def look() -> WeightSyncClient:
            running = await find_running(server, layout=self._layout)
            endpoints = transfer_endpoints(running.server, running.engine)
            return WeightSyncClient(endpoints, initialize=self._initialize)

        self.client = run_blocking(look, interrupts=Interrupts(), name=_THREAD)

    def world_size(self) -> int:
        """The number of the server's processes that receive: NCCL's world without the trainer."""
        endpoints = self.client.endpoints
        reply = self._run(lambda swapper: swapper.ask(endpoints.world_size), Interrupts())
        return endpoints.read_world_size(reply)

    def send(
        self,
        send_weights: Callable[[], object],
        *,
        name: str,
        in_flight: InFlight = "drain",
        deadline: float | None = None,
    ) -> Swapped:
        """Swap in what `send_weights` sends by way of `client`, under `name`.

        It is called on a thread of its own, on the caller's GPU, once the requests in flight have
        ended ("drain") or have been aborted ("abort"). The weights are on no disk: samples name
        them `sent-…-name`, and after a restart the server has the last ones that were on a disk.

        Raises WeightsError if sender or server fail, or after `deadline` seconds; the error says
        which weights the server has now. A sender that hangs in NCCL cannot be stopped: its
        thread is abandoned, and this process can send nothing more. Ctrl-C undoes the swap.
        """
        self._require_free()
        device = _current_device()

        async def load(weights: Weights, *, send: Send) -> None:  # noqa: ARG001
            async with self.client.open(send) as line:
                await line.until_sent(self._start(send_weights, device))

        with interrupts_deferred() as interrupts:
            return self._run(
                lambda swapper: swapper.receive(
                    name,
                    load,
                    in_flight=in_flight,
                    deadline=self._deadline if deadline is None else deadline,
                ),
                interrupts,
            )

    def _initialize(self, init_info: Mapping[str, Any]) -> None:
        request = self.client.endpoints.init(init_info)

        async def ask(swapper: WeightSwapper) -> None:
            try:
                async with asyncio.timeout(self._deadline):
                    await ask_about_transfer(swapper.ask, request, endpoints=self.client.endpoints)
            except TimeoutError:
                raise WeightsError(
                    f"{self._server} and the trainer did not meet within {self._deadline:g} s",
                    fix="see that address, port and world_size are right, and start both again",
                    kind="deadline",
                ) from None

        self._run(ask, Interrupts())

    def _run(
        self, work: Callable[[WeightSwapper], Awaitable[Result]], interrupts: Interrupts
    ) -> Result:
        async def swapping() -> Result:
            async with swapper_of(self._server, layout=self._layout) as swapper:
                return await work(swapper)

        return run_blocking(swapping, interrupts=interrupts, name=_THREAD)

    def _require_free(self) -> None:
        if self._thread is None:
            return
        self._thread.join(_GRACE)
        if self._thread.is_alive():
            raise WeightsError(
                "nothing can be sent: the sender of an earlier transfer still hangs",
                why="it was abandoned when its deadline had passed",
                fix="start the trainer again from its last checkpoint",
                kind="hanging",
            )

    def _start(self, send_weights: Callable[[], object], device: int | None) -> Future[None]:
        done: Future[None] = Future()

        def run() -> None:
            done.set_running_or_notify_cancel()
            try:
                if device is not None:
                    sys.modules["torch"].cuda.set_device(device)  # each thread has its own
                send_weights()
            except BaseException as error:  # noqa: BLE001 - it is raised where somebody waits
                done.set_exception(error)
            else:
                done.set_result(None)

        # the interpreter's end does not wait for one that hangs
        self._thread = threading.Thread(target=run, name="enginehouse-sender", daemon=True)
        self._thread.start()
        return done


def _current_device() -> int | None:
    """The caller's GPU, after all of its pending work; None without CUDA."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    torch.cuda.synchronize()
    device: int = torch.cuda.current_device()
    return device
