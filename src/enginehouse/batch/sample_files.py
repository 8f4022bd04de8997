"""Files of samples: one JSON object a line, completed by the same command after any end."""

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
    """Who answered. `weights`: the digest of the model's weights; None is not known."""

    model: str
    engine: str | None
    engine_version: str | None
    weights: str | None


class SampleLine(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one prompt, named by its id: `n` texts, or an error in words.

    `digest` stands for the prompt and its sampling parameters. `seconds` is how long the answer
    took; tokens are the engine's own counts, the completion's summed over the texts. `weights` is
    the digest of the model's weights; who was asked is None as far as it is not known.
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
        """Print a line, at once."""
        write_plain(sys.stdout, visible_json(msgspec.json.encode(line).decode()) + "\n")


class _Existing(msgspec.Struct):
    answered: dict[PromptId, str]
    failed: set[PromptId]
    source: Source | None


class SampleFile:
    """A file of samples that nobody else writes meanwhile; unchanged until `begin`.

    `answered` maps the ids that need not be asked again to their digests.
    """

    def __init__(self, path: Path, existing: _Existing) -> None:
        self.path = path
        self.answered: Mapping[PromptId, str] = existing.answered
        self._existing = existing
        self._journal: Journal | None = None

    def begin(self) -> Repair | None:
        """Take out the failed samples; what a kill left half written is moved aside.

        Returns what was moved, or None. Raises StoreError.
        """
        if self._existing.failed:
            _drop(self._existing.failed, self.path)
        self._journal = Journal(self.path, first=SampleLine)
        return self._journal.repair

    def write(self, line: SampleLine) -> None:
        """Append a line; when it returns, the line survives kill -9. Raises StoreError."""
        assert self._journal is not None, "begin first"
        self._journal.append(line)

    def close(self) -> None:
        """Close it. Idempotent."""
        if self._journal is not None:
            self._journal.close()

    def demand_same_prompts(self, prompts: Sequence[PromptLine]) -> None:
        """Raise ConfigurationError if an answer here is to another prompt, or asked otherwise."""
        digests = {prompt.id: prompt.digest for prompt in prompts}
        for known, digest in self.answered.items():
            if known not in digests:
                raise self._other(f"it has an answer to {known!r}, which is none of the prompts")
            if digests[known] != digest:
                raise self._other(f"the prompt or the parameters of {known!r} are not as they were")

    def demand_same_source(self, source: Source) -> None:
        """Raise ConfigurationError if another model answered here."""
        for name in ("model", "engine", "weights"):
            before, now = getattr(self._existing.source, name, None), getattr(source, name)
            if before is not None and now is not None and before != now:
                raise self._other(f"its {name} was {before}, and is {now} now")

    def _other(self, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self.path} holds samples of something else",
            why=why,
            fix="choose another --out, or repeat the command as it was; nothing was changed",
        )


@contextmanager
def sample_file(path: Path, *, layout: Layout) -> Iterator[SampleFile]:
    """A file of samples, made if there is none.

    Raises StoreError if it cannot be written, is no file of samples, or is being written. Blocks.
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
        raise StoreError(f"{path} is no file", fix="choose another --out; - prints the samples")
    decoder = msgspec.json.Decoder(SampleLine)
    try:
        with path.open("a+b") as file:
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    _demand_torn(line, number, path)
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
        raise _foreign(path, number, f"the id {sample.id!r} comes a second time")
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


def _demand_torn(line: bytes, number: int, path: Path) -> None:
    """A last line without its end is what a kill leaves, unless it never was a sample."""
    if not (line.startswith(_BEGINNING) or _BEGINNING.startswith(line)):
        raise _foreign(path, number, "it does not begin as a sample does")


def _foreign(path: Path, number: int, why: str) -> StoreError:
    return StoreError(
        f"{path}, line {number} is no sample",
        why=why,
        fix="choose another --out, or repair the file; nothing was changed",
    )


def _drop(ids: set[PromptId], path: Path) -> None:
    """Replace the file by one without these samples; a kill leaves the one or the other.

    A torn last line stays. Through a symlink it is the file behind it that is replaced.
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
