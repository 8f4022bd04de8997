"""The trainer over transformers: the program in payloads/trainer, in a process of its own."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from enginehouse.core.errors import (
    ModelError,
    ServerError,
    ServerGoneError,
    StartError,
    TinkerError,
)
from enginehouse.deployment.compute_type import is_quantized, stored_type, type_on_cpu
from enginehouse.diagnosis import diagnose_log, explained
from enginehouse.engines.options import DType
from enginehouse.engines.variables import inherited_variables
from enginehouse.processes.cpu import read_cpu
from enginehouse.processes.process import Command, Process, hold_process
from enginehouse.processes.usage import UsageMeter
from enginehouse.provisioning.checkpoints import read_checkpoint
from enginehouse.provisioning.environments import EngineEnvironment, find_environment
from enginehouse.provisioning.models import ResolvedModel, resolve_model
from enginehouse.provisioning.programs import PAYLOADS, new_log
from enginehouse.runtime.context import Context
from enginehouse.servers.gpu_memory import read_baseline, require_memory_back
from enginehouse.servers.readiness import describe_exit
from enginehouse.tinker.data import AdamStep, LoraSpec, LossRequest, LossResult
from enginehouse.tinker.trainers.base import TrainerInfo
from enginehouse.tinker.trainers.connection import Connection
from enginehouse.tinker.trainers.diagnosis import PROFILE
from enginehouse.tinker.trainers.installation import INSTALLATION
from enginehouse.tinker.trainers.messages import (
    Call,
    Compute,
    Create,
    DropGradients,
    Load,
    OptimStep,
    Outcome,
    Reply,
    Save,
    Unload,
    decode,
    encode,
)

BUSY_CORES = 0.1  # a trainer that waits uses less, one that computes more
_EXIT_WAIT = 5.0  # seconds from the end of a connection to that of its process
_Failed = TypeVar("_Failed", bound=ServerError)


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """How long a trainer is waited for, in seconds.

    It hangs when, during its start or a call, it has neither used a CPU (as it also does while a
    GPU computes) nor read nor logged anything for `idle`, or when a start takes longer than `start`
    or a call longer than `call`. It is looked at every `look`. `stop` lies between SIGTERM and
    SIGKILL.
    """

    start: float = 3600.0
    idle: float = 120.0
    call: float = 3600.0
    look: float = 1.0
    stop: float = 5.0


@dataclass(frozen=True, kw_only=True)
class TrainerProgram:
    """What the trainer's process is started with; `variant` is the accelerator it is built for."""

    command: Command
    model: ResolvedModel
    variant: str


async def prepare_trainer(
    base_model: str,
    *,
    context: Context,
    python: Path | None = None,
    variant: str | None = None,
    dtype: DType | None = None,
    threads: int | None = None,
) -> TrainerProgram:
    """Find or build the environment, find the model, choose a type; start nothing.

    `base_model` is a hub handle, a checkpoint's folder, a GGUF file or smollm2. `threads` None
    takes every core. Raises ConfigurationError, ProvisioningError and ModelError.
    """
    environment = await find_environment(
        INSTALLATION, python=python, version=None, variant=variant, context=context
    )
    model = await resolve_model(base_model, environment=environment, context=context)
    chosen = await asyncio.to_thread(_base_type, dtype, environment, model, context)
    argv = [str(environment.executable), str(PAYLOADS / "trainer")]
    argv += ["--model", model.path, "--base-model", base_model, "--dtype", chosen]
    argv += ["--device", "cpu" if environment.variant == "cpu" else "auto"]
    argv += ["--threads", str(threads)] if threads else []
    env = inherited_variables("HF_(HOME|HUB_OFFLINE)", "(CUDA|OMP|MKL|KMP|GOMP|PYTORCH)_.*")
    env |= {"PYTHONNOUSERSITE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return TrainerProgram(
        command=Command(argv=tuple(argv), env=env),
        model=model,
        variant=environment.variant,
    )


def _base_type(
    wanted: DType | None, environment: EngineEnvironment, model: ResolvedModel, context: Context
) -> DType:
    """The type of the base weights: but for float16, that of servers. Raises ModelError."""
    checkpoint = read_checkpoint(Path(model.path))
    if is_quantized(checkpoint):
        raise ModelError(
            f"{model.reference} is quantized, but adapters can only be trained on plain weights",
            fix="use the original checkpoint",
        )
    if wanted is not None:
        return wanted
    stored = stored_type(checkpoint)
    if stored == "float16":
        context.notify("training in float32: the weights are float16, in which gradients overflow")
        return "float32"
    if environment.variant != "cpu":
        return "auto"
    chosen = type_on_cpu(read_cpu(), stored=stored)
    context.notify(f"training in {chosen.dtype}: {chosen.reason}")
    return chosen.dtype


class HfTrainer:
    """See Trainer. The process ends with us, even if we are killed.

    A caller that is cancelled gives up its answer, not its call: what was asked is still done.
    """

    def __init__(
        self, program: TrainerProgram, *, context: Context, patience: Patience | None = None
    ) -> None:
        self.program = program
        self._context = context
        self._patience = patience or Patience()
        self._starts = 0
        self._info: TrainerInfo | None = None
        self._process: Process | None = None
        self._connection: Connection | None = None
        self._log: Path | None = None
        self._gpu_memory: Mapping[int, int] = {}
        self._end: ServerGoneError | None = None

    @property
    def info(self) -> TrainerInfo:
        """See Trainer."""
        assert self._info is not None, "known once it has started"
        return self._info

    @property
    def pid(self) -> int | None:
        """The id of its process; None if there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def log(self) -> Path | None:
        """The log of the last start."""
        return self._log

    async def start(self) -> None:
        """See Trainer."""
        if self._process is not None and self._end is None and self._process.exit_code() is None:
            return
        await self.close()
        began = time.monotonic()
        try:
            connection = await self._spawn()
            ready = await self._wait(connection.expect(), limit=self._patience.start)
        except BaseException as error:
            await self.close()
            if isinstance(error, ServerGoneError):
                raise _as(
                    StartError, error, f"the trainer did not start: {error.message}"
                ) from error
            raise
        info = decode(decode(ready, kind=Reply).value, kind=TrainerInfo)
        if self.program.model.source != "hub":
            info = msgspec.structs.replace(info, tokenizer=self.program.model.path)
        self._info = info
        self._context.notify(
            f"the trainer is ready after {time.monotonic() - began:.1f} s: "
            f"{self._info.architecture} in {self._info.dtype} on {self._info.device}"
        )

    async def create(self, model_id: str, spec: LoraSpec) -> None:
        """See Trainer."""
        await self._ask(Create(model_id=model_id, spec=spec))

    async def compute(self, requests: Sequence[LossRequest]) -> list[LossResult | TinkerError]:
        """See Trainer."""
        outcomes = await self._ask(Compute(requests=tuple(requests)), kind=list[Outcome])
        return [outcome.value() for outcome in outcomes]

    async def optim_step(self, model_id: str, step: AdamStep) -> Mapping[str, float]:
        """See Trainer."""
        metrics: dict[str, float] = await self._ask(
            OptimStep(model_id=model_id, step=step), kind=dict[str, float]
        )
        return metrics

    async def drop_gradients(self, model_id: str) -> None:
        """See Trainer."""
        await self._ask(DropGradients(model_id=model_id))

    async def save(self, model_id: str, folder: Path, *, state: bool) -> None:
        """See Trainer."""
        await self._ask(Save(model_id=model_id, folder=folder, state=state))

    async def load(
        self, model_id: str, folder: Path, *, optimizer: bool, gradients: bool
    ) -> LoraSpec:
        """See Trainer."""
        call = Load(model_id=model_id, folder=folder, optimizer=optimizer, gradients=gradients)
        spec: LoraSpec = await self._ask(call, kind=LoraSpec)
        return spec

    async def unload(self, model_id: str) -> None:
        """See Trainer."""
        await self._ask(Unload(model_id=model_id))

    async def close(self) -> None:
        """See Trainer. Raises StopError if a process, or its GPU memory, is still there."""
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if process is not None:
            await process.stop(grace=self._patience.stop)
        if connection is not None:
            await connection.close()
        if process is not None and self.program.variant == "cuda":
            await require_memory_back(process.pids(), baseline=self._gpu_memory)

    async def _spawn(self) -> Connection:
        self._starts += 1
        self._end = None
        self._log = new_log(self._context.layout, f"trainer-{self._starts}")
        if self.program.variant == "cuda":
            self._gpu_memory = await read_baseline()
        ours, theirs = socket.socketpair()
        with theirs:
            argv = (*self.program.command.argv, "--descriptor", str(theirs.fileno()))
            command = msgspec.structs.replace(self.program.command, argv=argv)
            try:
                with hold_process(command, log=self._log, inherited=(theirs.fileno(),)) as held:
                    self._process = held.begin()
            except BaseException:
                ours.close()
                raise
        self._context.notify(f"starting the trainer; log: {self._log}")
        self._connection = await Connection.over(ours)
        return self._connection

    async def _ask(self, call: Call, *, kind: Any = Any) -> Any:
        if self._end is not None:
            raise _as(ServerGoneError, self._end)
        if self._connection is None:
            raise ServerGoneError("the trainer is not running", fix="start it")
        answer = self._connection.ask(encode(call))
        reply: Reply = decode(await self._wait(answer, limit=self._patience.call), kind=Reply)
        if reply.failure is not None:
            raise reply.failure.error()
        return decode(reply.value, kind=kind)

    async def _wait(self, answer: asyncio.Future[bytes | None], *, limit: float) -> bytes:
        """The answer. Raises ServerGoneError when there will be none."""
        process = self._process
        assert process is not None
        began = worked = time.monotonic()
        effort, usage = None, UsageMeter()
        await asyncio.wait({answer}, timeout=self._patience.look)
        while not answer.done():
            cores, before, effort = usage.read(process.pids()).cpu, effort, process.effort()
            now = time.monotonic()
            if effort != before or (cores or 0) > BUSY_CORES:
                worked = now
            if now - worked > self._patience.idle:
                raise await self._gone(
                    process, f"it has not computed anything for {now - worked:.0f} s"
                )
            if now - began > limit:
                raise await self._gone(process, f"it has not answered for {limit:g} s")
            await asyncio.wait({answer}, timeout=self._patience.look)
        message = answer.result()
        if message is None:
            raise await self._gone(process)
        return message

    async def _gone(self, process: Process, hang: str | None = None) -> ServerGoneError:
        """End what is left of it; return why it is gone: it hangs, or it has ended by itself."""
        if self._process is not process:
            return ServerGoneError("the trainer was closed")
        deadline = time.monotonic() + (_EXIT_WAIT if hang is None else 0)
        while process.exit_code() is None and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)  # only the kernel knows
        code = process.exit_code()
        await process.stop(grace=0)
        log = self._log
        assert log is not None
        diagnosis = await asyncio.to_thread(diagnose_log, log, profile=PROFILE, exit_code=code)
        if hang is not None:
            error = ServerGoneError(f"the trainer hangs: {hang}")
        elif code is None:
            error = ServerGoneError("the trainer closed its connection")
        else:
            error = ServerGoneError(f"the trainer ended with {describe_exit(code)}")
        self._end = explained(error, diagnosis, log=log)
        return _as(ServerGoneError, self._end)


def _as(kind: type[_Failed], error: ServerError, message: str | None = None) -> _Failed:
    """The same error again, as another object, or of another class."""
    return kind(
        message or error.message,
        why=error.why,
        fix=error.fix,
        log=error.log,
        kind=error.kind,
        evidence=error.evidence,
    )
