"""A task and a sampler without a model, for tests of the runner."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from enginehouse.core.messages import ChatPrompt, Message, TokenPrompt
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Completion,
    Provenance,
    SampleRequest,
    SampleResponse,
    Timing,
    TokenLogprob,
)
from enginehouse.store.layout import Layout
from enginehouse.store.runs import Run, create_run
from enginehouse.tasks.base import (
    Choose,
    Dataset,
    Generate,
    Item,
    Measure,
    Outcome,
    Score,
    TaskInfo,
)

PROVENANCE = Provenance(
    engine="fake",
    engine_version="1",
    engine_arguments=(),
    environment=None,
    model="fake-model",
    weights_digest="w" * 64,
    chat_template_digest=None,
    base_url="http://127.0.0.1:1",
)


def dataset(size: int, *, full_size: int | None = None) -> Dataset:
    """Make `size` questions: how much is i + 1."""
    return Dataset(
        items=[Item(id=f"q{i}", data={"n": i}) for i in range(size)],
        source="made here",
        licence="CC0-1.0",
        digest="d" * 64,
        full_size=size if full_size is None else full_size,
    )


class AddOne:
    """Correct if the answer is n + 1; two instructions per item in the metric `parts`."""

    def __init__(self, name: str = "addone", *, version: int = 1) -> None:
        self.info = TaskInfo(
            name=name,
            version=version,
            description="adds one",
            kind="generate",
            headline="exact match",
            metrics=("parts",),
            licence="CC0-1.0",
            size=None,
            source="made here",
        )
        self.scored: list[str] = []

    def load(self, *, data: str | None, seed: int) -> Dataset:
        """Not used by the runner."""
        raise NotImplementedError

    def ask(self, item: Item) -> Generate:
        """One user message."""
        messages = (Message(role="user", content=f"{item.data['n']} + 1 = ?"),)
        return Generate(prompt=ChatPrompt(messages), max_tokens=64, stop=("\n",))

    def score_text(self, item: Item, text: str) -> Score:
        """Exact match; no number is unparsable."""
        self.scored.append(item.id)
        if not text.strip().isdigit():
            return Score(outcome=Outcome.UNPARSABLE, measures={"parts": Measure(1.0, 2.0)})
        right = int(text) == item.data["n"] + 1
        return Score(
            outcome=Outcome.CORRECT if right else Outcome.WRONG,
            measures={"parts": Measure(2.0 if right else 1.0, 2.0)},
            answer=text.strip(),
        )

    def score_choice(self, item: Item, loglikelihoods: Sequence[float]) -> Score:
        """Not this task."""
        raise NotImplementedError


class PickFirst(AddOne):
    """A choice between two continuations; the first is right."""

    def ask(self, item: Item) -> Choose:  # type: ignore[override]
        """A context that ends in a space."""
        return Choose(context=f"Item {item.data['n']} is ", continuations=("good", "not bad"))

    def score_choice(self, item: Item, loglikelihoods: Sequence[float]) -> Score:
        """The likeliest is the answer."""
        best = max(range(len(loglikelihoods)), key=loglikelihoods.__getitem__)
        outcome = Outcome.CORRECT if best == 0 else Outcome.WRONG
        return Score(outcome=outcome, measures={"acc": Measure(float(best == 0))}, answer=str(best))


def solve(request: SampleRequest) -> str:
    """The right answer to AddOne's question."""
    assert isinstance(request.prompt, ChatPrompt)
    return str(int(request.prompt.messages[-1].content.split()[0]) + 1)


def question(request: SampleRequest) -> int:
    """The n of AddOne's question."""
    assert isinstance(request.prompt, ChatPrompt)
    return int(request.prompt.messages[-1].content.split()[0])


class FakeSampler:
    """Answers with `reply(request)`: a text, a Completion, or an exception to raise.

    Token ids are the text's code points; the log-probability of a prompt token is -id / 100.
    """

    def __init__(
        self,
        reply: Callable[[SampleRequest], Any] = solve,
        *,
        capabilities: frozenset[Capability] = frozenset(Capability),
        pause: Callable[[], float] | None = None,
    ) -> None:
        self.capabilities = Capabilities(supports=capabilities)
        self.reply = reply
        self.pause = pause
        self.requests: list[SampleRequest] = []
        self.tokenized: Counter[str] = Counter()
        self.in_flight = 0
        self.most_in_flight = 0

    async def sample(self, request: SampleRequest) -> SampleResponse:
        """Answer after one turn of the loop, or after `pause()` seconds."""
        self.requests.append(request)
        started = 999.0 + len(self.requests)
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        try:
            await asyncio.sleep(self.pause() if self.pause else 0)
            return self._answer(request, started)
        finally:
            self.in_flight -= 1

    def _answer(self, request: SampleRequest, started: float) -> SampleResponse:
        logprobs = None
        if isinstance(request.prompt, TokenPrompt):
            ids = request.prompt.token_ids
            logprobs = (
                None,
                *(TokenLogprob(logprob=-i / 100, text=chr(i), token_id=i) for i in ids[1:]),
            )
            reply: Any = "x"
        else:
            reply = self.reply(request)
        if isinstance(reply, BaseException):
            raise reply
        if isinstance(reply, str):
            reply = Completion(text=reply, finish_reason="stop", token_ids=(1, 2))
        return SampleResponse(
            completions=(reply,),
            model="fake-model",
            request_id="r",
            prompt_tokens=7,
            completion_tokens=2,
            timing=Timing(started=started, elapsed=0.5),
            prompt_logprobs=logprobs,
        )

    def stream(self, request: SampleRequest) -> Any:
        """Not used by the runner."""
        raise NotImplementedError

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Code points, after a special token 0."""
        self.tokenized[text] += 1
        await asyncio.sleep(0)
        return (0, *map(ord, text)) if add_special_tokens else tuple(map(ord, text))


def new_run(layout: Layout, *tasks: str) -> Run:
    """An empty run."""
    return create_run(
        layout, model="fake-model", tasks=tasks or ("addone",), config="x: 1\n", versions={}
    )
