"""Confines programs to what they need of this machine, with bubblewrap where it works."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
_TMP = "/tmp"  # noqa: S108  the sandbox's own
_SCRATCH = 64 << 20  # bytes of it
_PROBE_TIMEOUT = 20.0
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """How programs are confined on this machine: `command` precedes theirs.

    If it is empty, `problem` says why, and `fix` what would help.
    """

    command: tuple[str, ...] = ()
    problem: str | None = None
    fix: str | None = None


@functools.cache
def find_sandbox() -> Sandbox:
    """Look for bubblewrap and try it once. Blocking: usually 50 ms, at most 20 s."""
    program = shutil.which("bwrap")
    if program is None:
        fix = "install bubblewrap (apt-get install bubblewrap, or your system's package)"
        return Sandbox(problem="bubblewrap is not installed", fix=fix)
    isolated = (program, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session")
    scratch = ("--size", str(_SCRATCH), "--tmpfs", _TMP, "--chdir", _TMP)
    mounts = ("--dev", "/dev", "--remount-ro", "/dev", *scratch)
    why = ""
    for proc in (("--proc", "/proc"), ()):  # containers may forbid a fresh /proc
        sandbox = Sandbox(command=(*isolated, "--cap-drop", "ALL", *proc, *mounts))
        try:
            tried = subprocess.run(
                confine((sys.executable, "-P", "-c", ""), sandbox=sandbox, readable=()),
                env=bare_environment(),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PROBE_TIMEOUT,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            why = str(error)
            continue
        if tried.returncode == 0:
            return sandbox
        why = (tried.stderr.strip().splitlines() or [f"it ended with {tried.returncode}"])[-1]
    return Sandbox(
        problem=f"bubblewrap does not work here: {why}",
        fix="allow user namespaces; in a container, start it with --security-opt "
        "seccomp=unconfined, or use a virtual machine",
    )


def confine(argv: Sequence[str], *, sandbox: Sandbox, readable: Iterable[Path]) -> tuple[str, ...]:
    """The command that runs `argv`, a Python, in the sandbox; `argv` itself without a sandbox.

    The program sees the system's programs and libraries, this Python's folders and `readable`, and
    can write to none of them. It has an empty /tmp, no home and no network, and sees no other
    process.
    """
    if not sandbox.command:
        return tuple(argv)
    mounts = {Path(name): _mount(Path(name)) for name in (*_SYSTEM, *_FILES)}
    for path in (*_python_folders(), *readable):
        for form in {path.absolute(), path.resolve()}:
            mounts[form] = ("--ro-bind-try", str(form), str(form))
    home = Path.home().resolve()
    if home not in mounts and any(folder in home.parents for folder in mounts):
        mounts[home] = ("--tmpfs", str(home))
    # A mount inside another one must come after it.
    ordered = sorted(mounts.items(), key=lambda pair: len(pair[0].parts))
    options = [word for _, mount in ordered for word in mount]
    return (*sandbox.command, *options, "--remount-ro", "/", "--", *argv)


def bare_environment() -> dict[str, str]:
    """The environment of a confined program: no secrets, no home."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {
        "HOME": "/nonexistent",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def exposes_home(folder: Path) -> bool:
    """Whether the folder is, or contains, the user's home."""
    home = Path.home().resolve()
    return folder.resolve() in (home, *home.parents)


def _mount(path: Path) -> tuple[str, ...]:
    if path.is_symlink():  # /lib is one to usr/lib
        return ("--symlink", str(path.readlink()), str(path))
    return ("--ro-bind-try", str(path), str(path))


def _python_folders() -> set[Path]:
    """The folders of this Python and its packages, without the working directory (`python -m`)."""
    program = Path(sys.executable).resolve()
    folders = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_exec_prefix)}
    folders.add(program.parent.parent)
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    searched = (Path(entry) for entry in (*sys.path, *libraries) if entry)
    searched = (path for path in searched if path.resolve() != Path.cwd())
    return {
        folder for folder in (*folders, *searched) if folder.is_dir() and not exposes_home(folder)
    }
