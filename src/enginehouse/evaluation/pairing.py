"""Whether two runs asked the same: some differences are errors, others are warnings."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.messages import ChatPrompt
from enginehouse.core.sampler import Provenance
from enginehouse.core.sampling import SamplingParameters
from enginehouse.evaluation.ledger import ASKED, Ledger, TaskLedger
from enginehouse.evaluation.records import DatasetRecord, EvaluationSpec, Record, SampleRecord
from enginehouse.evaluation.summary import judges_of, settings_for
from enginehouse.store.journal import read_journal
from enginehouse.store.runs import Run

_SET_ASIDE = 0  # digest of what is unknown, or differs between models (token ids)
_NO_SEED = -1
_ANSWERER = {
    "engine": "engines",
    "engine_version": "engine versions",
    "chat_template_digest": "chat templates",
}
_DIGESTS = {"weights_digest": "weights", "chat_template_digest": "chat template"}
_SETTINGS = {
    "system": "system messages",
    "reasoning": "uses of reasoning",
    "reasoning_end": "ends of reasoning",
}
_HARNESS_SETTINGS = {
    "system": "system messages",
    "temperature": "temperatures",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_tokens": "max_tokens",
}
"""There, no request says how it was sampled."""
_DATA = (
    ("version", "task versions", "evaluate one again: prompts or scoring differ"),
    ("digest", "data (by SHA-256)", "evaluate both on the same data, with the same --seed"),
    ("full_size", "sizes of the data", "evaluate both on the same data"),
    ("items", "numbers of items", "evaluate both with the same --limit and --seed"),
    ("samples", "numbers of samples per item", "evaluate both with the same --samples"),
    ("headline", 'meanings of "correct"', "evaluate one again"),
)


class Questions:
    """What was asked of one task, in a few bytes per sample: digests of ids and prompts, seeds.

    The system message is not part of a prompt's digest; it is compared as an option.
    """

    def __init__(self, record: DatasetRecord) -> None:
        self.items: NDArray[np.uint64] = np.zeros(record.items, np.uint64)
        self.prompts: NDArray[np.uint64] = np.zeros(record.items, np.uint64)
        self.seeds: NDArray[np.int64] = np.full((record.items, record.samples), _NO_SEED, np.int64)
        self.parameters: SamplingParameters | None = None

    def add(self, record: SampleRecord) -> None:
        """Take one sample into account."""
        position = record.position
        if not self.items[position]:
            self.items[position] = _digest(record.item.encode())
        if record.exchange is not None and not self.prompts[position]:
            self.prompts[position] = _digest(record.exchange.prompt.encode())
        if not record.requests:
            return
        request = record.requests[0]
        self.seeds[position, record.repeat] = (
            _NO_SEED if request.parameters.seed is None else request.parameters.seed
        )
        if self.parameters is None:
            # a schema belongs to a step of tool calling, and steps are compared as an option
            self.parameters = msgspec.structs.replace(
                request.parameters, seed=None, structured=None
            )
        if isinstance(request.prompt, ChatPrompt) and not self.prompts[position]:
            asked = [m for m in request.prompt.messages if m.role != "system"]
            self.prompts[position] = _digest(msgspec.json.encode(asked))


@dataclass
class Reading:
    """A run's journal, added up: its ledger, and what was asked of each task."""

    run: Run
    ledger: Ledger = field(default_factory=Ledger)
    questions: dict[str, Questions] = field(default_factory=dict)

    @property
    def spec(self) -> EvaluationSpec:
        """The run's settings; only for a run that has begun."""
        assert self.ledger.header is not None
        return self.ledger.header.spec

    @property
    def provenances(self) -> list[Provenance]:
        """Who answered."""
        return [s.record.provenance for s in self.ledger.sessions.values() if s.answered]


def read_run(run: Run) -> Reading:
    """Read a run's journal once, keeping no sample. Raises StoreError. Blocking."""
    reading = Reading(run)
    for entry in read_journal(run.journal_path, Record):
        record = entry.record
        reading.ledger.add(record, offset=entry.offset)
        if isinstance(record, DatasetRecord):
            if record.harness is not None or record.task not in reading.questions:
                reading.questions[record.task] = Questions(record)
        elif isinstance(record, SampleRecord):
            reading.questions[record.task].add(record)
    return reading


def common_tasks(a: Reading, b: Reading) -> list[str]:
    """The tasks of both, each whole in both and asked in the same way; of groups, their parts.

    Raises ConfigurationError, naming what differs: the two are one run; no task in common; samples
    missing; another task version, data, number of items or samples, other items or prompts.
    """
    require_two_runs(a, b)
    common = [
        name for name, task in a.ledger.tasks.items() if task.states and name in b.ledger.tasks
    ]
    if not common:
        raise ConfigurationError(
            "the runs have no task in common",
            why="; ".join(f"{r.run.info.id}: {', '.join(r.run.info.tasks)}" for r in (a, b)),
            fix="compare runs of the same tasks",
        )
    for name in common:
        require_pairs(name, a, b)
    return common


def require_two_runs(a: Reading, b: Reading) -> None:
    """Raise ConfigurationError unless the two are different runs, which have both begun."""
    if a.run.folder.samefile(b.run.folder):
        raise ConfigurationError(
            f"both are run {a.run.info.id}", fix="name two different runs; `enginehouse runs`"
        )
    for reading in (a, b):
        _require_begun(reading)


def require_pairs(name: str, a: Reading, b: Reading) -> None:
    """Raise ConfigurationError unless a task of both is whole in both and asked in the same way."""
    _require_same_data(a.ledger.tasks[name].record, b.ledger.tasks[name].record)
    for reading in (a, b):
        _require_whole(reading.ledger.tasks[name], reading.run)
    _require_same_questions(name, a, b)


def warnings(a: Reading, b: Reading, tasks: Iterable[str]) -> Iterator[str]:
    """What differs between the runs besides the weights, or is not known to be the same."""
    for name in dict.fromkeys([*a.ledger.tasks, *b.ledger.tasks]):
        if name not in a.ledger.tasks or name not in b.ledger.tasks:
            yield f"task {name} is only in run {'A' if name in a.ledger.tasks else 'B'}"
    for attribute, what in _ANSWERER.items():
        one, other = (
            sorted({_shown(v) for p in r.provenances if (v := getattr(p, attribute)) is not None})
            for r in (a, b)
        )
        if one and other and one != other:
            yield f"different {what}: A {', '.join(one)}, B {', '.join(other)}"
    for attribute, what in _DIGESTS.items():
        for label, reading in (("A", a), ("B", b)):
            missing = [p for p in reading.provenances if getattr(p, attribute) is None]
            if missing:
                why = missing[0].unknown.get(attribute)
                yield f"unknown {what} in {label}" + (f": {why}" if why else "")
    yield from _differing_harnesses(a, b, tasks)
    yield from _differing_judges(a, b, tasks)
    yield from _differing_settings(a, b, tasks)
    if a.spec.tool_steps != b.spec.tool_steps:
        steps_a, steps_b = (", ".join(reading.spec.tool_steps) for reading in (a, b))
        yield f"different tool steps: A {steps_a}; B {steps_b}"
    yield from _differing_sampling(a, b, tasks)


def _differing_judges(a: Reading, b: Reading, tasks: Iterable[str]) -> Iterator[str]:
    one, other = (
        ", ".join(p.model for p in judges_of(reading.ledger, *tasks)) or "none"
        for reading in (a, b)
    )
    if one != other:
        yield f"different judges: A {one}, B {other}"
    elif a.spec.judge and b.spec.judge:
        for option in ("temperature", "top_p", "max_tokens"):
            first, second = (getattr(reading.spec.judge, option) for reading in (a, b))
            if first != second:
                yield f"different {option} of the judge: A {first}, B {second}"


def _differing_harnesses(a: Reading, b: Reading, tasks: Iterable[str]) -> Iterator[str]:
    differences: defaultdict[str, list[str]] = defaultdict(list)
    for name in tasks:
        one, other = (reading.ledger.tasks[name].record.harness for reading in (a, b))
        if one and other and one.version != other.version:
            what = f"different versions of {one.name}: A {one.version}, B {other.version}"
            differences[what].append(name)
    for text, names in differences.items():
        yield f"{text} ({', '.join(names)})"


def _differing_settings(a: Reading, b: Reading, tasks: Iterable[str]) -> Iterator[str]:
    """What differs between the tasks' settings that does not show in the requests' parameters."""
    differences: defaultdict[str, list[str]] = defaultdict(list)
    for name in tasks:
        record = a.ledger.tasks[name].record
        one, other = settings_for(record, a.spec), settings_for(record, b.spec)
        for option, what in (_HARNESS_SETTINGS if record.harness else _SETTINGS).items():
            first, second = getattr(one, option), getattr(other, option)
            if first != second:
                differences[f"different {what}: A {first!r}, B {second!r}"].append(name)
    for text, names in differences.items():
        yield text if names == list(tasks) else f"{text} ({', '.join(names)})"


def _require_same_data(a: DatasetRecord, b: DatasetRecord) -> None:
    for attribute, what, fix in _DATA:
        one, other = (_shown(getattr(record, attribute)) for record in (a, b))
        if one != other:
            raise ConfigurationError(
                f"the runs have different {what} of {a.task}",
                why=f"A {one}, B {other}: the samples cannot be paired",
                fix=fix,
            )


def _shown(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == hashlib.sha256().digest_size * 2 else text


def _require_begun(reading: Reading) -> None:
    header, run = reading.ledger.header, reading.run
    unbegun = (
        [t.name for t in header.spec.tasks if t.name not in reading.ledger.tasks] if header else []
    )
    if header is None or unbegun:
        raise ConfigurationError(
            f"run {run.info.id} is not complete",
            why=f"{', '.join(unbegun)} is missing" if unbegun else "it has asked nothing yet",
            fix=f"{_completing(run)}, then compare",
        )


def _completing(run: Run) -> str:
    return "wait until it ends" if run.is_held() else f"`enginehouse resume {run.info.id}`"


def _require_whole(task: TaskLedger, run: Run) -> None:
    if missing := sum(task.counts[: ASKED + 1]):
        raise ConfigurationError(
            f"run {run.info.id} is not complete",
            why=f"{missing:,} of {len(task.states):,} samples of {task.record.task} are missing; "
            "those that are there may be the easy ones",
            fix=f"{_completing(run)}, then compare",
        )


def _require_same_questions(name: str, a: Reading, b: Reading) -> None:
    one, other = a.questions[name], b.questions[name]
    pairs = (
        ("items", one.items, other.items),
        ("prompts", one.prompts, other.prompts),
    )
    for what, first, second in pairs:
        known = (first != _SET_ASIDE) & (second != _SET_ASIDE)
        if differing := int((first != second)[known].sum()):
            seeds = f"; the runs' seeds are {a.spec.seed} and {b.spec.seed}"
            raise ConfigurationError(
                f"the runs asked different {what} of {name}",
                why=f"{differing:,} of {len(first):,} differ"
                + (seeds if a.spec.seed != b.spec.seed else ""),
                fix="evaluate both with the same --limit and --seed",
            )


def _differing_sampling(a: Reading, b: Reading, tasks: Iterable[str]) -> Iterator[str]:
    differences: defaultdict[str, list[str]] = defaultdict(list)
    for name in tasks:
        one, other = a.questions[name], b.questions[name]
        if one.parameters is None or other.parameters is None:
            continue
        for option in one.parameters.__struct_fields__:
            first, second = getattr(one.parameters, option), getattr(other.parameters, option)
            if first != second:
                differences[f"different {option}: A {first}, B {second}"].append(name)
        if max(one.parameters.temperature, other.parameters.temperature) == 0:
            continue
        by_item = "answers are paired by item only"
        if _NO_SEED in one.seeds or _NO_SEED in other.seeds:
            differences[f"an engine does not support seeds: {by_item}"].append(name)
        elif (one.seeds != other.seeds).any():
            seeds = f"A {a.spec.seed}, B {b.spec.seed}"
            differences[f"different seeds (--seed: {seeds}): {by_item}"].append(name)
    for text, names in differences.items():
        yield f"{text} ({', '.join(names)})"


def _digest(data: bytes) -> int:
    """A 64-bit digest, never 0."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1
