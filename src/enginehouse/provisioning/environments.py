"""Engine environments: isolated, content-addressed installs of an engine."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from packaging.version import InvalidVersion, Version

from enginehouse.core.errors import (
    ConfigurationError,
    ProvisioningError,
    StoreError,
    UnknownNameError,
)
from enginehouse.provisioning import content_folders, llama_server
from enginehouse.provisioning.building import (
    Record,
    build,
    executable_of,
    python_of,
    read_record,
)
from enginehouse.provisioning.description import Description, Flag, describe
from enginehouse.provisioning.plans import DEFAULT_VERSIONS, EnvironmentPlan, plan_environment
from enginehouse.provisioning.programs import new_log
from enginehouse.provisioning.versions import find_plan
from enginehouse.runtime.context import Context
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout

__all__ = [
    "EngineEnvironment",
    "EnvironmentPlan",
    "Flag",
    "ensure_environment",
    "existing_environment",
    "find_environment",
    "plan_environment",
    "read_record",
]


class EngineEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """An install that was seen to import its engine.

    `executable` starts it: a virtual environment's interpreter, or a program such as llama-server.
    `key` is the content address of a managed environment, None for one that the user brought.
    `flags` maps every spelling of every server option ("--max-model-len") to what it takes.
    `packages` has the versions of torch, transformers and the like, as far as they are installed.
    `entry_module` is what `python -m` starts the server with, None where that never differs.
    """

    engine: str
    version: str
    variant: str
    executable: Path
    key: str | None
    flags: Mapping[str, Flag]
    packages: Mapping[str, str] = msgspec.field(default_factory=dict)
    entry_module: str | None = None


async def find_environment(
    engine: str = "vllm",
    *,
    python: Path | None,
    version: str | None,
    variant: str | None,
    context: Context,
) -> EngineEnvironment:
    """The environment to use: `python`, what a variable of `given_by_variables` names, or ours.

    The first of these that is given; ours is built if it is not there. `version` and `variant`
    choose ours; another's must agree. A llama-server on PATH comes before ours unless they are
    given. Raises ProvisioningError or ConfigurationError.
    """
    given = [("--python", python)] if python else []
    given += [
        (name, Path(value))
        for name in given_by_variables(engine)
        if (value := os.environ.get(name))
    ]
    if not given and engine == "llamacpp" and version is None and variant is None:
        given += [("PATH", Path(found)) for found in [shutil.which(llama_server.PROGRAM)] if found]
    if not given:
        plan = await find_plan(engine, version=version, variant=variant, context=context)
        return await ensure_environment(plan, context=context)
    origin, path = given[0]
    found = await existing_environment(path, engine=engine, layout=context.layout, origin=origin)
    _check_agreement(found, origin, version=version, variant=variant)
    context.notify(
        f"environment: {found.executable}, from {origin}: "
        f"{engine} {found.version} ({found.variant})"
    )
    return found


def given_by_variables(engine: str) -> tuple[str, ...]:
    """The variables that name an install of an engine; the first that is set counts."""
    if engine == "llamacpp":
        return ("ENGINEHOUSE_LLAMACPP_SERVER",)
    own = f"ENGINEHOUSE_{engine.upper()}_PYTHON"
    return (own, "GRAIL_VLLM_PYTHON") if engine == "vllm" else (own,)


async def ensure_environment(plan: EnvironmentPlan, *, context: Context) -> EngineEnvironment:
    """The planned environment, built if it is not there yet; idempotent, safe across processes.

    Raises ProvisioningError, naming the log; a failed or killed build leaves nothing to be found.
    """
    environments, notify = context.layout.environments, context.notify
    final = environments / plan.key
    if record := read_record(final):
        notify(f"environment: {plan.key}, built before")
        return _managed(record, final)

    def waiting() -> None:
        notify(f"another process is building {plan.key}; waiting for it")

    async with content_folders.claimed(environments, plan.key, on_wait=waiting):
        if record := read_record(final):
            notify(f"environment: {plan.key}, built by another process just now")
            return _managed(record, final)
        record = await _build(plan, context=context)
        return _managed(record, final)


async def existing_environment(
    python: Path, *, engine: str, layout: Layout, origin: str
) -> EngineEnvironment:
    """An install that we did not make, checked by importing the engine (3 seconds or more).

    `python` is an interpreter, for llamacpp a llama-server, or the folder of either. `origin` is
    the option or variable that named it. Its flags are dumped once per install and then cached.
    Raises ProvisioningError with what to run instead.
    """
    if engine not in DEFAULT_VERSIONS:
        raise UnknownNameError("engine", engine, DEFAULT_VERSIONS)
    fix = f"correct {origin}, or run `enginehouse install {engine}` and leave it out"
    path = _executable(python, engine=engine, origin=origin, fix=fix)
    name = hashlib.sha256(str(path).encode()).hexdigest()[:24]
    cached_at = layout.descriptions / f"{name}.json"
    cached = _cached_description(cached_at)
    identity = cached.identity if cached else None
    log = new_log(layout, f"check-{engine}")
    try:
        if engine == "llamacpp":
            found = await llama_server.describe_server(path, log=log, known_identity=identity)
        else:
            found = await describe(
                path, engine=engine, log=log, managed=False, known_identity=identity
            )
    except ProvisioningError as error:
        raise ProvisioningError(
            f"{error.message} (from {origin})", why=error.why, fix=fix, log=error.log
        ) from error
    flags = found.flags
    if flags is None:
        assert cached is not None
        flags = cached.flags
    else:
        with suppress(StoreError):  # remembering only spares time
            write_whole(cached_at, msgspec.json.encode(found))
    return EngineEnvironment(
        engine=engine,
        version=found.version,
        variant=found.variant,
        executable=path,
        key=None,
        flags=flags or {},
        packages=found.packages,
        entry_module=found.entry_module,
    )


async def _build(plan: EnvironmentPlan, *, context: Context) -> Record:
    started = time.monotonic()
    log = new_log(context.layout, f"install-{plan.key}")
    context.notify(f"environment: building {plan.key} (log: {log})")
    parent = context.layout.environments
    folder = await asyncio.to_thread(content_folders.new_folder, parent, plan.key)
    try:
        record = await build(plan, folder=folder, log=log, notify=context.notify)
        await asyncio.to_thread(content_folders.publish, folder, parent, plan.key)
    except BaseException:
        content_folders.abandon(folder)
        raise
    context.notify(f"environment: {plan.key} is ready after {time.monotonic() - started:.0f} s")
    return record


def _managed(record: Record, folder: Path) -> EngineEnvironment:
    return EngineEnvironment(
        engine=record.engine,
        version=record.version,
        variant=record.variant,
        executable=executable_of(folder, engine=record.engine),
        key=record.key,
        flags=record.description.flags or {},
        packages=record.description.packages,
        entry_module=record.description.entry_module,
    )


def _executable(given: Path, *, engine: str, origin: str, fix: str) -> Path:
    """The absolute path; its links are kept, for they lead out of the environment."""
    path = Path(os.path.abspath(given.expanduser()))  # noqa: PTH100 (resolve follows links)
    what = "Python"
    if engine == "llamacpp":
        path, what = llama_server.locate(path), llama_server.PROGRAM
    elif path.is_dir():
        path = python_of(path)
    if not path.is_file():
        raise ProvisioningError(f"there is no {what} at {path} (from {origin})", fix=fix)
    return path


def _check_agreement(
    found: EngineEnvironment, origin: str, *, version: str | None, variant: str | None
) -> None:
    wanted = {"version": version, "variant": variant}
    has = {"version": found.version.partition("+")[0], "variant": found.variant}
    for name, value in wanted.items():
        if value is not None and _release(value) != _release(has[name]):
            raise ConfigurationError(
                f"{origin} has {found.engine} of {name} {has[name]}, not {value}",
                fix=f"leave out --{name}, or {origin}",
            )


def _release(text: str) -> Version | str:
    """A version, so that 0.32 is 0.32.0; what is not one stays as it is."""
    try:
        return Version(text)
    except InvalidVersion:
        return text


def _cached_description(path: Path) -> Description | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Description)
    except (OSError, msgspec.DecodeError):
        return None
