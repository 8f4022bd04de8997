"""Which checkpoints and adapters below a folder are finished. Blocking; reads no weights.

Nobody says when a trainer is done with a folder, so every sign is looked at: names that writers
use meanwhile, files shorter than their own heads say, shards that an index names and that are not
there, and any change between two looks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError, ModelError
from enginehouse.provisioning.checkpoints import read_checkpoint
from enginehouse.provisioning.digests import chat_template_digest, weights_digest
from enginehouse.results.curve import Kind
from enginehouse.store.layout import Layout

MAY_CHANGE = "it may be written to still"  # it is whole, but has not been so for long
_ADAPTER = "adapter_config.json"
_BESIDE_WEIGHTS = ("config.json", "tokenizer.json")
_MODEL = re.compile(r".*\.safetensors|(pytorch_)?model.*\.bin")
_ADAPTED = re.compile(r"adapter_model\..*")
_TEMPORARY = re.compile(
    r"(^|[-_.])(tmp|temp|temporary|partial|incomplete)([-_.\d]|$)|(~|\.part|\.aria2|\.crdownload)$",
    re.IGNORECASE,
)
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.(safetensors|bin)")
_LARGEST_HEAD = 100_000_000  # bytes; safetensors' own limit
_LOG = re.compile(r"\.log$|^events\.out\.")  # may grow for as long as the training goes on

State = tuple[tuple[str, int, int, int], ...]  # of each file: name, size, time, inode


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that is whole and has not changed for a while. `state` is what its files are like.

    `step` is the last number in its name.
    """

    name: str
    path: Path
    kind: Kind
    step: int | None
    state: State


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that is not finished, what it is to be (None: it does not show), and why not."""

    name: str
    path: Path
    kind: Kind | None
    why: str


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """What there was at a time of the lookout's clock, the finished in order of age."""

    at: float
    finished: tuple[Finished, ...]
    waiting: tuple[Waiting, ...]

    def of(self, kind: Kind) -> tuple[Path, ...]:
        """Every folder of that kind, finished or not."""
        finished = [found.path for found in self.finished if found.kind is kind]
        return (*finished, *(w.path for w in self.waiting if w.kind is kind))


class Lookout:
    """Looks at a folder's subfolders again and again; remembers what each was like."""

    def __init__(
        self, folder: Path, *, settle: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`settle`: seconds for which a folder must not have changed."""
        self._folder = folder
        self._settle = settle
        self._clock = clock
        self._seen: dict[str, tuple[State, float]] = {}

    def look(self) -> Look:
        """What is there. A folder that is not there yet is an empty one.

        Raises ConfigurationError for one that cannot be read.
        """
        now = self._clock()
        finished, waiting = [], []
        folders = _subfolders(self._folder)
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


def step_of(name: str) -> int | None:
    """The last number in a folder's name, as in checkpoint-500."""
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else None


def state_of(folder: Path) -> State:
    """What a folder's files are like, logs left out. Raises OSError."""
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file() and not _LOG.search(entry.name):
                status = entry.stat()
                files.append((entry.name, status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(sorted(files))


def content_digest(found: Finished, *, layout: Layout) -> str:
    """The digest of its weights and configuration; and of a checkpoint's tokenizer and template.

    That of its files' names, sizes and times for a folder without weights that can be read: enough
    to know it again. Raises OSError, of which FileNotFoundError says that it changes meanwhile.
    """
    names = {name for name, *_ in found.state}
    try:
        if found.kind is Kind.ADAPTER:
            tensors = [name for name in sorted(names) if name.startswith("adapter_model")]
            files = [found.path / name for name in (_ADAPTER, *tensors)]
            return weights_digest(files, layout=layout)
        weights = read_checkpoint(found.path).weights
        beside = [found.path / name for name in _BESIDE_WEIGHTS if name in names]
        digest = weights_digest([*weights, *beside], layout=layout)
        template = chat_template_digest(found.path).digest
    except (ModelError, UnicodeDecodeError):
        return f"unreadable-{hash_of(found.state)}"
    return hashlib.sha256(f"{digest} {template}".encode()).hexdigest()


def hash_of(state: State) -> str:
    """A digest of what files are like."""
    return hashlib.sha256(msgspec.json.encode(state)).hexdigest()


def _subfolders(folder: Path) -> list[Path]:
    """By age, the oldest first; not links such as `latest`, which are there under another name."""
    try:
        with os.scandir(folder) as listed:
            entries = list(listed)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be watched", why=str(error), fix="give the folder of the checkpoints"
        ) from error
    found: list[tuple[int, str]] = []
    parent = folder.resolve()
    for entry in entries:
        with suppress(OSError):
            if entry.is_dir() and not (
                entry.is_symlink() and Path(entry.path).resolve().parent == parent
            ):
                found.append((entry.stat().st_mtime_ns, entry.name))
    return [folder / name for _, name in sorted(found)]


def _judge(folder: Path, names: set[str]) -> tuple[Kind | None, str | None]:
    """What a folder is to be (None: something else), and why it is not finished."""
    if _ADAPTER in names:
        kind, config, weights = Kind.ADAPTER, _ADAPTER, _ADAPTED
    elif "config.json" in names or any(map(_MODEL.fullmatch, names)):
        kind, config, weights = Kind.CHECKPOINT, "config.json", _MODEL
    else:
        return None, None
    if folder.name.startswith(".") or _TEMPORARY.search(folder.name):
        return kind, "its name is a temporary one"
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
        return f"{config} is not whole"
    if why := _missing_shards(folder, names):
        return why
    for name in sorted(names):
        if name.endswith(".safetensors") and (lacking := _lacking(folder / name)):
            return f"{name} is not whole: {lacking}"
    return None


def _missing_shards(folder: Path, names: set[str]) -> str | None:
    """Savers write the index last, so the shards' own names are asked, too."""
    shards: Counter[tuple[str, ...]] = Counter()
    for name in sorted(names):
        if name.endswith((".safetensors.index.json", ".bin.index.json")):
            index = _json(folder / name)
            if index is None or not isinstance(index.get("weight_map"), dict):
                return f"{name} is not whole"
            if missing := sorted({str(file) for file in index["weight_map"].values()} - names):
                more = f" (nor are {len(missing) - 1} more)" if len(missing) > 1 else ""
                return f"{missing[0]} is not there yet{more}"
        if shard := _SHARD.fullmatch(name):
            shards[shard.groups()] += 1
    for (stem, count, _), there in shards.items():
        if there < int(count):
            return f"only {there} of {int(count)} files of {stem} are there"
    return None


def _lacking(file: Path) -> str | None:
    """What a safetensors file lacks of what its head promises; a head that is nonsense is whole.

    8 bytes: the head's length N; N bytes of JSON; the values at the offsets that it names
    (https://github.com/huggingface/safetensors#format).
    """
    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length == 0:
            return "it has no head yet"
        if length > _LARGEST_HEAD:
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
