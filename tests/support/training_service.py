"""A training queue with the files of a real service and a fake trainer, which can be killed."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from enginehouse.core.errors import TinkerError
from enginehouse.testing.fake_trainer import FakeTrainer
from enginehouse.tinker.checkpoints import CheckpointStore
from enginehouse.tinker.data import LossRequest, LossResult
from enginehouse.tinker.future import JSON, Future
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.limits import Limits
from enginehouse.tinker.records.entries import CheckpointRecord
from enginehouse.tinker.records.records import Records, sqlite_url
from enginehouse.tinker.trainers.base import Trainer
from enginehouse.tinker.training_queue import TrainingQueue
from enginehouse.tinker.wire.schema import messages

QUICK = Limits(resident=8, restart_delay=0.0)
VOCABULARY = 300
MODEL = "ses-1:train:0"


@dataclass(kw_only=True)
class TrainingService:
    """One life of the service, until it is drained or killed."""

    queue: TrainingQueue
    futures: Futures
    records: Records
    checkpoints: CheckpointStore
    trainer: Trainer
    notes: list[str] = field(default_factory=list)
    samplers: list[CheckpointRecord] = field(default_factory=list)
    patience: float = 20.0

    async def send(
        self,
        kind: str,
        model_id: str,
        seq_id: int,
        body: bytes | Mapping[str, Any],
        *,
        user: str = "ada",
        **details: Any,
    ) -> Future:
        """Accept a job and submit it, as a route does."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.queue.admit(user=user, model_id=model_id, seq_id=seq_id)
        future = await self.futures.accept(
            key=f"model:{model_id}:{seq_id}",
            kind=kind,
            user=user,
            body=content,
            content_type="application/x-protobuf"
            if isinstance(body, bytes)
            else "application/json",
            details={"model_id": model_id, "seq_id": seq_id, **details},
        )
        if future.take():
            self.queue.submit(future)
        return future

    async def create(self, model_id: str = MODEL, *, user: str = "ada", **config: Any) -> Future:
        """Send a create_model of rank 4."""
        session_id, _, number = model_id.split(":")
        body = {
            "session_id": session_id,
            "model_seq_id": int(number),
            "base_model": "fake/bigram",
            "lora_config": {"rank": 4, **config},
        }
        return await self.send("create_model", model_id, 0, body, user=user)

    async def forward_backward(
        self,
        seq_id: int,
        model_id: str = MODEL,
        *,
        user: str = "ada",
        seed: int | None = None,
        **changes: Any,
    ) -> Future:
        """Send a forward_backward of the data of a seed, by default its seq_id."""
        seed = seq_id if seed is None else seed
        body = a_batch(seed, model_id=model_id, seq_id=seq_id, **changes)
        forward_only = changes.get("forward_only", False)
        return await self.send(
            "forward_backward", model_id, seq_id, body, user=user, forward_only=forward_only
        )

    async def optim_step(
        self, seq_id: int, model_id: str = MODEL, *, user: str = "ada", **params: Any
    ) -> Future:
        """Send an optim_step with a learning rate of 0.01."""
        body = {
            "model_id": model_id,
            "seq_id": seq_id,
            "adam_params": {"learning_rate": 0.01, **params},
        }
        return await self.send("optim_step", model_id, seq_id, body, user=user)

    async def save(
        self,
        seq_id: int,
        path: str | None,
        model_id: str = MODEL,
        *,
        job: str = "save_weights",
        user: str = "ada",
        **more: Any,
    ) -> Future:
        """Send a job that saves, of any kind."""
        body = {"model_id": model_id, "seq_id": seq_id, "path": path, **more}
        return await self.send(job, model_id, seq_id, body, user=user)

    async def answer(self, future: Future) -> dict[str, Any]:
        """The JSON answer of a job, or the metrics of a forward_backward."""
        async with asyncio.timeout(self.patience):
            await self.futures.until_answered(future)
        if future.content_type == JSON:
            answer: dict[str, Any] = json.loads(future.payload)
            return answer
        output = messages().ForwardBackwardOutput.FromString(future.payload)
        return dict(output.metrics)

    async def train(self, model_id: str = MODEL, *, steps: int, user: str = "ada") -> None:
        """Send a whole training: in each step two chunks; and wait for its last checkpoint."""
        await self.create(model_id, user=user, seed=7)
        numbers = itertools.count(1)
        for _ in range(steps):
            await self.forward_backward(next(numbers), model_id, user=user)
            await self.forward_backward(next(numbers), model_id, user=user)
            await self.optim_step(next(numbers), model_id, user=user)
        await self.finish(next(numbers), model_id, user=user)

    async def train_once(self, seq_id: int, model_id: str = MODEL, **how: Any) -> None:
        """One step on one chunk, with this seq_id and the next."""
        assert "loss:sum" in await self.answer(await self.forward_backward(seq_id, model_id, **how))
        assert "metrics" in await self.answer(await self.optim_step(seq_id + 1, model_id))

    async def finish(self, seq_id: int, model_id: str = MODEL, *, user: str = "ada") -> None:
        """Save the last checkpoint, and wait for it."""
        await self.answer(await self.save(seq_id, "final", model_id, user=user))

    async def final_weights(self, model_id: str = MODEL) -> dict[str, bytes]:
        """Every bit of the last checkpoint's matrices."""
        weights = await self.weights(f"tinker://{model_id}/weights/final")
        return {name: matrix.tobytes() for name, matrix in weights.items()}

    async def weights(self, path: str) -> dict[str, NDArray[np.float32]]:
        """The matrices of a checkpoint."""
        folder = self.checkpoints.folder(await self.records.checkpoint(path, user=None))
        return load_file(folder / "adapter_model.safetensors")


@asynccontextmanager
async def training_service(
    home: Path, *, trainer: Trainer | None = None, limits: Limits = QUICK
) -> AsyncIterator[TrainingService]:
    """A service with its files in `home`. It ends as by kill -9, unless it was drained."""
    trainer = trainer or FakeTrainer(vocabulary=VOCABULARY)
    records = await Records.open(sqlite_url(home / "records.sqlite"))
    checkpoints = CheckpointStore(home / "checkpoints", records=records)
    await checkpoints.prepare()
    futures = Futures.open(home / "futures")
    notes: list[str] = []
    samplers: list[CheckpointRecord] = []

    async def remember(checkpoint: CheckpointRecord) -> None:
        samplers.append(checkpoint)

    queue = TrainingQueue(
        home / "models",
        trainer=trainer,
        futures=futures,
        records=records,
        checkpoints=checkpoints,
        limits=limits,
        notify=notes.append,
        on_sampler_saved=remember,
    )
    running = asyncio.create_task(queue.run())
    try:
        yield TrainingService(
            queue=queue,
            futures=futures,
            records=records,
            checkpoints=checkpoints,
            trainer=trainer,
            notes=notes,
            samplers=samplers,
        )
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await futures.close()
        await records.close()


class HeldTrainer(FakeTrainer):
    """Begins to compute when `go` is set, so that a test can have many jobs wait."""

    def __init__(self) -> None:
        super().__init__(vocabulary=VOCABULARY)
        self.go = asyncio.Event()

    @property
    def passes(self) -> list[tuple[str, ...]]:
        """The models of each forward and backward pass."""
        return [models for call, models in self.calls if call == "compute"]

    async def compute(self, requests: Sequence[LossRequest]) -> list[LossResult | TinkerError]:
        """See Trainer."""
        await self.go.wait()
        return await super().compute(requests)


class End:
    """The nth of all calls to what it was set for is never answered, though it may have its effect.

    That is how a kill of the whole service looks to whoever comes after it.
    """

    def __init__(self, *, last: int, had_effect: bool) -> None:
        self.reached = asyncio.Event()
        self._left = last
        self._had_effect = had_effect

    def set_for(self, part: Any, *names: str) -> None:
        """Count the calls of these methods as well."""
        for name in names:
            setattr(part, name, self._mortal(getattr(part, name)))

    def _mortal(self, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def mortal(*values: Any, **options: Any) -> Any:
            self._left -= 1
            result = await call(*values, **options) if self._left or self._had_effect else None
            if not self._left:
                self.reached.set()
                await asyncio.Event().wait()
            return result

        return mortal

    async def of(self, clients: Sequence[Coroutine[Any, Any, Any]]) -> None:
        """Have clients work until it is reached, or they are done."""
        work = asyncio.gather(*clients, return_exceptions=True)
        reached = asyncio.create_task(self.reached.wait())
        await asyncio.wait([work, reached], return_when=asyncio.FIRST_COMPLETED)
        work.cancel()
        reached.cancel()
        await asyncio.gather(work, reached, return_exceptions=True)


async def undisturbed(home: Path, *, steps: int) -> dict[str, bytes]:
    """The final weights of a training in which nothing happens."""
    async with training_service(home) as service:
        await service.train(steps=steps)
        return await service.final_weights()


def a_batch(
    seed: int,
    *,
    model_id: str,
    seq_id: int,
    datums: int = 1,
    length: int = 12,
    loss: str = "cross_entropy",
    forward_only: bool = False,
    targets: Sequence[int] | None = None,
    logprobs: Sequence[float] | None = None,
    advantages: Sequence[float] | None = None,
) -> bytes:
    """A forward_backward of random sequences, as the SDK sends it."""
    message = messages().ForwardBackwardRequest(
        model_id=model_id,
        seq_id=seq_id,
        loss_fn=loss,
        forward_only=forward_only,
    )
    numbers = np.random.default_rng(seed)
    for _ in range(datums):
        tokens = numbers.integers(0, VOCABULARY, length).astype(np.int32)
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = tokens.tobytes()
        following = np.roll(tokens, -1) if targets is None else targets
        inputs: dict[str, NDArray[Any]] = {"target_tokens": np.array(following, np.int64)}
        if loss == "cross_entropy":
            inputs["weights"] = np.ones(length, np.float32)
        else:
            inputs["logprobs"] = np.array(logprobs or [-5.7] * length, np.float32)
            inputs["advantages"] = np.array(advantages or [1.0] * length, np.float32)
        for name, values in inputs.items():
            tensor = datum.loss_fn_inputs[name]
            tensor.dtype = 2 if values.dtype == np.int64 else 1
            tensor.shape.extend(values.shape)
            tensor.dense = values.tobytes()
    return bytes(message.SerializeToString())
