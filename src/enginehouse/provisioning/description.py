"""An engine environment described by its own Python, which imports the engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from enginehouse.core.errors import ProvisioningError
from enginehouse.provisioning.programs import Finished, python_environ, run_program


class Flag(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One option of the engine's server: whether it takes a value, and which."""

    takes_value: bool
    choices: tuple[str, ...] | None = None
    deprecated: bool = False


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine's describe payload prints, as JSON on its last line.

    `variant` is what its torch was built for. `identity` changes with every new install. `flags`
    is None if the caller already knew the identity. `entry_module` is what `python -m` starts its
    server with; None if that is the same in every version.
    """

    version: str
    variant: str
    python: str
    identity: str
    packages: Mapping[str, str]
    flags: Mapping[str, Flag] | None
    entry_module: str | None = None


async def describe(
    python: Path,
    *,
    engine: str,
    payload: Path,
    log: Path,
    managed: bool,
    known_identity: str | None = None,
    patience: float = 600.0,
) -> Description:
    """Have `python` run a describe payload, which imports the engine; `patience` seconds at most.

    A first import from a slow share takes minutes. Python may write its byte code into a managed
    environment. Raises ProvisioningError with the import's own error.
    """
    env = python_environ(write_bytecode=managed)
    argv = [str(python), str(payload), *([known_identity] if known_identity else [])]
    failed = f"{python} cannot import {engine}"
    try:
        async with asyncio.timeout(patience):
            finished = await run_program(argv, env=env, cwd=log.parent, log=log)
    except TimeoutError:
        raise ProvisioningError(
            failed, why=f"it did not describe itself within {patience:g} s", log=log
        ) from None
    except OSError as error:
        raise ProvisioningError(
            f"{python} cannot be run", why=os.strerror(error.errno or 0), log=log
        ) from error
    if finished.returncode:
        raise ProvisioningError(failed, why=_reason(finished), log=log)
    try:
        return msgspec.json.decode(finished.output.splitlines()[-1], type=Description)
    except (IndexError, msgspec.DecodeError) as error:
        printed = finished.why()
        raise ProvisioningError(
            failed,
            why=f"instead of its description it printed {printed!r}"
            if printed
            else "it printed nothing",
            log=log,
        ) from error


def _reason(finished: Finished) -> str:
    if finished.returncode < 0:
        return f"it was killed by signal {-finished.returncode}"
    return finished.why() or f"it printed nothing and ended with exit code {finished.returncode}"
