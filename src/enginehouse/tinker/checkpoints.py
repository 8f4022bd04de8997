"""Where checkpoints are: folders written whole or not at all, and removed when they expire."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import Final

from enginehouse.core.errors import StoreError, TinkerError
from enginehouse.store.private import make_private
from enginehouse.tinker.checkpoint_paths import CheckpointPath
from enginehouse.tinker.free_space import is_scarce, kept_free
from enginehouse.tinker.records.entries import CheckpointRecord, ModelRecord
from enginehouse.tinker.records.records import Records

SHORTEST_TTL: Final = 3_600  # seconds
LONGEST_TTL: Final = 10 * 366 * 86_400  # seconds
_INCOMPLETE: Final = ".incomplete"
_EXPIRY_INTERVAL: Final = 60.0  # seconds
_SNAPSHOT_SHARE: Final = 0.1  # of the disk
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_log = logging.getLogger(__name__)


def expiry(ttl_seconds: int | None) -> datetime | None:
    """When something expires that lives so long from now on; None is never.

    Raises TinkerError (400) for what is not between an hour and ten years.
    """
    if ttl_seconds is None:
        return None
    if isinstance(ttl_seconds, bool) or not SHORTEST_TTL <= ttl_seconds <= LONGEST_TTL:
        raise TinkerError(
            f"ttl_seconds cannot be {ttl_seconds}",
            why=f"a checkpoint lives between {SHORTEST_TTL:,} seconds (an hour) and"
            f" {LONGEST_TTL:,} (ten years), or forever without it",
        )
    return datetime.now(UTC) + timedelta(seconds=ttl_seconds)


class Reservation:
    """A place for one new checkpoint: its writer makes `folder`, and then commits it."""

    def __init__(self, store: CheckpointStore, path: CheckpointPath, request_id: str) -> None:
        self._store = store
        self._request_id = request_id
        self.path = path
        self.folder = store.root / _INCOMPLETE / secrets.token_hex(8)

    async def commit(
        self,
        model: ModelRecord,
        *,
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, str] | None = None,
        unembed: bool | None = None,
    ) -> CheckpointRecord:
        """Make what was written the checkpoint of that path, at once and durably.

        `unembed` says whether the adapter has an output layer; by default, what `model` trains. A
        checkpoint that had the path is replaced, and its files are removed.
        """
        expires_at = expiry(ttl_seconds)
        place = f"{self.path.model_id}/{self.path.segment}/{self.path.name}~{self.folder.name}"
        size = await asyncio.to_thread(_move_durably, self.folder, self._store.root / place)
        record = CheckpointRecord(
            path=str(self.path),
            model_id=self.path.model_id,
            user=model.user,
            base_model=model.base_model,
            kind=self.path.kind,
            name=self.path.name,
            folder=place,
            created=datetime.now(UTC),
            size_bytes=size,
            spec=model.spec,
            unembed=model.spec.train_unembed if unembed is None else unembed,
            expires_at=expires_at,
            user_metadata=user_metadata or {},
            request_id=self._request_id,
        )
        # If this fails, the folder is left for `prepare` to remove: the record may be there.
        replaced = await self._store.records.add_checkpoint(record)
        if replaced is not None:
            await self._store.remove_files(replaced)
        return record


class CheckpointStore:
    """The folders of all checkpoints, below one folder.

    A checkpoint is there when its record says so. Its folder is never written to again: one that
    replaces it under the same path gets a folder of its own.
    """

    def __init__(self, root: Path, *, records: Records) -> None:
        self.root = root
        self.records = records
        self.warning: str | None = None
        """What the operator should know of the disk; see `watch_snapshots`."""

    async def prepare(self) -> None:
        """Make the folder, and remove what an earlier service left half done.

        Only for the one service that writes here, before it begins. Raises StoreError.
        """
        recorded = await self.records.checkpoint_folders()
        try:
            await asyncio.to_thread(_sweep, self.root, recorded)
        except OSError as error:
            raise StoreError(
                f"cannot use the folder of checkpoints {self.root}",
                why=error.strerror or str(error),
                fix="check its permissions and its disk",
            ) from error

    @asynccontextmanager
    async def reserve(
        self, path: CheckpointPath, *, request_id: str, overwrite: bool = False
    ) -> AsyncIterator[Reservation]:
        """A place for a checkpoint; what is not committed is removed.

        `request_id` names the job, so that one that is run again can find what it saved. Raises
        TinkerError if the path is taken and `overwrite` is False, if too little of the disk is
        free (see `kept_free`), and if it becomes full, here or in the trainer.
        """
        if await asyncio.to_thread(is_scarce, self.root, "work"):
            raise _disk_full(self.root)
        reservation = Reservation(self, path, request_id)
        if not overwrite:
            await self._require_free(path, request_id=request_id)
        try:
            yield reservation
        except (OSError, TinkerError) as error:
            if _is_full(error):
                raise _disk_full(self.root) from error
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, reservation.folder, ignore_errors=True)

    def folder(self, record: CheckpointRecord) -> Path:
        """A checkpoint's folder, with symbolic links resolved.

        Raises TinkerError if it is gone, or leads out of the store.
        """
        root = self.root.resolve()
        folder = (root / record.folder).resolve()
        if not folder.is_relative_to(root) or not folder.is_dir():
            raise TinkerError(
                f"the files of the checkpoint {record.path} are gone",
                why=f"{record.folder} is not a folder below {root}",
                fix="ask the operator of the service for a copy, or save it again",
                category="server",
                status=404,
            )
        return folder

    def files(self, record: CheckpointRecord) -> Sequence[str]:
        """The names of a checkpoint's files, relative to its folder, sorted. Blocking."""
        folder = self.folder(record)
        return sorted(file.relative_to(folder).as_posix() for file in _files(folder))

    def file(self, record: CheckpointRecord, name: str) -> Path:
        """One of a checkpoint's files. Raises TinkerError (404) for any other name."""
        folder = self.folder(record)
        file = folder / PurePosixPath(name)
        inside = file.resolve().is_relative_to(folder) and ".." not in file.parts
        if not inside or file.is_symlink() or not file.is_file():
            raise TinkerError(f"{record.path} has no file {name}", status=404)
        return file

    async def remove(self, path: str, *, user: str) -> None:
        """Delete a checkpoint of the user. Raises TinkerError (404)."""
        await self.remove_files(await self.records.remove_checkpoint(path, user=user))

    async def remove_files(self, record: CheckpointRecord) -> None:
        """Remove the files of a checkpoint that is no longer, or differently, recorded."""
        folder = self.root / record.folder
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def expire(self) -> Sequence[CheckpointRecord]:
        """Remove the files of checkpoints that have expired, and return their records.

        Nothing expires unless its owner said so, with ttl_seconds. Raises StoreError.
        """
        expired = await self.records.expired_checkpoints()
        for record in expired:
            await self.remove_files(record)
            await self.records.mark_removed(record)
            _log.info("removed the checkpoint %s, which expired", record.path)
        return expired

    async def expire_regularly(self) -> None:
        """Call `expire` and `watch_snapshots` every minute, until cancelled; errors are logged."""
        while True:
            try:
                await self.expire()
                await self.watch_snapshots()
            except (StoreError, OSError) as error:
                _log.warning("expired checkpoints were not removed: %s", error)
            await asyncio.sleep(_EXPIRY_INTERVAL)

    async def watch_snapshots(self) -> None:
        """Set `warning`, and log it, when snapshots without a name take a tenth of the disk.

        They live as long as their session: a long one may fill the disk. Raises StoreError.
        """
        held = await self.records.snapshot_storage()
        usage = await asyncio.to_thread(shutil.disk_usage, self.root)
        before, self.warning = self.warning, None
        if held.size_bytes < _SNAPSHOT_SHARE * usage.total:
            return
        self.warning = (
            f"{held.checkpoints} snapshots that were saved for a sampler without a name take "
            f"{held.size_bytes / 1e9:.1f} GB, and {usage.free / 1e9:.1f} GB of "
            f"{usage.total / 1e9:.1f} GB are free: they go an hour after their session has ended, "
            "or with --snapshot-ttl"
        )
        if before is None:
            _log.warning("%s", self.warning)

    async def copy(
        self,
        source: CheckpointRecord,
        *,
        to: ModelRecord,
        request_id: str,
        ttl_seconds: int | None = None,
    ) -> CheckpointRecord:
        """A copy under another model, of the same kind and name; files are shared if possible.

        It outlives its source, whose time to live it does not inherit.
        """
        path = CheckpointPath(to.model_id, source.kind, source.name)
        folder = self.folder(source)
        async with self.reserve(path, request_id=request_id) as reservation:
            await asyncio.to_thread(
                shutil.copytree, folder, reservation.folder, copy_function=_link_or_copy
            )
            return await reservation.commit(
                to,
                ttl_seconds=ttl_seconds,
                user_metadata=source.user_metadata,
                unembed=source.unembed,
            )

    async def _require_free(self, path: CheckpointPath, *, request_id: str) -> None:
        try:
            present = await self.records.checkpoint(str(path), user=None)
        except TinkerError:  # there is none, or it has expired
            return
        if present.request_id != request_id:
            raise TinkerError(
                f"the checkpoint {path} already exists",
                fix="choose another name, delete it, or save with overwrite=True",
            )


def _move_durably(source: Path, place: Path) -> int:
    """Rename a folder once everything in it is on the disk; returns the bytes of its files."""
    size = 0
    for file in _files(source):
        size += file.stat().st_size
        _sync(file)
    for folder, _, _ in os.walk(source):
        _sync(Path(folder))
    place.parent.mkdir(parents=True, exist_ok=True)
    source.rename(place)
    for parent in list(place.parents)[:3]:  # those that may be new, and the one they are in
        _sync(parent)
    return size


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _sweep(root: Path, recorded: set[str]) -> None:
    make_private(root)
    incomplete = root / _INCOMPLETE
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir()
    for folder in root.glob("*/*/*~*"):
        if folder.relative_to(root).as_posix() not in recorded:
            shutil.rmtree(folder, ignore_errors=True)


def _files(folder: Path) -> Iterator[Path]:
    """All regular files below a folder; symbolic links are left out."""
    for place, _, names in os.walk(folder):
        for file in (Path(place, name) for name in names):
            if file.is_file() and not file.is_symlink():
                yield file


def _is_full(error: OSError | TinkerError) -> bool:
    """A trainer in another process tells in words what the operating system told it."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return error.category == "server" and any(os.strerror(code) in str(error) for code in _FULL)


def _disk_full(folder: Path) -> TinkerError:
    usage = shutil.disk_usage(folder)
    return TinkerError(
        "the checkpoint was not saved: the service's disk is full",
        why=f"{usage.free / 1e9:.3f} GB of {usage.total / 1e9:.1f} GB are free in {folder}, and "
        f"{kept_free(folder, 'work') / 1e9:.3f} GB are kept free for the work of all users",
        fix="delete checkpoints that are no longer needed (tinker checkpoint delete), or ask the "
        "operator of the service; the training run itself is intact",
        category="server",
    )


def _link_or_copy(source: str, target: str) -> None:
    """Share the file's content, which never changes, where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
