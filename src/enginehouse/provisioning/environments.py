"""Engine environments: isolated, content-addressed installs of an engine."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from packaging.version import InvalidVersion, Version

from enginehouse.core.errors import ConfigurationError, ProvisioningError, StoreError
from enginehouse.provisioning import content_folders
from enginehouse.provisioning.building import Record, build, read_record
from enginehouse.provisioning.description import Description, Flag
from enginehouse.provisioning.installation import Installation, given_install
from enginehouse.provisioning.plans import EnvironmentPlan
from enginehouse.provisioning.programs import new_log
from enginehouse.provisioning.versions import find_plan
from enginehouse.runtime.context import Context
from enginehouse.store.files import write_whole
from enginehouse.store.layout import Layout


class EngineEnvironment(msgspec.Struct, frozen=True, kw_only=True):
    """An install that has been seen to import its engine.

    `executable` starts it: a virtual environment's interpreter, or a program such as llama-server.
    `key` is the content address of a managed environment, None for one that the user brought.
    `flags` maps every spelling of every server option ("--max-model-len") to what it takes.
    `packages` has the versions of torch, transformers and the like, as far as they are installed.
    `entry_module` is what `python -m` starts the server with, None if that never differs.
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
    installation: Installation,
    *,
    python: Path | None,
    version: str | None,
    variant: str | None,
    context: Context,
) -> EngineEnvironment:
    """The environment to use: `python`, what a variable names, one on PATH, or our own.

    Our own is built if it is not there; `version` and `variant` choose it. A user's install must
    agree with them; one on PATH counts only if neither is given. Raises ProvisioningError or
    ConfigurationError.
    """
    given = given_install(installation, python=python)
    if given is None and version is None and variant is None:
        on_path = installation.on_path(os.environ.get("PATH", os.defpath))
        given = ("PATH", on_path) if on_path else None
    if given is None:
        plan = await find_plan(installation, version=version, variant=variant, context=context)
        return await ensure_environment(plan, installation=installation, context=context)
    origin, path = given
    environment = await existing_environment(
        path, installation=installation, layout=context.layout, origin=origin
    )
    _require_agreement(environment, origin, version=version, variant=variant)
    context.notify(
        f"environment: {environment.executable}, from {origin}: "
        f"{environment.engine} {environment.version} ({environment.variant})"
    )
    return environment


async def ensure_environment(
    plan: EnvironmentPlan, *, installation: Installation, context: Context
) -> EngineEnvironment:
    """The planned environment, built if it is not there yet; idempotent, safe across processes.

    Raises ProvisioningError, naming the log; a failed or killed build leaves no environment.
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
        record = await _build(plan, installation, context=context)
        return _managed(record, final)


async def existing_environment(
    path: Path, *, installation: Installation, layout: Layout, origin: str
) -> EngineEnvironment:
    """A user's own install, checked by asking it what it is (3 seconds or more).

    `path` is its program, or the folder that holds it; `origin` is the option or variable that
    named it. Its flags are read once per install and then cached. Raises ProvisioningError with
    what to run instead.
    """
    engine = installation.engine
    fix = f"correct {origin}, or run `enginehouse install {engine}` and leave it out"
    program = installation.locate(_absolute(path))
    if not program.is_file():
        raise ProvisioningError(
            f"there is no {installation.title} at {program} (from {origin})", fix=fix
        )
    name = hashlib.sha256(str(program).encode()).hexdigest()[:24]
    cached_at = layout.descriptions / f"{name}.json"
    cached = _cached_description(cached_at)
    log = new_log(layout, f"check-{engine}")
    try:
        description = await installation.describe(
            program, managed=False, log=log, known_identity=cached.identity if cached else None
        )
    except ProvisioningError as error:
        raise ProvisioningError(
            f"{error.message} (from {origin})", why=error.why, fix=fix, log=error.log
        ) from error
    flags = description.flags
    if flags is None:
        assert cached is not None
        flags = cached.flags
    else:
        with suppress(StoreError):  # the cache only saves time
            write_whole(cached_at, msgspec.json.encode(description))
    return EngineEnvironment(
        engine=engine,
        version=description.version,
        variant=description.variant,
        executable=program,
        key=None,
        flags=flags or {},
        packages=description.packages,
        entry_module=description.entry_module,
    )


async def _build(plan: EnvironmentPlan, installation: Installation, *, context: Context) -> Record:
    started = time.monotonic()
    log = new_log(context.layout, f"install-{plan.key}")
    context.notify(f"environment: building {plan.key} (log: {log})")
    parent = context.layout.environments
    folder = await asyncio.to_thread(content_folders.new_folder, parent, plan.key)
    try:
        record = await build(
            plan, installation=installation, folder=folder, log=log, notify=context.notify
        )
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
        executable=record.executable(folder),
        key=record.key,
        flags=record.description.flags or {},
        packages=record.description.packages,
        entry_module=record.description.entry_module,
    )


def _absolute(path: Path) -> Path:
    """The absolute path with its links kept: those of a virtual environment lead out of it."""
    return Path(os.path.abspath(path.expanduser()))  # noqa: PTH100


def _require_agreement(
    environment: EngineEnvironment, origin: str, *, version: str | None, variant: str | None
) -> None:
    wanted = {"version": version, "variant": variant}
    has = {"version": environment.version.partition("+")[0], "variant": environment.variant}
    for name, value in wanted.items():
        if value is not None and _release(value) != _release(has[name]):
            raise ConfigurationError(
                f"{origin} has {environment.engine} of {name} {has[name]}, not {value}",
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
