"""A Tinker service with a fake trainer and a fake sampling engine, and a plain client of it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import numpy as np

from enginehouse.runtime.context import Context
from enginehouse.runtime.http_service import listening, running
from enginehouse.testing.fake_sampling import FakeSampling
from enginehouse.testing.fake_trainer import FakeTrainer
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.keys import KeyFile
from enginehouse.tinker.service import Service, open_service
from enginehouse.tinker.stores import Stores, open_stores
from enginehouse.tinker.wire.schema import messages

MODEL = "fake/bigram"
USERS = ("ada", "bob", "eve")


@dataclass
class House:
    """Where a service lives, and what it works with; `open` can be used again and again."""

    home: Path
    trainer: FakeTrainer = field(default_factory=lambda: FakeTrainer(base_model=MODEL))
    engine: FakeSampling = field(default_factory=FakeSampling)
    keys: dict[str, str] = field(default_factory=dict)

    @asynccontextmanager
    async def open(self, *, tidy_interval: float = 10.0, **settings: Any) -> AsyncIterator[Running]:
        """The service, on a free port, with a key for each of USERS."""
        if not self.keys:
            file = KeyFile(self.home / "keys.json")
            self.keys = {user: file.add(user) for user in USERS}
        config = TinkerConfig(base_model=MODEL, home=self.home, **settings)
        await self.trainer.start()
        context = Context()
        with listening(None, option="--port") as listener:
            async with (
                open_stores(config, context) as stores,
                open_service(
                    config,
                    context,
                    stores=stores,
                    trainer=self.trainer,
                    engine=self.engine,
                    tidy_interval=tidy_interval,
                ) as service,
                running(service.application, listener) as http,
                aiohttp.ClientSession(http.url, connector=aiohttp.TCPConnector(limit=0)) as web,
            ):
                yield Running(service, stores, web, self.keys)


class Running:
    """A running service; `client` gives a user's client of it."""

    def __init__(
        self, service: Service, stores: Stores, web: aiohttp.ClientSession, keys: dict[str, str]
    ) -> None:
        self.service = service
        self.stores = stores
        self.web = web
        self.url = str(web._base_url)
        self._keys = keys

    def client(self, user: str = "ada") -> Client:
        """A client with the user's key, and no session yet."""
        return Client(self.web, self._keys[user])


class RefusedError(Exception):
    """An answer that is not 200."""

    def __init__(self, status: int, content: Any) -> None:
        super().__init__(f"HTTP {status}: {content}")
        self.status = status
        self.content = content


class FailedError(Exception):
    """A future that failed; `category` says whose mistake it was."""

    def __init__(self, content: Any) -> None:
        super().__init__(content["error"])
        self.category = content["category"]


class Client:
    """One user's program. It numbers its jobs as the SDK does."""

    def __init__(self, web: aiohttp.ClientSession, key: str) -> None:
        self._web = web
        self._headers = {"X-API-Key": key, "Accept": "application/json, application/x-protobuf"}
        self.session = ""
        self._samples = 0

    async def post(self, route: str, body: Any = None, **headers: str) -> Any:
        """Post to /api/v1/`route`, or to a whole path. Raises RefusedError."""
        path = route if route.startswith("/") else f"/api/v1/{route}"
        content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        data = io.BytesIO(content) if len(content) > 1_000_000 else content
        async with self._web.post(path, data=data, headers=self._headers | headers) as reply:
            content = await reply.read()
            kind = reply.headers.get("content-type", "")
            answer = json.loads(content) if "json" in kind and content else content
            if reply.status >= 300:
                raise RefusedError(reply.status, answer)
            return answer

    async def get(self, path: str) -> Any:
        """As `post`, of a whole path."""
        async with self._web.get(path, headers=self._headers) as reply:
            if reply.status >= 300:
                raise RefusedError(reply.status, await reply.json())
            return await reply.json()

    async def begin(self) -> Self:
        """Make a session."""
        answer = await self.post("create_session", {"tags": [], "sdk_version": "0.38.0"})
        self.session = answer["session_id"]
        return self

    async def result(self, request_id: str) -> Any:
        """Wait for a future's answer; raises FailedError."""
        while True:
            answer = await self.post("retrieve_future", {"request_id": request_id})
            if isinstance(answer, dict) and answer.get("type") == "try_again":
                continue
            if isinstance(answer, dict) and "error" in answer:
                raise FailedError(answer)
            return answer

    async def done(self, route: str, body: Any, **headers: str) -> Any:
        """Post, and wait for the future."""
        answer = await self.post(route, body, **headers)
        return await self.result(answer["request_id"])

    async def create_model(self, *, number: int = 0, rank: int = 4, seed: int = 1) -> str:
        """A new model's id."""
        lora = {"rank": rank, "seed": seed}
        body = {
            "session_id": self.session,
            "model_seq_id": number,
            "base_model": MODEL,
            "lora_config": lora,
        }
        created = await self.done("create_model", body)
        return str(created["model_id"])

    async def compute(self, model_id: str, seq_id: int, tokens: Sequence[int]) -> Any:
        """A forward_backward of one sequence that predicts the next token; gives its metrics."""
        body = loss_request(model_id, seq_id, tokens)
        answer = await self.done("forward_backward", body, **PROTOBUF)
        output = messages().ForwardBackwardOutput()
        output.ParseFromString(answer)
        return dict(output.metrics)

    async def step(self, model_id: str, seq_id: int) -> Any:
        """An optim_step; gives its answer."""
        body = {"model_id": model_id, "seq_id": seq_id, "adam_params": {"learning_rate": 0.01}}
        return await self.done("optim_step", body)

    async def sampler(self, *, number: int = 0, path: str | None = None) -> str:
        """A sampling session of a checkpoint, or of the base model."""
        what = {"model_path": path} if path else {"base_model": MODEL}
        body = {"session_id": self.session, "sampling_session_seq_id": number, **what}
        answer = await self.post("create_sampling_session", body)
        return str(answer["sampling_session_id"])

    async def ask_sample(self, sampler: str, tokens: Sequence[int], **changes: Any) -> Any:
        """Ask for a sample; gives the future's id and those of the sequences."""
        changes = {"seq_id": self._samples, **changes}
        self._samples = max(self._samples, changes["seq_id"]) + 1
        return await self.post("asample", sample_request(sampler, tokens, **changes))

    async def sample(self, sampler: str, tokens: Sequence[int], **changes: Any) -> list[list[int]]:
        """The tokens of each sequence."""
        asked = await self.ask_sample(sampler, tokens, **changes)
        return tokens_of(await self.result(asked["request_id"]))


PROTOBUF = {"Content-Type": "application/x-protobuf"}


def tokens_of(payload: bytes) -> list[list[int]]:
    """The tokens of each sequence of a sample's answer."""
    response = messages().SampleResponse()
    response.ParseFromString(payload)
    return [np.frombuffer(s.tokens, np.int32).tolist() for s in response.sequences]


def sample_request(sampler: str, tokens: Sequence[int], **changes: Any) -> dict[str, Any]:
    """The body of asample: four tokens, with a seed."""
    return {
        "sampling_session_id": sampler,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": list(tokens)}]},
        "sampling_params": {"max_tokens": 4, "seed": 7},
        "type": "sample",
        **changes,
    }


def loss_request(
    model_id: str, seq_id: int, tokens: Sequence[int], *, targets: Sequence[int] | None = None
) -> bytes:
    """cross_entropy of one sequence, whose targets are by default its next tokens."""
    wire = messages()
    request = wire.ForwardBackwardRequest(model_id=model_id, seq_id=seq_id, loss_fn="cross_entropy")
    datum = request.data.add()
    chunk = datum.model_input.add()
    chunk.encoded_text.tokens = np.array(tokens[:-1], np.int32).tobytes()
    wanted = np.array(tokens[1:] if targets is None else targets, np.int64)
    datum.loss_fn_inputs["target_tokens"].CopyFrom(
        wire.Tensor(dtype=wire.DTYPE_INT64, shape=[len(wanted)], dense=wanted.tobytes())
    )
    weights = np.ones(len(wanted), np.float32)
    datum.loss_fn_inputs["weights"].CopyFrom(
        wire.Tensor(dtype=wire.DTYPE_FLOAT32, shape=[len(weights)], dense=weights.tobytes())
    )
    return bytes(request.SerializeToString())


async def until(condition: Any, *, patience: float = 10.0) -> None:
    """Let the service work until the condition holds."""
    async with asyncio.timeout(patience):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)
