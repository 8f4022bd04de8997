"""The server behind its HTTP routes: requests into jobs, adapters by name, counts."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

from hf_server import constraints
from hf_server.adapters import Adapters
from hf_server.batches import Batch, make_batch
from hf_server.compilers import Compilers
from hf_server.constraints import Constraints
from hf_server.errors import ApiError, refused
from hf_server.generation import Generator
from hf_server.memory import cache_tokens, plan_length
from hf_server.model import Model, load
from hf_server.options import Options
from hf_server.requests import Asked
from hf_server.rows import Job, Row, Sequence
from hf_server.text import Vocabulary

LOG = logging.getLogger("hf_server")
_LONG_TEXT = 20_000  # characters; longer texts are tokenized in a thread
_COMPILING = 4  # constraints at a time
_BUDGETS = {"cpu": 2048, "cuda": 8192}


class Service:
    """A loaded model that answers. Created by `start`, in a running event loop."""

    def __init__(
        self, options: Options, model: Model, tokenizer: Any, *, compilers: Compilers
    ) -> None:
        self.options = options
        self._compilers = compilers
        self._compiling = threading.Lock()
        # A pool of its own: slow constraints must not keep long texts from being encoded.
        self._threads = ThreadPoolExecutor(_COMPILING, thread_name_prefix="compiling")
        self.created = int(time.time())
        self.vocabulary = Vocabulary(tokenizer, ends=model.ends)
        self.adapters: dict[str, tuple[str, str]] = {}
        self._loading: set[str] = set()
        self._users: Counter[str | None] = Counter()
        self._model = model
        self._constraints: Constraints | None = None
        self._tokenizer = tokenizer
        budget = options.max_num_batched_tokens or _BUDGETS[model.device.type]
        self._batch: Batch = make_batch(
            model, self.vocabulary, most_rows=options.max_num_seqs, chunk=budget
        )
        self._batch.most_tokens = cache_tokens(
            options, device=model.device, bytes_per_token=self._batch.bytes_per_token
        )
        self._batch.clear()
        self.max_model_len = plan_length(
            options, model=model.longest, cache=self._batch.most_tokens
        )
        self._adapter_store = Adapters(
            model, most=options.max_loras, largest_rank=options.max_lora_rank
        )
        self.generator = Generator(
            self._batch,
            most_rows=options.max_num_seqs,
            budget=budget,
            vocabulary_size=model.vocabulary_size,
            processed=options.logprobs_mode == "processed_logprobs",
        )
        LOG.info(
            "%s tokens of context, %s rows at once, %s tokens of KV cache",
            self.max_model_len,
            options.max_num_seqs,
            self._batch.most_tokens or "any number of",
        )

    @classmethod
    def start(cls, options: Options, *, compilers: Compilers) -> Service:
        """Load the model; blocks. Raises what transformers and torch raise."""
        model, tokenizer = load(options)
        return cls(options, model, tokenizer, compilers=compilers)

    async def submit(self, asked: Asked, *, adapter: str | None) -> Job:
        """Start to answer, with the adapter of that key. Raises ApiError for a wrong request."""
        self._check_tokens(asked.sampling.stop_token_ids, param="stop_token_ids")
        self._check_tokens(asked.sampling.logprob_token_ids, param="logprob_token_ids")
        for name in ("logprobs", "prompt_logprobs"):
            if (getattr(asked.sampling, name) or 0) > self.options.max_logprobs:
                raise refused(
                    f"{name}: this server gives {self.options.max_logprobs} candidates per token "
                    "at most (--max-logprobs)",
                    param=name,
                )
        prompts = [await self._tokens(prompt) for prompt in asked.prompts]
        if asked.messages is not None:
            long = sum(len(m["content"]) for m in asked.messages) > _LONG_TEXT
            arguments = (self.vocabulary.render, asked.messages, asked.template or {})
            prompts = [
                await asyncio.to_thread(*arguments) if long else arguments[0](*arguments[1:])
            ]
        compiled = None
        if asked.constraint is not None:
            loop = asyncio.get_running_loop()
            compiled = await loop.run_in_executor(self._threads, self._compile, asked)
        job = Job(stream=asked.stream)
        for ids in prompts:
            self._add(job, asked, ids, adapter, compiled)
        self.generator.submit(job)
        return job

    def _add(
        self, job: Job, asked: Asked, ids: list[int], adapter: str | None, compiled: Any
    ) -> None:
        most = self._room(ids, asked.sampling.max_tokens)
        rows = [
            Row(
                job,
                index=len(job.rows) + at,
                prompt=ids,
                sampling=asked.sampling,
                most=most,
                vocabulary=self.vocabulary,
                adapter=adapter,
                matcher=None if compiled is None else constraints.matcher(compiled),
            )
            for at in range(asked.n)
        ]
        job.rows += rows
        size = self.options.max_num_seqs
        for start in range(0, len(rows), size):
            wanted = asked.sampling.prompt_logprobs
            job.prompts.append(Sequence(job, ids, rows[start : start + size], adapter, wanted))

    def _compile(self, asked: Asked) -> Any:
        with self._compiling:
            if self._constraints is None:
                self._constraints = Constraints(
                    self._tokenizer,
                    compilers=self._compilers,
                    vocabulary_size=self._model.vocabulary_size,
                    ends=self._model.ends,
                )
        assert asked.constraint is not None
        return self._constraints.compile(asked.constraint)

    def _room(self, ids: list[int], wanted: int | None) -> int:
        """How many tokens the answer may have; the messages are vLLM's."""
        longest = self.max_model_len
        if not ids:
            raise refused("the prompt has no tokens", param="prompt")
        self._check_tokens(ids, param="prompt")
        if len(ids) >= longest:
            raise refused(
                f"This model's maximum context length is {longest} tokens. However, the prompt "
                f"alone has {len(ids)} tokens. Please reduce its length.",
                param="prompt",
            )
        if wanted is not None and len(ids) + wanted > longest:
            raise refused(
                f"This model's maximum context length is {longest} tokens. However, you requested "
                f"{wanted} output tokens and your prompt contains {len(ids)} input tokens. Please "
                "reduce the length of the input prompt or the number of requested output tokens.",
                param="max_tokens",
            )
        return wanted or longest - len(ids)

    def _check_tokens(self, ids: Iterable[int], *, param: str) -> None:
        if (largest := max(ids, default=0)) >= self._model.vocabulary_size:
            raise refused(f"Token id {largest} is out of vocabulary", param=param)

    async def _tokens(self, prompt: str | tuple[int, ...]) -> list[int]:
        if not isinstance(prompt, str):
            return list(prompt)
        return await self.tokenize(prompt, add_special_tokens=True)

    async def tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The token ids of a text."""
        if len(text) > _LONG_TEXT:
            return await asyncio.to_thread(
                self.vocabulary.encode, text, add_special_tokens=add_special_tokens
            )
        return self.vocabulary.encode(text, add_special_tokens=add_special_tokens)

    def adapter_of(self, name: str | None) -> str | None:
        """PEFT's key of the adapter that a model name stands for; None for the model itself."""
        if name is None or name == self.options.served_model_name:
            return None
        if name not in self.adapters:
            raise ApiError(404, f"The model `{name}` does not exist.", param="model")
        return self.adapters[name][0]

    @contextmanager
    def using(self, name: str | None) -> Iterator[str | None]:
        """`adapter_of(name)`, which is not unloaded before the end of the block."""
        key = self.adapter_of(name)
        self._users[key] += 1
        try:
            yield key
        finally:
            self._users[key] -= 1

    async def load_adapter(self, name: str, path: str) -> None:
        """Serve an adapter under a name. Raises ApiError; vLLM's messages."""
        if name in {*self.adapters, *self._loading, self.options.served_model_name}:
            raise refused(f"The lora adapter '{name}' has already been loaded.", param="lora_name")
        self._loading.add(name)
        try:
            key = await self.generator.call(lambda: self._adapter_store.load(name, path))
        finally:
            self._loading.remove(name)
        self.adapters[name] = (key, path)
        LOG.info("adapter %s is %s", name, path)

    async def unload_adapter(self, name: str) -> None:
        """Stop serving an adapter after its requests in flight. Raises ApiError (404)."""
        if name not in self.adapters:
            raise ApiError(404, f"The lora adapter '{name}' cannot be found.", param="lora_name")
        key, _ = self.adapters.pop(name)
        while self._users[key]:  # noqa: ASYNC110 - polled by one waiter
            await asyncio.sleep(0.05)
        await self.generator.call(lambda: self._adapter_store.unload(key))
        del self._users[key]


def describe() -> str:
    """The libraries, for the log."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"
