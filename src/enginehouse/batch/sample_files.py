"""Files of samples: one JSON object per line, which running the same command again completes."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from enginehouse.batch.prompt_files import PromptId, PromptLine
from enginehouse.core.errors import ConfigurationError, StoreError
from enginehouse.report.visible_text import visible_json, write_plain
from enginehouse.store.journal import Journal, Repair
from enginehouse.store.layout import Layout

_LOCK_WAIT = 0.3  # seconds
_BEGINNING = b'{"id":'


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Who answered. `weights` is the digest of the model's weights; None means unknown."""

    model: str
    engine: str | None
    engine_version: str | None
    weights: str | None


class SampleLine(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one prompt, identified by its id: `n` texts, or an error message.

    `digest` identifies the prompt and its sampling parameters. `seconds` is how long the answer
    took. Token counts are the engine's own; those of the completion are summed over the texts.
    `weights` is the digest of the model's weights. Unknown facts about the engine are None.
    """

    id: str | int
    digest: str
    texts: tuple[str, ...] = ()
    finish_reasons: tuple[str | None, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    error: str | None = None
    model: str
    engine: str | None
    engine_version: str | None
    weights: str | None


class PrintedSamples:
    """Samples on standard output."""

    def write(self, line: SampleLine) -> None:
        """Print a line immediately."""
        write_plain(sys.stdout, visible_json(msgspec.json.encode(line).decode()) + "\n")


class _Existing(msgspec.Struct):
    answered: dict[PromptId, str]
    failed: set[PromptId]
    source: Source | None


class SampleFile:
    """A locked file of samples; unchanged until `begin`.

    `answered` maps the ids that do not have to be asked again to their digests.
    """

    def __init__(self, path: Path, existing: _Existing) -> None:
        self.path = path
        self.answered: Mapping[PromptId, str] = existing.answered
        self._existing = existing
        self._journal: Journal | None = None

    def begin(self) -> Repair | None:
        """Remove the failed samples, and move an incomplete last line aside.

        Returns what was moved, or None. Raises StoreError.
        """
        if self._existing.failed:
            _drop(self._existing.failed, self.path)
        self._journal = Journal(self.path, first=SampleLine)
        return self._journal.repair

    def write(self, line: SampleLine) -> None:
        """Append a line, which survives kill -9 once this returns. Raises StoreError."""
        assert self._journal is not None, "begin first"
        self._journal.append(line)

    def close(self) -> None:
        """Close it. Idempotent."""
        if self._journal is not None:
            self._journal.close()

    def require_same_prompts(self, prompts: Sequence[PromptLine]) -> None:
        """Raise ConfigurationError if a prompt that was answered, or its parameters, changed."""
        digests = {prompt.id: prompt.digest for prompt in prompts}
        for known, digest in self.answered.items():
            if known not in digests:
                raise self._other(f"it has an answer to {known!r}, which is not among the prompts")
            if digests[known] != digest:
                raise self._other(f"the prompt or the parameters of {known!r} have changed")

    def require_same_source(self, source: Source) -> None:
        """Raise ConfigurationError if a different model answered before."""
        for name in ("model", "engine", "weights"):
            before, now = getattr(self._existing.source, name, None), getattr(source, name)
            if before is not None and now is not None and before != now:
                raise self._other(f"its {name} was {before} and is now {now}")

    def _other(self, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.path} has samples of something else",
            why=why,
            fix="choose another --out, or repeat the original command; nothing was changed",
        )


@contextmanager
def sample_file(path: Path, *, layout: Layout) -> Iterator[SampleFile]:
    """A file of samples, which is created if it does not exist. Blocks.

    Raises StoreError if it cannot be written, is something else, or is in use by another process.
    """
    path = path.expanduser().absolute()
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
    layout.locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(layout.locks / f"{name}.lock")
    try:
        lock.acquire(timeout=_LOCK_WAIT, poll_interval=0.02)
    except Timeout:
        raise StoreError(
            f"another process is writing {path}",
            fix="wait until it ends, or choose another --out",
        ) from None
    try:
        with closing(SampleFile(path, _read(path))) as file:
            yield file
    finally:
        lock.release()


def _read(path: Path) -> _Existing:
    found = _Existing({}, set(), None)
    if path.exists() and not path.is_file():
        raise StoreError(f"{path} is not a file", fix="choose another --out; - prints the samples")
    decoder = msgspec.json.Decoder(SampleLine)
    try:
        with path.open("a+b") as file:
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    _require_torn(line, number, path)
                    break
                try:
                    sample = decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    raise _foreign(path, number, str(error)) from error
                _add(sample, number, path, found)
    except OSError as error:
        fix = "check its folder and permissions"
        raise StoreError(f"cannot write {path}", why=error.strerror, fix=fix) from error
    return found


def _add(sample: SampleLine, number: int, path: Path, found: _Existing) -> None:
    if sample.id in found.answered or sample.id in found.failed:
        raise _foreign(path, number, f"the id {sample.id!r} is used twice")
    if sample.error is None:
        found.answered[sample.id] = sample.digest
        found.source = Source(
            model=sample.model,
            engine=sample.engine,
            engine_version=sample.engine_version,
            weights=sample.weights,
        )
    else:
        found.failed.add(sample.id)


def _require_torn(line: bytes, number: int, path: Path) -> None:
    """Raise StoreError for an incomplete last line that is not the beginning of a sample."""
    if not (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
        raise _foreign(path, number, "it does not begin like a sample")


def _foreign(path: Path, number: int, why: str) -> StoreError:
    return StoreError(
        f"{path}, line {number} is not a sample",
        why=why,
        fix="choose another --out, or repair the file; nothing was changed",
    )


def _drop(ids: set[PromptId], path: Path) -> None:
    """Replace the file atomically by one without these samples.

    An incomplete last line stays. If the path is a symlink, its target is replaced.
    """
    decoder = msgspec.json.Decoder(_Id)
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.new")
    try:
        with path.open("rb") as old, temporary.open("wb") as new:
            for line in old:
                if not line.endswith(b"\n") or decoder.decode(line).id not in ids:
                    new.write(line)
        shutil.copymode(path, temporary)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"cannot rewrite {path}", why=error.strerror, fix="make room or check the permissions"
        ) from error


class _Id(msgspec.Struct):
    id: PromptId
