"""Calls that have been answered before: by an interrupted session, or in another experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from enginehouse.arena.records import (
    JOURNAL_FORMAT,
    CallKey,
    CallRecord,
    HeaderRecord,
    MatchRecord,
    ModelSpec,
    ProvenanceRecord,
    Record,
)
from enginehouse.core.errors import StoreError
from enginehouse.core.sampler import Provenance
from enginehouse.store.journal import read_journal, read_record


def require_readable(header: HeaderRecord) -> None:
    """Raise StoreError for a journal that this version cannot read."""
    if header.format != JOURNAL_FORMAT:
        raise StoreError(
            f"the journal has format {header.format}; this version reads {JOURNAL_FORMAT}",
            fix="use the version of Enginehouse that wrote it (see run.json)",
        )


@dataclass
class Recordings:
    """Where in a journal the answers to calls are, by match; answers are read when needed."""

    path: Path
    header: HeaderRecord | None = None
    sessions: list[ProvenanceRecord] = field(default_factory=list)
    offsets: dict[int, dict[CallKey, int]] = field(default_factory=dict)
    ended: dict[int, bool] = field(default_factory=dict)
    """The matches that have ended, and whether they failed."""

    def call(self, key: CallKey) -> CallRecord | None:
        """The recorded answer, if there is one. Blocking, for the time of one read."""
        offset = self.offsets.get(key.match, {}).get(key)
        if offset is None:
            return None
        record = read_record(self.path, Record, offset=offset)
        assert isinstance(record, CallRecord)
        return record

    def add(self, record: Record, *, offset: int) -> None:
        """Note a record of the journal. Raises StoreError for one that this version cannot read."""
        if isinstance(record, CallRecord):
            if record.response is not None:
                self.offsets.setdefault(record.key.match, {})[record.key] = offset
        elif isinstance(record, MatchRecord):
            self.ended[record.match] = record.failure is not None
        elif isinstance(record, ProvenanceRecord):
            self.sessions.append(record)
        elif isinstance(record, HeaderRecord):
            require_readable(record)
            self.header = record

    def forget(self, match: int) -> None:
        """The match has ended: its calls are not needed any more."""
        self.offsets.pop(match, None)


def read_recordings(path: Path, *, keep: bool = False, keep_failed: bool = False) -> Recordings:
    """What a journal holds; nothing if there is no file. Raises StoreError. Blocking.

    The calls of matches that have ended are forgotten, unless `keep`, or `keep_failed` for those
    that failed.
    """
    recordings = Recordings(path)
    for entry in read_journal(path, Record):
        if recordings.header is None and not isinstance(entry.record, HeaderRecord):
            raise StoreError(
                f"{path} does not begin with its header",
                why="its first line was lost or moved, so the experiment's settings are unknown",
                fix="restore the file from a copy, or start a new experiment; nothing was changed",
            )
        recordings.add(entry.record, offset=entry.offset)
        if isinstance(entry.record, MatchRecord) and not (
            keep or (keep_failed and entry.record.failure)
        ):
            recordings.forget(entry.record.match)
    return recordings


@dataclass(frozen=True)
class Cassette:
    """Another experiment's recordings, which answer while nothing about a call has changed."""

    recordings: Recordings

    def call(
        self, key: CallKey, spec: ModelSpec, *, provenance: Provenance | None
    ) -> CallRecord | None:
        """The recorded answer, if the same model gave it; without `provenance`, one like it."""
        record = self.recordings.call(key)
        if record is None or self.recordings.header is None:
            return None
        session = self.recordings.sessions[record.provenance]
        models = {model.name: model for model in self.recordings.header.spec.models}
        then = models.get(session.model)
        if then is not None and then.parameters != spec.parameters:
            return None
        if provenance is not None and _weights(provenance) != _weights(session.provenance):
            return None
        return record

    def session(self, model: str) -> ProvenanceRecord | None:
        """Who last answered for the model of that name."""
        sessions = [s for s in self.recordings.sessions if s.model == model]
        return sessions[-1] if sessions else None


def _weights(provenance: Provenance) -> Mapping[str, str | None]:
    return {
        "model": provenance.model,
        "weights": provenance.weights_digest,
        "adapter": provenance.adapter_digest,
    }
