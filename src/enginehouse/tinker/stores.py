"""What the service keeps in its home: records, keys, checkpoints, and accepted requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from enginehouse.core.errors import ConfigurationError, StoreError
from enginehouse.core.system_errors import advice
from enginehouse.runtime.context import Context
from enginehouse.store.files import write_whole
from enginehouse.store.private import make_private
from enginehouse.tinker.checkpoints import CheckpointStore
from enginehouse.tinker.configuration import TinkerConfig
from enginehouse.tinker.futures import Futures
from enginehouse.tinker.keys import Keys
from enginehouse.tinker.logs import logging_to
from enginehouse.tinker.records.records import Records, sqlite_url

LOG: Final = "service.jsonl"
_BASE: Final = "base-model"


@dataclass(frozen=True, kw_only=True)
class Stores:
    """Everything that outlives the service."""

    home: Path
    keys: Keys
    records: Records
    checkpoints: CheckpointStore
    futures: Futures


@asynccontextmanager
async def open_stores(config: TinkerConfig, context: Context) -> AsyncIterator[Stores]:
    """What is kept, for one service at a time, for the length of the block.

    Raises ConfigurationError for a home that another service uses or that has adapters of another
    base model, for keys or a database that cannot be used, and StoreError.
    """
    home = config.folder(context.layout)
    async with AsyncExitStack() as stack:
        stack.enter_context(_held(home))
        assert config.base_model is not None  # checked by the configuration
        _require_base(home, config.base_model)
        keys = Keys.open(home, host=config.host, operator_file=config.keys_file)
        records = await Records.open(config.database or sqlite_url(home / "records.sqlite"))
        stack.push_async_callback(records.close)
        checkpoints = CheckpointStore(home / "checkpoints", records=records)
        await checkpoints.prepare()
        futures = Futures.open(home / "futures")  # its lock belongs to this thread
        stack.push_async_callback(futures.close)
        yield Stores(
            home=home, keys=keys, records=records, checkpoints=checkpoints, futures=futures
        )


@contextmanager
def _held(home: Path) -> Iterator[None]:
    """Hold the home and write the log there for the length of the block."""
    with ExitStack() as stack:
        try:
            make_private(home)
            stack.enter_context(FileLock(home / "lock", timeout=0, mode=0o600))
            stack.enter_context(logging_to(home / LOG))
        except Timeout:
            raise ConfigurationError(
                f"another Tinker service uses {home}",
                fix="stop it first, or give this one another folder with --home",
            ) from None
        except OSError as error:
            raise StoreError(
                f"cannot use the folder {home}",
                why=error.strerror or str(error),
                fix=advice(error, otherwise="check its permissions, or choose another with --home"),
            ) from error
        yield


def note_base_model(home: Path, base_model: str) -> None:
    """Note whose adapters the home has from now on. Raises StoreError."""
    write_whole(home / _BASE, base_model.encode(), private=True)


def _require_base(home: Path, base_model: str) -> None:
    """Refuse adapters of another base model: they may fit this one, and would act differently."""
    file = home / _BASE
    try:
        known = file.read_text(encoding="utf-8") if file.exists() else base_model
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"cannot read {file}", why=str(error)) from error
    if known != base_model:
        raise ConfigurationError(
            f"{home} has adapters of {known}, not of {base_model}",
            fix="give this service another folder with --home, or serve the other model",
        )
