"""Adapters by the digest of their content, so that what a server loads never changes."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import msgspec

from enginehouse.core.errors import AdapterError
from enginehouse.provisioning import content_folders
from enginehouse.store.layout import Layout
from enginehouse.weights.peft_folder import CONFIG, TENSORS, PeftFolder, Shapes, read_peft_folder


class StoredAdapter(msgspec.Struct, frozen=True, kw_only=True):
    """An adapter in its final place, with the digest of its content.

    In a shell: `sha256sum adapter_config.json adapter_model.safetensors | sha256sum`.
    """

    digest: str
    path: Path
    info: PeftFolder


class UncopiedAdapters:
    """Adapters in folders that never change, where they are: nothing is copied. Blocking."""

    def __init__(self) -> None:
        self._known: dict[Path, StoredAdapter] = {}

    def add(
        self, folder: Path, *, base: Shapes | None = None, max_rank: int | None = None
    ) -> StoredAdapter:
        """Check and hash the adapter in `folder`, unless it was before. See AdapterStore."""
        path = folder.expanduser().absolute()
        if path not in self._known:
            info = read_peft_folder(path, base=base, max_rank=max_rank)
            self._known[path] = StoredAdapter(digest=_digest(path), path=path, info=info)
        return self._known[path]

    def forget(self, folder: Path) -> None:
        """Check it again if it is added again."""
        self._known.pop(folder.expanduser().absolute(), None)


class AdapterStore:
    """Copies adapters to `layout.adapters`, one read-only folder per digest. Blocking.

    Any number of processes and threads may add to it at once.
    """

    def __init__(self, layout: Layout) -> None:
        self._root = layout.adapters

    def add(
        self, folder: Path, *, base: Shapes | None = None, max_rank: int | None = None
    ) -> StoredAdapter:
        """Copy `folder`, hash and check the copy, and put it into its place. Idempotent.

        `folder` may be overwritten as soon as this returns; one that is written to meanwhile is
        refused. Raises AdapterError, as `read_peft_folder` does, and then keeps nothing.
        """
        source = folder.expanduser().absolute()
        key = hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
        with content_folders.locked(self._root, f"from-{key}"):
            copied = content_folders.new_folder(self._root, f"from-{key}")
            try:
                _copy(source, copied)
                try:
                    info = read_peft_folder(copied, base=base, max_rank=max_rank)
                except AdapterError as error:  # the user knows the source, not the copy
                    error.message = error.message.replace(str(copied), str(source))
                    error.args = (error.message,)
                    raise
                digest = _digest(copied)
                final = self._root / digest
                with content_folders.locked(self._root, digest):
                    # A machine that lost power may have left less than a whole folder.
                    if _sizes(copied) != _sizes(final):
                        for name in (CONFIG, TENSORS):
                            (copied / name).chmod(0o444)
                        content_folders.publish(copied, self._root, digest)
                return StoredAdapter(digest=digest, path=final, info=info)
            finally:
                content_folders.abandon(copied)


def _copy(source: Path, to: Path) -> None:
    before = _state(source)
    for name in (CONFIG, TENSORS):
        try:
            shutil.copyfile(source / name, to / name)
        except FileNotFoundError:
            read_peft_folder(source)  # raises, saying what is missing
            raise AdapterError(
                f"{source} has lost its {name}", fix="add it again when it has been written"
            ) from None
        except OSError as error:
            raise AdapterError(f"{source / name} cannot be copied", why=str(error)) from error
    if _state(source) != before:
        raise AdapterError(
            f"{source} was written to while it was copied",
            fix="add it again when it has been written",
        )


def _state(folder: Path) -> list[tuple[int, ...] | None]:
    return [_state_of(folder / name) for name in (CONFIG, TENSORS)]


def _state_of(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_size, status.st_mtime_ns)


def _digest(folder: Path) -> str:
    lines = []
    for name in (CONFIG, TENSORS):
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sizes(folder: Path) -> list[int | None]:
    return [state[1] if state else None for state in _state(folder)]
