"""Runs uv, and explains its failures."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from enginehouse.core.errors import ProvisioningError
from enginehouse.provisioning.programs import Finished, run_program
from enginehouse.runtime.context import Notify

if TYPE_CHECKING:
    from enginehouse.provisioning.plans import EnvironmentPlan

_PHASES = (
    *("Resolved", "Downloading", "Downloaded", "Building", "Built"),
    *("Prepared", "Installed", "Uninstalled"),
)

_FIXES = (
    (
        ("No space left on device", "os error 28"),
        "free some disk space (an environment takes 4 GB)",
    ),
    (
        ("network was disabled", "Network connectivity is disabled"),
        "unset UV_OFFLINE, or name folders of wheels in PIP_FIND_LINKS",
    ),
    (
        ("dns error", "error sending request", "Connection refused", "timed out", "Network is"),
        "check the network, the proxy and, for another registry, UV_DEFAULT_INDEX",
    ),
    (
        ("No solution found", "not found in the package registry", "no wheels", "no version of"),
        "use another Python or registry, set PIP_FIND_LINKS, or give an install with --python PATH",
    ),
    (
        ("Hash mismatch",),
        "a file is not the one that was pinned: do not install it; check the registry or mirror",
    ),
    (("Permission denied", "os error 13"), "check who owns the folder, or set ENGINEHOUSE_HOME"),
)


async def run_uv(
    arguments: Sequence[str],
    *,
    log: Path,
    find_links: str | None = None,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Finished:
    """Run uv to its end, whatever its exit status.

    `find_links` becomes UV_FIND_LINKS; `env` is added to the variables. `on_line` gets
    each line of its progress.
    """
    import uv

    kept = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    env = kept | {"UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"} | dict(env or {})
    if find_links:
        env["UV_FIND_LINKS"] = find_links
    # Run in the log's folder, so that no project's settings around the user's folder apply.
    return await run_program(
        [uv.find_uv_bin(), *arguments], env=env, cwd=log.parent, log=log, on_line=on_line
    )


async def require_uv(
    arguments: Sequence[str],
    *,
    plan: EnvironmentPlan,
    log: Path,
    notify: Notify,
    env: Mapping[str, str] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> None:
    """Run one step of building `plan`, with uv's phases passed on to `notify`.

    `progress` gets every line. Raises ProvisioningError if uv fails.
    """

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


def uv_error(message: str, finished: Finished, *, log: Path) -> ProvisioningError:
    """The error for a uv that failed: its own reason, and what to do about it."""
    fixes = (fix for signs, fix in _FIXES if any(sign in finished.errors for sign in signs))
    return ProvisioningError(
        message,
        why=_reason(finished.errors, finished.returncode),
        fix=next(fixes, "the log has uv's whole output"),
        log=log,
    )


def _reason(errors: str, returncode: int) -> str:
    """The lines of uv's error, without its progress."""
    if returncode < 0:
        return f"it was killed by signal {-returncode}"
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    start = next((at for at, line in enumerate(lines) if line.startswith(("error", "\u00d7"))), 0)
    return " ".join(lines[start : start + 4])
