"""The fake itself: a Trainer in this process, which dies when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import ServerGoneError, TinkerError
from enginehouse.testing.fake_trainer.adapter import MODULES, FakeAdapter
from enginehouse.testing.fake_trainer.losses import LOSSES, loss_of
from enginehouse.tinker.data import AdamStep, Datum, LoraSpec, LossRequest, LossResult
from enginehouse.tinker.trainers.base import TrainerInfo

Call = Literal["create", "compute", "optim_step", "drop_gradients", "save", "load", "unload"]
_SEED = 20_261_130


@dataclass(frozen=True, kw_only=True)
class Death:
    """The trainer ends at the `number`th call (from 1) of that kind since it was made.

    `before` it has done anything, or `after` it has done all but answer.
    """

    call: Call
    number: int = 1
    moment: Literal["before", "after"] = "before"


class FakeTrainer:
    """logits(t) = (H + ΔH)(I + ΔM)(I + ΔQ)·E[t], with a LoRA on each of the three matrices.

    It predicts a token from the one before it, so a few steps of training show. It is a Trainer in
    every respect but speed. `deaths` are when it ends; `seconds_per_token` and `seconds_per_call`
    make it slow. `calls` lists what it was asked, with the model_ids: ("compute", ("a", "b")).
    Fails with AssertionError when a call comes before the last one has ended.
    """

    def __init__(
        self,
        *,
        base_model: str = "fake/bigram",
        vocabulary: int = 300,
        hidden: int = 16,
        max_length: int = 2048,
        deaths: Sequence[Death] = (),
        seconds_per_token: float = 0.0,
        seconds_per_call: float = 0.0,
    ) -> None:
        self.info = TrainerInfo(
            base_model=base_model,
            architecture="FakeForCausalLM",
            vocabulary_size=vocabulary,
            max_length=max_length,
            dtype="float32",
            device="cpu",
            batches=True,
            losses=LOSSES,
        )
        self.calls: list[tuple[Call, tuple[str, ...]]] = []
        self.starts = 0
        self._deaths = list(deaths)
        self._per_token, self._per_call = seconds_per_token, seconds_per_call
        self._hidden = hidden
        numbers = np.random.default_rng(_SEED)
        self._embeddings = numbers.normal(size=(vocabulary, hidden))
        self._head = numbers.normal(size=(vocabulary, hidden)) / hidden
        self._adapters: dict[str, FakeAdapter] = {}
        self._alive = False
        self._busy = False

    def kill(self) -> None:
        """End as by kill -9: every adapter in memory is lost."""
        self._alive = False
        self._adapters.clear()

    def die_at(self, death: Death) -> None:
        """End at a later call, counted from the trainer's making."""
        self._deaths.append(death)

    async def start(self) -> None:
        """See Trainer."""
        if not self._alive:
            self._alive = True
            self.starts += 1

    async def create(self, model_id: str, spec: LoraSpec) -> None:
        """See Trainer."""
        with self._call("create", model_id):
            await self._work()
            self._adapters[model_id] = FakeAdapter.fresh(
                spec, hidden=self._hidden, vocabulary=self.info.vocabulary_size
            )

    async def compute(self, requests: Sequence[LossRequest]) -> list[LossResult | TinkerError]:
        """See Trainer."""
        with self._call("compute", *(request.model_id for request in requests)):
            await self._work(sum(request.tokens for request in requests))
            results: list[LossResult | TinkerError] = []
            for request in requests:
                try:
                    results.append(self._compute(request))
                except TinkerError as error:
                    results.append(error)
            return results

    async def optim_step(self, model_id: str, step: AdamStep) -> Mapping[str, float]:
        """See Trainer."""
        with self._call("optim_step", model_id):
            await self._work()
            _require_finite(step)
            return self._adapter(model_id).step(step)

    async def drop_gradients(self, model_id: str) -> None:
        """See Trainer."""
        with self._call("drop_gradients", model_id):
            self._adapter(model_id).gradients = {}

    async def save(self, model_id: str, folder: Path, *, state: bool) -> None:
        """See Trainer."""
        with self._call("save", model_id):
            await self._work()
            self._adapter(model_id).save(folder, base_model=self.info.base_model, state=state)

    async def load(
        self, model_id: str, folder: Path, *, optimizer: bool, gradients: bool
    ) -> LoraSpec:
        """See Trainer."""
        with self._call("load", model_id):
            await self._work()
            adapter = FakeAdapter.load(folder, optimizer=optimizer, gradients=gradients)
            self._adapters[model_id] = adapter
            return adapter.spec

    async def unload(self, model_id: str) -> None:
        """See Trainer."""
        with self._call("unload", model_id):
            self._adapters.pop(model_id, None)

    async def close(self) -> None:
        """See Trainer."""
        self.kill()

    @contextmanager
    def _call(self, call: Call, *model_ids: str) -> Iterator[None]:
        assert not self._busy, "a trainer is for one caller at a time"
        self.calls.append((call, model_ids))
        number = sum(1 for name, _ in self.calls if name == call)
        if Death(call=call, number=number, moment="before") in self._deaths:
            self.kill()
        self._require_alive()
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
        if Death(call=call, number=number, moment="after") in self._deaths:
            self.kill()
        self._require_alive()

    def _require_alive(self) -> None:
        if not self._alive:
            raise ServerGoneError("the trainer ended with signal SIGKILL")

    async def _work(self, tokens: int = 0) -> None:
        if seconds := self._per_call + self._per_token * tokens:
            await asyncio.sleep(seconds)
            self._require_alive()

    def _adapter(self, model_id: str) -> FakeAdapter:
        try:
            return self._adapters[model_id]
        except KeyError:
            raise TinkerError(f"the trainer has no model {model_id}", status=404) from None

    def _compute(self, request: LossRequest) -> LossResult:
        adapter = self._adapter(request.model_id)
        if request.loss not in LOSSES:
            raise TinkerError(f"there is no loss {request.loss!r}; there are {', '.join(LOSSES)}")
        attention, mlp, head = (
            MODULES[flag] for flag in ("train_attn", "train_mlp", "train_unembed")
        )
        identity = np.eye(self._hidden)
        q, m = identity + adapter.delta(attention), identity + adapter.delta(mlp)
        unembed = self._head + adapter.delta(head)
        outputs: list[Mapping[str, NDArray[np.float32]]] = []
        total = 0.0
        slopes = {module: np.zeros(()) for module in MODULES.values()}
        for datum in request.data:
            targets = self._checked_targets(datum)
            states = [self._embeddings[datum.tokens]]
            states += [states[-1] @ q.T]
            states += [states[-1] @ m.T]
            logits = states[-1] @ unembed.T
            logits -= logits.max(axis=1, keepdims=True)
            everything = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            columns = targets.reshape(len(targets), -1)
            logprobs = np.take_along_axis(everything, columns, axis=1).reshape(targets.shape)
            value, slope = loss_of(request.loss, datum, logprobs, request.config)
            total += value
            outputs.append({"logprobs": logprobs.astype(np.float32)})
            # d logprob(k) / d logits = onehot(k) - probabilities
            spread = slope.reshape(columns.shape)
            by_logits = -np.exp(everything) * spread.sum(axis=1, keepdims=True)
            for place in range(columns.shape[1]):
                by_logits[np.arange(len(columns)), columns[:, place]] += spread[:, place]
            by_third = by_logits @ unembed
            by_second = by_third @ m
            slopes[head] = slopes[head] + by_logits.T @ states[2]
            slopes[mlp] = slopes[mlp] + by_third.T @ states[1]
            slopes[attention] = slopes[attention] + by_second.T @ states[0]
        if not np.isfinite(total):
            raise TinkerError("the loss is not finite", fix="check the log-probabilities")
        if request.backward:
            adapter.add_gradients(slopes)
        return LossResult(outputs=tuple(outputs), metrics={"loss:sum": total})

    def _checked_targets(self, datum: Datum) -> NDArray[Any]:
        size, length = self.info.vocabulary_size, len(datum.tokens)
        if not 0 < length <= self.info.max_length:
            raise TinkerError(
                f"a sequence has {length} tokens; from 1 to {self.info.max_length} are possible"
            )
        targets = datum.inputs.get("target_tokens")
        if targets is None or targets.ndim not in {1, 2} or len(targets) != length:
            raise TinkerError(f"a sequence of {length} tokens needs as many target_tokens")
        for name, ids in (("tokens", datum.tokens), ("target_tokens", targets)):
            if ids.size and not 0 <= ids.min() <= ids.max() < size:
                raise TinkerError(
                    f"{name} are outside the vocabulary: from {ids.min()} to {ids.max()}, and "
                    f"it has {size} tokens"
                )
        return targets.astype(np.int64)


def _require_finite(step: AdamStep) -> None:
    values = (step.learning_rate, step.beta1, step.beta2, step.eps)
    if not np.isfinite([*values, step.weight_decay, step.grad_clip_norm]).all():
        raise TinkerError("a parameter of the optimizer is NaN or infinite")
