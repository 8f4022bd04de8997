"""Which checkpoints and adapters below a folder are finished. Blocking; reads no weights.

A trainer does not say when it is done with a folder, so several signs are checked: temporary
names, files shorter than their own headers say, missing shards that an index names, and any change
between two looks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError, ModelError
from enginehouse.provisioning.checkpoints import read_checkpoint
from enginehouse.provisioning.digests import chat_template_digest, weights_digest
from enginehouse.results.curve import Kind
from enginehouse.store.layout import Layout

MAY_CHANGE = "it may still be written to"  # it is complete, but changed recently
_ADAPTER = "adapter_config.json"
_BESIDE_WEIGHTS = ("config.json", "tokenizer.json")
_MODEL = re.compile(r".*\.safetensors|(pytorch_)?model.*\.bin")
_ADAPTED = re.compile(r"adapter_model\..*")
_TEMPORARY = re.compile(
    r"(^|[-_.])(tmp|temp|temporary|partial|incomplete)([-_.\d]|$)|(~|\.part|\.aria2|\.crdownload)$",
    re.IGNORECASE,
)
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.(safetensors|bin)")
_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_LOG = re.compile(r"\.log$|^events\.out\.")  # may grow for as long as the training goes on

State = tuple[tuple[str, int, int, int], ...]  # of each file: name, size, time, inode


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that is complete and has not changed for a while; `state` is that of its files.

    `step` is the last number in its name.
    """

    name: str
    path: Path
    kind: Kind
    step: int | None
    state: State


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that is not finished, and why; `kind` None if that cannot be seen yet."""

    name: str
    path: Path
    kind: Kind | None
    why: str


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """The folders at a time of the lookout's clock, finished ones in order of age."""

    at: float
    finished: tuple[Finished, ...]
    waiting: tuple[Waiting, ...]

    def of(self, kind: Kind) -> tuple[Path, ...]:
        """Every folder of that kind, finished or not."""
        finished = [folder.path for folder in self.finished if folder.kind is kind]
        return (*finished, *(w.path for w in self.waiting if w.kind is kind))


class Lookout:
    """Looks at a folder's subfolders repeatedly, and remembers the state of each."""

    def __init__(
        self,
        folder: Path,
        *,
        settle: float,
        include: Sequence[str] = (),
        ready_markers: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`settle`: seconds for which a folder must not have changed.

        `include`: patterns, one of which the name of a subfolder matches. `ready_markers`: files,
        one of which a finished folder has.
        """
        self._folder = folder
        self._include = include
        self._ready_markers = ready_markers
        self._settle = settle
        self._clock = clock
        self._seen: dict[str, tuple[State, float]] = {}

    def look(self) -> Look:
        """The subfolders now. A folder that does not exist yet counts as empty.

        Raises ConfigurationError for one that cannot be read.
        """
        now = self._clock()
        finished, waiting = [], []
        folders = [f for f in _subfolders(self._folder) if self._is_included(f.name)]
        for gone in self._seen.keys() - {folder.name for folder in folders}:
            del self._seen[gone]
        for folder in folders:
            try:
                state = state_of(folder)
                kind, why = _judge(folder, {name for name, *_ in state})
            except (FileNotFoundError, NotADirectoryError):  # it is being moved or removed
                self._seen.pop(folder.name, None)
                continue
            except OSError as error:
                self._seen.pop(folder.name, None)
                unreadable = Waiting(name=folder.name, path=folder, kind=None, why=str(error))
                waiting.append(unreadable)
                continue
            if kind is None:
                continue
            before, since = self._seen.get(folder.name, (None, now))
            if before != state:
                since = now
            self._seen[folder.name] = (state, since)
            if why is None and not self._is_marked(folder):
                why = f"it has no {' or '.join(self._ready_markers)} yet"
            if why is None and now - since < self._settle:
                why = MAY_CHANGE
            if why is None:
                finished.append(
                    Finished(
                        name=folder.name,
                        path=folder,
                        kind=kind,
                        step=step_of(folder.name),
                        state=state,
                    )
                )
            else:
                waiting.append(Waiting(name=folder.name, path=folder, kind=kind, why=why))
        return Look(at=now, finished=tuple(finished), waiting=tuple(waiting))

    def _is_included(self, name: str) -> bool:
        return not self._include or any(fnmatchcase(name, pattern) for pattern in self._include)

    def _is_marked(self, folder: Path) -> bool:
        markers = self._ready_markers
        return not markers or any((folder / marker).is_file() for marker in markers)


def step_of(name: str) -> int | None:
    """The last number in a folder's name, as in checkpoint-500."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def state_of(folder: Path) -> State:
    """The state of a folder's files except for logs. Raises OSError."""
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file() and not _LOG.search(entry.name):
                status = entry.stat()
                files.append((entry.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(sorted(files))


def content_digest(folder: Finished, *, layout: Layout) -> str:
    """The digest of its weights and configuration; and of a checkpoint's tokenizer and template.

    For a folder whose weights cannot be read: a digest of its files' names, sizes and times, enough
    to recognise it. Raises OSError; a FileNotFoundError means that the folder is being changed.
    """
    names = {name for name, *_ in folder.state}
    try:
        if folder.kind is Kind.ADAPTER:
            tensors = [name for name in sorted(names) if name.startswith("adapter_model")]
            files = [folder.path / name for name in (_ADAPTER, *tensors)]
            return weights_digest(files, layout=layout)
        weights = read_checkpoint(folder.path).weights
        beside = [folder.path / name for name in _BESIDE_WEIGHTS if name in names]
        digest = weights_digest([*weights, *beside], layout=layout)
        template = chat_template_digest(folder.path).digest
    except (ModelError, UnicodeDecodeError):
        return f"unreadable-{hash_of(folder.state)}"
    return hashlib.sha256(f"{digest} {template}".encode()).hexdigest()


def hash_of(state: State) -> str:
    """A digest of the state of files."""
    return hashlib.sha256(msgspec.json.encode(state)).hexdigest()


def _subfolders(folder: Path) -> list[Path]:
    """By age, the oldest first; without links such as `latest`, to others of them."""
    try:
        with os.scandir(folder) as listed:
            entries = list(listed)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be watched", why=str(error), fix="give the folder of the checkpoints"
        ) from error
    aged: list[tuple[int, str]] = []
    parent = folder.resolve()
    for entry in entries:
        with suppress(OSError):
            if entry.is_dir() and not (
                entry.is_symlink() and Path(entry.path).resolve().parent == parent
            ):
                aged.append((entry.stat().st_mtime_ns, entry.name))
    return [folder / name for _, name in sorted(aged)]


def _judge(folder: Path, names: set[str]) -> tuple[Kind | None, str | None]:
    """The kind of a folder (None: neither of them), and why it is not finished."""
    if _ADAPTER in names:
        kind, config, weights = Kind.ADAPTER, _ADAPTER, _ADAPTED
    elif "config.json" in names or any(map(_MODEL.fullmatch, names)):
        kind, config, weights = Kind.CHECKPOINT, "config.json", _MODEL
    else:
        return None, None
    if folder.name.startswith(".") or _TEMPORARY.search(folder.name):
        return kind, "its name is temporary"
    for name in sorted(names):
        if _TEMPORARY.search(name) or (name.startswith(".") and ".safetensors" in name):
            return kind, f"{name} is being written"
    if not any(map(weights.fullmatch, names)):
        return kind, "it has no weights yet"
    try:
        return kind, _incomplete(folder, names, config)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        return kind, str(error)


def _incomplete(folder: Path, names: set[str], config: str) -> str | None:
    if config not in names:
        return f"it has no {config} yet"
    if _json(folder / config) is None:
        return f"{config} is incomplete"
    if why := _missing_shards(folder, names):
        return why
    for name in sorted(names):
        if name.endswith(".safetensors") and (lacking := _lacking(folder / name)):
            return f"{name} is incomplete: {lacking}"
    return None


def _missing_shards(folder: Path, names: set[str]) -> str | None:
    """Savers write the index last, so the shards' own names are checked, too."""
    shards: Counter[tuple[str, ...]] = Counter()
    for name in sorted(names):
        if name.endswith((".safetensors.index.json", ".bin.index.json")):
            index = _json(folder / name)
            if index is None or not isinstance(index.get("weight_map"), dict):
                return f"{name} is incomplete"
            if missing := sorted({str(file) for file in index["weight_map"].values()} - names):
                more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
                return f"{missing[0]} is missing{more}"
        if shard := _SHARD.fullmatch(name):
            shards[shard.groups()] += 1
    for (stem, count, _), there in shards.items():
        if there < int(count):
            return f"only {there} of {int(count)} files of {stem} are there"
    return None


def _lacking(file: Path) -> str | None:
    """What a safetensors file lacks by its own header; one with a malformed header lacks nothing.

    8 bytes: the header's length N; N bytes of JSON; the values at the offsets that it names
    (https://github.com/huggingface/safetensors#format).
    """
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length == 0:
            return "it has no header yet"
        if length > _LARGEST_HEADER:
            return None
        if size < 8 + length:
            return f"{size:,} bytes of at least {8 + length:,}"
        try:
            head = json.loads(opened.read(length))
            head.pop("__metadata__", None)
            end = 8 + length + max((t["data_offsets"][1] for t in head.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            return None
    return f"{size:,} bytes of {end:,}" if size < end else None


def _json(path: Path) -> Mapping[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
