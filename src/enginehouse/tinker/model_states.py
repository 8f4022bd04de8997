"""The exact state of each model on disk, from which it is recovered."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

import msgspec

from enginehouse.core.errors import StoreError
from enginehouse.core.system_errors import advice
from enginehouse.store.private import make_private
from enginehouse.tinker.data import LoraSpec

_ABOUT = "state.json"
_PREFIX = "state-"
_PARTIAL = ".partial"


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why something failed, and whose mistake it was."""

    message: str
    category: Literal["user", "server"]


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """What a model is after the job `applied`, and all before it, in the order of seq_ids.

    `pending` counts the forward_backwards whose gradients have not been applied. `broken` is why
    they will not be: one of their batch failed, so the next optim_step fails too.
    """

    model_id: str
    user: str
    spec: LoraSpec
    applied: int
    pending: int = 0
    broken: Failure | None = None


class ModelStates:
    """The newest state of every model: `{folder}/{model_id}/state-{applied}/`.

    A state is there whole or not at all, and survives a power cut. The adapter lies in its
    subfolder `adapter`, as Trainer.save wrote it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def model_ids(self) -> list[str]:
        """The models that have folders. Raises StoreError."""
        try:
            return sorted(unquote(folder.name) for folder in self._folder.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _refused(self._folder, "read", error) from error

    def newest(self, model_id: str) -> ModelState | None:
        """The newest state of a model; None if none was saved. Raises StoreError."""
        folder = self._newest(model_id)
        if folder is None:
            return None
        try:
            return msgspec.json.decode((folder / _ABOUT).read_bytes(), type=ModelState)
        except OSError as error:
            raise _refused(folder, "read", error) from error
        except msgspec.DecodeError as error:
            raise StoreError(
                f"{folder / _ABOUT} is not the state of a model",
                why=str(error),
                fix="restore the folder from a copy, or remove it: its model is then lost",
            ) from error

    def adapter(self, state: ModelState) -> Path:
        """Where the adapter of a saved state lies."""
        return self._of(state.model_id) / f"{_PREFIX}{state.applied}" / "adapter"

    @asynccontextmanager
    async def saving(self, state: ModelState) -> AsyncIterator[Path]:
        """Save a state: the block writes the adapter into the folder, which does not exist yet.

        When the block has ended, the state is there and older ones are not. If it raises, or the
        state cannot be written (StoreError), nothing of it is left, and the older one still is.
        """
        folder = self._of(state.model_id) / f"{_PREFIX}{state.applied}"
        partial = folder.with_name(folder.name + _PARTIAL)
        await asyncio.to_thread(_begin, partial)
        try:
            yield partial / "adapter"
            committing = asyncio.create_task(asyncio.to_thread(_commit, state, partial, folder))
            try:
                await asyncio.shield(committing)
            except asyncio.CancelledError:
                await asyncio.wait([committing])  # or what follows would meet the thread's work
                raise
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def remove(self, model_id: str) -> None:
        """Forget a model. Idempotent. Blocking."""
        shutil.rmtree(self._of(model_id), ignore_errors=True)

    def _newest(self, model_id: str) -> Path | None:
        whole = []
        with suppress(FileNotFoundError):
            for path in self._of(model_id).iterdir():
                number = path.name.removeprefix(_PREFIX)
                if path.name != number and number.isdecimal():
                    whole.append((int(number), path))
        return max(whole)[1] if whole else None

    def _of(self, model_id: str) -> Path:
        return self._folder / quote(model_id, safe=":")


def _begin(partial: Path) -> None:
    try:
        shutil.rmtree(partial, ignore_errors=True)
        make_private(partial.parent)
        partial.mkdir()
    except OSError as error:
        raise _refused(partial, "write", error) from error


def _commit(state: ModelState, partial: Path, folder: Path) -> None:
    try:
        (partial / _ABOUT).write_bytes(msgspec.json.encode(state))
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        partial.rename(folder)
        _flush(folder.parent)
    except OSError as error:
        raise _refused(folder, "write", error) from error
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def _flush(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _refused(path: Path, verb: str, error: OSError) -> StoreError:
    return StoreError(
        f"cannot {verb} {path}",
        why=error.strerror or str(error),
        fix=advice(error, otherwise="free disk space, or check the permissions"),
    )
