"""Builds one engine environment and records what it is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
from packaging.version import InvalidVersion, Version

from enginehouse.core.errors import ProvisioningError
from enginehouse.provisioning.description import Description
from enginehouse.provisioning.installation import Installation
from enginehouse.provisioning.plans import EnvironmentPlan
from enginehouse.runtime.context import Notify

RECORD = "enginehouse.json"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A finished environment's `enginehouse.json`. `created` is in seconds since 1970.

    `program` starts its servers, relative to the environment's folder.
    """

    key: str
    engine: str
    version: str
    variant: str
    created: float
    base_python: str
    requirements_digest: str
    description: Description
    program: str | None = None

    def executable(self, folder: Path) -> Path:
        """What starts servers of the environment in `folder`."""
        if self.program is not None:
            return folder / self.program
        # Written before programs were recorded: Python, or else the only program there is.
        python = folder / "bin/python"
        return python if python.is_symlink() else next((folder / "bin").glob("*"), python)


def read_record(folder: Path) -> Record | None:
    """The record of the finished, working environment in `folder`, or None. Blocking, quick."""
    try:
        record = msgspec.json.decode((folder / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None
    # The base interpreter may have been removed or upgraded away since.
    return record if record.executable(folder).exists() else None


async def build(
    plan: EnvironmentPlan, *, installation: Installation, folder: Path, log: Path, notify: Notify
) -> Record:
    """Build, verify and mark an environment in the empty `folder`, which may be renamed after.

    Raises ProvisioningError, naming the log.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(plan.requirements, encoding="utf-8")
    description = await installation.install(
        plan, folder=folder, requirements=requirements, log=log, notify=notify
    )
    _require_planned(plan, description, log=log)
    record = Record(
        key=plan.key,
        engine=plan.engine,
        version=description.version,
        variant=plan.variant,
        created=time.time(),
        base_python=str(plan.base_python),
        requirements_digest=plan.requirements_digest,
        description=description,
        program=installation.program,
    )
    with (folder / RECORD).open("wb") as file:
        file.write(msgspec.json.encode(record))
        file.flush()
        os.fsync(file.fileno())
    return record


def _require_planned(plan: EnvironmentPlan, description: Description, *, log: Path) -> None:
    problems = []
    if not _same_release(description.version, plan.version):
        problems.append(f"its version is {description.version}, not {plan.version}")
    if description.variant != plan.variant:
        problems.append(f"it was built for {description.variant}, not {plan.variant}")
    if not description.flags:
        problems.append("its server has no flags")
    if problems:
        raise ProvisioningError(
            f"the new {plan.engine} environment is not what was planned",
            why="; ".join(problems),
            fix="look at where the packages came from (PIP_FIND_LINKS, UV_* variables)",
            log=log,
        )


def _same_release(reported: str, planned: str) -> bool:
    """Whether an engine that reports version `reported` may have been published as `planned`.

    A post release often reports the version of the release that it repeats.
    """
    try:
        return Version(reported).base_version == Version(planned).base_version
    except InvalidVersion:
        return False
