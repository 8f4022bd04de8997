"""The running state of an evaluation: its journal, added up record by record.

The same code reads a journal again and follows one that is being written. It holds 9 bytes per
sample and 16 bytes per sample and metric, so that memory hardly grows with the run.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from enginehouse.core.errors import StoreError
from enginehouse.evaluation.records import (
    JOURNAL_FORMAT,
    DatasetRecord,
    HarnessEndRecord,
    HeaderRecord,
    JudgeRecord,
    ProvenanceRecord,
    ReasoningCount,
    Record,
    RepairRecord,
    SampleRecord,
    ScoreRecord,
)
from enginehouse.store.journal import read_journal
from enginehouse.tasks.base import Measure, Outcome

MISSING, ASKED = 0, 1
_LONGEST_REASON = 200  # characters
_MOST_REASONS = 1000
CODES = {outcome: code for code, outcome in enumerate(Outcome, start=2)}
FAILED = CODES[Outcome.FAILED]
UNSCORED = CODES[Outcome.UNSCORED]


class MeasureColumn:
    """One metric's values and weights, flat over (items, repeats); weight 0 is absent."""

    def __init__(self, size: int) -> None:
        self.values: NDArray[np.float64] = np.zeros(size)
        self.weights: NDArray[np.float64] = np.zeros(size)

    def put(self, index: int, measure: Measure) -> None:
        """Set one sample's measure."""
        self.values[index] = measure.value
        self.weights[index] = measure.weight


class ReasoningColumn:
    """The words of each sample's reasoning, and whether it ended; flat over (items, repeats)."""

    def __init__(self, size: int) -> None:
        self.words: NDArray[np.int64] = np.zeros(size, np.int64)
        self.finished: NDArray[np.bool_] = np.ones(size, np.bool_)

    def put(self, index: int, count: ReasoningCount | None) -> None:
        """Set one sample's reasoning; None if it had none."""
        self.words[index] = count.words if count else 0
        self.finished[index] = count.finished if count else True


class TaskLedger:
    """One task: a state per sample (MISSING, ASKED, or an outcome's code) and its measures.

    `answers` has the journal's offset of each sample's answer, where there is one.
    """

    def __init__(self, record: DatasetRecord) -> None:
        self.record = record
        self.states = bytearray(record.items * record.samples)
        self.counts = [0] * (2 + len(CODES))
        self.counts[MISSING] = len(self.states)
        self.measures: dict[str, MeasureColumn] = {}
        self.answers = array("q", bytes(8 * len(self.states)))
        self.failures: Counter[str] = Counter()  # error classes, of every attempt
        self.unscored: Counter[str] = Counter()  # why answers have no score: the reasons
        self.reasoning: ReasoningColumn | None = None  # where an answer had reasoning
        self.judges: set[int] = set()  # ids of those that scored answers

    def index(self, record: SampleRecord | ScoreRecord) -> int:
        """Where the record's sample lies in `states`. Raises StoreError if nowhere."""
        if not (
            0 <= record.position < self.record.items and 0 <= record.repeat < self.record.samples
        ):
            raise StoreError(
                f"the journal has a sample of {record.task} outside the run",
                why=f"position {record.position}, repeat {record.repeat}",
            )
        return record.position * self.record.samples + record.repeat

    def set_state(self, index: int, state: int) -> None:
        """Replace a sample's state and discard its earlier measures."""
        before = self.states[index]
        self.counts[before] -= 1
        self.counts[state] += 1
        self.states[index] = state
        if before > ASKED:
            for column in self.measures.values():
                column.weights[index] = 0

    def put(self, index: int, measures: dict[str, Measure]) -> None:
        """Set a sample's measures."""
        for name, measure in measures.items():
            if (column := self.measures.get(name)) is None:
                column = self.measures[name] = MeasureColumn(len(self.states))
            column.put(index, measure)

    def put_reasoning(self, index: int, count: ReasoningCount | None) -> None:
        """Set a sample's reasoning; None if it had none."""
        if count is not None and self.reasoning is None:
            self.reasoning = ReasoningColumn(len(self.states))
        if self.reasoning is not None:
            self.reasoning.put(index, count)

    def begin_scoring(self, record: DatasetRecord) -> None:
        """Discard every score: a further record of the task's data was read. Raises StoreError."""
        before = self.record
        if (record.items, record.samples) != (before.items, before.samples):
            raise StoreError(f"the journal changes the size of {record.task} halfway")
        self.record = record
        self.measures.clear()
        self.unscored.clear()
        self.reasoning = None
        self.judges.clear()
        for index, state in enumerate(self.states):
            if state > ASKED and state != FAILED:
                self.set_state(index, ASKED)

    def discard(self, state: int) -> None:
        """Discard every score of one outcome; the answers wait to be scored again."""
        for index, known in enumerate(self.states):
            if known == state:
                self.set_state(index, ASKED)

    def state_table(self) -> NDArray[np.uint8]:
        """The states with shape (items, repeats), as they are now; not a copy."""
        shape = (self.record.items, self.record.samples)
        return np.frombuffer(self.states, dtype=np.uint8).reshape(shape)

    def counted(self) -> NDArray[np.bool_]:
        """Which samples have a score that counts, with shape (items, repeats)."""
        return has_score(self.state_table())

    def outcomes(self) -> dict[str, int]:
        """How many samples had each outcome; only harnesses' samples are measured."""
        return {
            outcome.value: self.counts[code]
            for outcome, code in CODES.items()
            if outcome is not Outcome.MEASURED or self.record.harness is not None
        }

    def is_at(self, record: SampleRecord | ScoreRecord, index: int) -> bool:
        """Whether the record's sample lies there.

        A replaced task's sample may lie nowhere.
        """
        where = record.position * self.record.samples + record.repeat
        return where == index and record.repeat < self.record.samples

    @property
    def is_measured(self) -> bool:
        """Whether a harness scored it by a scale that knows no right and wrong."""
        return self.counts[CODES[Outcome.MEASURED]] > 0

    @property
    def missing(self) -> int:
        """How many samples were not asked or not scored yet."""
        return sum(self.counts[: ASKED + 1])


def has_score(states: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a sample was answered and scored."""
    scored: NDArray[np.bool_] = (states > ASKED) & (states != FAILED) & (states != UNSCORED)
    return scored


@dataclass
class Session:
    """What one provenance's samples cost; `begin` and `end` in seconds since the epoch.

    `answered` counts its samples that did not fail. What harnesses asked for theirs is not in it.
    """

    record: ProvenanceRecord
    answered: int = 0
    begin: float = float("inf")
    end: float = float("-inf")
    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


@dataclass
class Ledger:
    """A whole run."""

    header: HeaderRecord | None = None
    sessions: dict[int, Session] = field(default_factory=dict)
    judges: dict[int, JudgeRecord] = field(default_factory=dict)
    repairs: list[RepairRecord] = field(default_factory=list)
    tasks: dict[str, TaskLedger] = field(default_factory=dict)
    harness_ends: list[HarnessEndRecord] = field(default_factory=list)

    def add(self, record: Record, *, offset: int) -> None:
        """Add one record. Raises StoreError for one that does not fit."""
        if isinstance(record, ScoreRecord):
            self._add_score(record)
        elif isinstance(record, SampleRecord):
            self._add_sample(record, offset)
        elif isinstance(record, DatasetRecord):
            task = self.tasks.get(record.task)
            if task is None or record.harness is not None:
                self.tasks[record.task] = TaskLedger(record)
            else:
                task.begin_scoring(record)
        elif isinstance(record, ProvenanceRecord):
            self.sessions[record.id] = Session(record)
        elif isinstance(record, JudgeRecord):
            self.judges[record.id] = record
        elif isinstance(record, RepairRecord):
            self.repairs.append(record)
        elif isinstance(record, HarnessEndRecord):
            self.harness_ends.append(record)
        else:
            if record.format != JOURNAL_FORMAT:
                raise StoreError(
                    f"the journal has format {record.format}; this version reads {JOURNAL_FORMAT}",
                    fix="use the version of Enginehouse that wrote it (see run.json)",
                )
            self.header = record

    def _add_sample(self, record: SampleRecord, offset: int) -> None:
        task = self._task(record)
        index = task.index(record)
        if record.failure is not None:
            task.set_state(index, FAILED)
            task.failures[record.failure.error] += 1
            return
        task.set_state(index, ASKED)
        task.answers[index] = offset
        if (session := self.sessions.get(record.provenance)) is None:
            raise StoreError(f"the journal has a sample of {record.task} without a provenance")
        session.answered += 1
        for response in record.responses:
            timing = response.timing
            session.begin = min(session.begin, timing.started)
            session.end = max(session.end, timing.started + timing.elapsed)
            session.requests += 1
            session.prompt_tokens += response.prompt_tokens
            session.generated_tokens += response.completion_tokens

    def _add_score(self, record: ScoreRecord) -> None:
        task = self._task(record)
        index = task.index(record)
        task.set_state(index, CODES[record.outcome])
        task.put(index, dict(record.measures))
        task.put_reasoning(index, record.reasoning)
        if record.judgement is not None:
            task.judges.add(record.judgement.judge)
        if record.failure is not None:
            reason = record.failure.message[:_LONGEST_REASON]
            task.unscored[reason if len(task.unscored) < _MOST_REASONS else "of other reasons"] += 1

    def waiting(self) -> Iterator[tuple[str, int]]:
        """Task and journal offset of every answer to our own questions that has no score yet."""
        for name, task in self.native.items():
            for index, state in enumerate(task.states):
                if state == ASKED:
                    yield name, task.answers[index]

    @property
    def native(self) -> dict[str, TaskLedger]:
        """The tasks that are asked here, not by a harness."""
        return {name: task for name, task in self.tasks.items() if task.record.harness is None}

    def is_whole(self, name: str, *, retry_failed: bool = False) -> bool:
        """Whether a harness's task and all its parts are there, scored, and none of it is missing.

        With `retry_failed` nothing of it may have failed, either.
        """
        task = self.tasks.get(name)
        if task is None or task.missing or (retry_failed and task.counts[FAILED]):
            return False
        parts = task.record.harness.parts if task.record.harness else ()
        return all(self.is_whole(part, retry_failed=retry_failed) for part in parts)

    def _task(self, record: SampleRecord | ScoreRecord) -> TaskLedger:
        try:
            return self.tasks[record.task]
        except KeyError:
            raise StoreError(
                f"the journal has a sample of {record.task} before that task's data"
            ) from None


def read_ledger(journal: Path) -> Ledger:
    """The journal's state so far; empty if there is no journal. Raises StoreError. Blocking."""
    ledger = Ledger()
    for entry in read_journal(journal, Record):
        if ledger.header is None and not isinstance(entry.record, HeaderRecord):
            raise StoreError(
                f"{journal} does not begin with its header",
                why="its first line was lost or moved, so the run's settings are unknown",
                fix="restore the file from a copy, or start a new run; nothing was changed",
            )
        ledger.add(entry.record, offset=entry.offset)
    return ledger
