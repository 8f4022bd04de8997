"""An experiment's journal: what has been played, what is missing, and what this session adds."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from enginehouse.arena.recordings import Recordings
from enginehouse.arena.records import (
    JOURNAL_FORMAT,
    CallRecord,
    ExperimentSpec,
    HeaderRecord,
    Record,
    RepairRecord,
)
from enginehouse.core.errors import ConfigurationError
from enginehouse.games.base import Game
from enginehouse.store.journal import Journal


class ExperimentJournal:
    """The journal of one experiment, open for appending.

    `calls` and the tokens are those that models answered in this session. Raises
    ConfigurationError if the journal was begun with another spec, or another version of the game.
    """

    def __init__(
        self,
        spec: ExperimentSpec,
        *,
        game: Game,
        run: str,
        journal: Journal,
        recordings: Recordings,
    ) -> None:
        self.recordings = recordings
        self.total = spec.matches * len(spec.pairings)
        self.calls = 0
        self.prompt_tokens = self.completion_tokens = 0
        self._journal = journal
        header = HeaderRecord(
            format=JOURNAL_FORMAT,
            run=run,
            game_version=game.info.version,
            measures=game.info.measures,
            spec=spec,
        )
        # as it will be read: JSON objects have no numbers as keys
        header = msgspec.json.decode(msgspec.json.encode(header), type=HeaderRecord)
        if recordings.header is None:
            self.write(header)
        if repair := journal.repair:
            self.write(RepairRecord(size=repair.size, kept=repair.kept.name))
        self._require_same(header)

    def _require_same(self, header: HeaderRecord) -> None:
        begun = self.recordings.header
        assert begun is not None
        changed = [
            name
            for name in header.spec.__struct_fields__
            if getattr(begun.spec, name) != getattr(header.spec, name)
        ]
        if begun.game_version != header.game_version:
            changed.append(f"version of {header.spec.game}")
        if changed:
            raise ConfigurationError(
                f"run {begun.run} was begun with another {', '.join(changed)}",
                why="its matches and new ones could not be compared",
                fix="resume it with its original settings, or start a new run",
            )

    @property
    def finished(self) -> int:
        """Matches that were played to their end."""
        return sum(not failed for failed in self.recordings.ended.values())

    @property
    def failed(self) -> int:
        """Matches that failed."""
        return sum(self.recordings.ended.values())

    def missing(self, *, retry_failed: bool = False) -> Iterator[int]:
        """The numbers of the matches that are still to be played."""
        ended = self.recordings.ended
        for number in range(self.total):
            if number not in ended or (retry_failed and ended[number]):
                yield number

    def write(self, record: Record) -> None:
        """Append a record. Raises StoreError."""
        self.recordings.add(record, offset=self._journal.append(record))

    def write_call(self, record: CallRecord) -> None:
        """Append a call, and count it if a model answered it now. Raises StoreError."""
        self.write(record)
        if record.response is not None and not record.replayed:
            self.calls += 1
            self.prompt_tokens += record.response.prompt_tokens
            self.completion_tokens += record.response.completion_tokens
