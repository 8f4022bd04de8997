"""What the fake remembers between requests."""

from __future__ import annotations

import asyncio
import time
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from enginehouse.testing.fake_engine.errors import ApiError, prompt_too_long, unknown_model
from enginehouse.testing.fake_engine.model import Model, weights_digest
from enginehouse.testing.fake_engine.requests import Sampling

DEFAULT_MODEL_LENGTH = 8192
DEFAULT_SEQUENCES = 256
SLEEP_TAGS = {"weights", "kv_cache"}


@dataclass
class Engine:
    """One fake engine: its arguments, its weights and its queue."""

    arguments: Namespace
    version: str
    model: Model
    token_latency: float
    adapters: dict[str, str] = field(default_factory=dict)
    adapter_paths: dict[str, str] = field(default_factory=dict)
    lost_adapters: set[str] = field(default_factory=set)
    weight_version: str = "default"
    sleeping: set[str] = field(default_factory=set)
    updating: bool = False
    half_sent: list[bytes] = field(default_factory=list)
    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.weights = weights_digest(self.arguments.model)
        self._awake = asyncio.Event()
        self._awake.set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._aborted = asyncio.Event()
        self._slots = asyncio.Semaphore(self.arguments.max_num_seqs or DEFAULT_SEQUENCES)

    @property
    def names(self) -> list[str]:
        """The base model's served names."""
        return self.arguments.served_model_name or [self.arguments.model]

    @property
    def max_model_len(self) -> int:
        """The longest prompt and answer together, in tokens."""
        return self.arguments.max_model_len or DEFAULT_MODEL_LENGTH

    def weights_of(self, model: str | None) -> str:
        """What identifies the weights that answer for `model`; ApiError 404 if there are none."""
        if model is None or model in self.names or model in self.lost_adapters:
            return self.weights
        if model in self.adapters:
            return f"{self.weights}+{self.adapters[model]}"
        raise unknown_model(model, [*self.names, *self.adapters])

    def budget(self, request: Sampling, *, prompt: int, default: int | None) -> int:
        """How many tokens the answer may have: vLLM cuts max_tokens to the room that is left."""
        limit = self.max_model_len
        wanted = default if request.max_tokens is None else request.max_tokens
        if wanted is not None and wanted > limit:
            raise ApiError(
                f"max_tokens={wanted} cannot be greater than max_model_len={limit}. Please "
                f"request fewer output tokens. (parameter=max_tokens, value={wanted})",
                parameter="max_tokens",
            )
        if prompt >= limit:
            raise prompt_too_long(prompt, limit)
        return limit - prompt if wanted is None else min(wanted, limit - prompt)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for one of --max-num-seqs places and hold it."""
        self.waiting += 1
        try:
            while True:
                await self._awake.wait()
                await self._slots.acquire()
                if not self.paused:
                    break
                self._slots.release()
        finally:
            self.waiting -= 1
        self.running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.running -= 1
            self._slots.release()
            if not self.running:
                self._idle.set()

    async def computed(self, seconds: float) -> bool:
        """Take so long inside a slot; false, and at once, if a pause aborts what runs."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return True
        aborted = self._aborted
        try:
            async with asyncio.timeout(seconds):
                await aborted.wait()
        except TimeoutError:
            return True
        return False

    @property
    def paused(self) -> bool:
        """Whether requests wait without being computed."""
        return not self._awake.is_set()

    async def pause(self, *, abort: bool) -> None:
        """Let requests wait from now on; return when those that run have ended."""
        self._awake.clear()
        if abort:
            self._aborted.set()
            self._aborted = asyncio.Event()
        await self._idle.wait()

    def resume(self) -> None:
        """Compute again."""
        self._awake.set()

    def metrics(self) -> str:
        """The metrics in Prometheus' text format, those that Enginehouse reads."""
        labels = f'engine="0",model_name="{self.names[0]}"'
        values = (
            ("num_requests_running", "gauge", self.running),
            ("num_requests_waiting", "gauge", self.waiting),
            ("kv_cache_usage_perc", "gauge", min(1.0, self.running / DEFAULT_SEQUENCES)),
            ("num_preemptions_total", "counter", 0),
            ("prompt_tokens_total", "counter", self.prompt_tokens),
            ("generation_tokens_total", "counter", self.generation_tokens),
        )
        lines = []
        for name, kind, value in values:
            family = name.removesuffix("_total") if kind == "counter" else name
            lines += [
                f"# HELP vllm:{family} Of the fake engine.",
                f"# TYPE vllm:{family} {kind}",
                f"vllm:{name}{{{labels}}} {float(value)}",
            ]
        lines.append("# TYPE vllm:request_success counter")
        lines += [
            f'vllm:request_success_total{{engine="0",finished_reason="{reason}",'
            f'model_name="{self.names[0]}"}} {float(self.finished[reason])}'
            for reason in ("stop", "length", "abort", "error")
        ]
        return "\n".join(lines) + "\n"
