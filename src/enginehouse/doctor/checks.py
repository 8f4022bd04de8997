"""Examines the machine before anything fails: each check gives a finding and what to do next."""

from __future__ import annotations

import asyncio
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from enginehouse.core.errors import EnginehouseError
from enginehouse.deployment.compute_type import type_on_cpu
from enginehouse.doctor.findings import Finding, fine, problem, warning
from enginehouse.doctor.machine import Machine, look_at_machine
from enginehouse.doctor.usable_engines import as_place, judge_engines
from enginehouse.engines.base import ServedEngine
from enginehouse.engines.registry import load_served_engine
from enginehouse.processes.sandbox import Sandbox, find_sandbox
from enginehouse.provisioning.building import read_record
from enginehouse.provisioning.environments import existing_environment
from enginehouse.provisioning.installation import Installation, given_install
from enginehouse.provisioning.plans import EnvironmentPlan, cuda_is_there, cuda_version
from enginehouse.provisioning.versions import known_plan
from enginehouse.results.activity import GpuReading
from enginehouse.servers.records import ServerState, list_servers
from enginehouse.store.layout import Layout

_GIB = 1 << 30
_PYTHON = (3, 11)
_ENVIRONMENT_SIZE = {"cpu": 4 * _GIB, "cuda": 12 * _GIB}
_LITTLE_DISK = _GIB  # for logs and runs
_LITTLE_MEMORY = 2 * _GIB  # an engine needs 1.1 GiB before the first weight
_LITTLE_SHARED = 256 << 20  # a container's default is 64 MiB
_FEW_FILES = 4096
_BFLOAT16 = 8.0
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


async def examine(
    layout: Layout,
    *,
    engine: str | None = None,
    python: Path | None = None,
    version: str | None = None,
    variant: str | None = None,
) -> list[Finding]:
    """Every check, in reading order. No network; nothing is built, and no file is left.

    `python` is an engine environment of the user's own; it is checked by importing the engine,
    which takes seconds. Raises ConfigurationError for an unknown engine, version or variant.
    """
    served = load_served_engine(engine)
    installation = served.installation
    plan = known_plan(installation, version=version, variant=variant, layout=layout)
    machine = await asyncio.to_thread(look_at_machine, layout)
    sandbox = judge_sandbox(await asyncio.to_thread(find_sandbox))
    findings = [
        *judge_machine(machine, served),
        sandbox,
        *judge_gpus(machine, plan, engine=served, chosen=variant is None),
    ]
    given = given_install(installation, python=python, environ=machine.environ)
    if given is None:
        built = read_record(layout.environments / plan.key) is not None
        findings += judge_disk(machine, plan, built=built)
        findings.append(await asyncio.to_thread(_environment, plan, installation, layout))
    else:
        findings += judge_disk(machine, plan, built=True)
        findings.append(await _own_environment(*given, installation=installation, layout=layout))
    findings += judge_engines(machine, cuda=cuda_is_there(), environments=layout.environments)
    findings += judge_surroundings(machine)
    findings += await asyncio.to_thread(_servers, layout)
    return findings


def judge_machine(machine: Machine, engine: ServedEngine) -> Iterator[Finding]:
    """What Enginehouse and the engine need of a machine."""
    name = ".".join(map(str, machine.python))
    if machine.python[:2] >= _PYTHON:
        yield fine("Python", name)
    else:
        yield problem("Python", f"{name} is too old", "use Python 3.11 or newer")
    yield _platform(machine, engine)
    free = f"{machine.available / _GIB:.1f} of {machine.memory / _GIB:.1f} GiB memory available"
    says = f"{machine.cores} cores, {free}"
    if machine.available >= _LITTLE_MEMORY:
        yield fine("memory", says)
    else:
        yield problem("memory", says, "end other programs: an engine alone takes 1.1 GiB")
    if machine.shared_memory is not None:
        yield _shared_memory(machine.shared_memory)
    _, hard = machine.open_files  # the soft limit is raised when Enginehouse starts
    if hard == resource.RLIM_INFINITY:
        yield fine("open files", "no limit")
    elif hard >= _FEW_FILES:
        yield fine("open files", f"{hard} at most")
    else:
        fix = "raise nofile in /etc/security/limits.conf, or start the container with "
        fix += "--ulimit nofile=65536"
        yield warning("open files", f"{hard} at most: each connection takes one", fix)
    if machine.uv:
        yield fine("uv", machine.uv)
    else:
        yield problem("uv", "not found", "install Enginehouse again, with its requirements")


def _platform(machine: Machine, engine: ServedEngine) -> Finding:
    says = f"{machine.system} {machine.architecture}, {machine.libc or 'no glibc'}"
    if reason := engine.unsuited(as_place(machine)):
        fix = "use Linux with glibc (Debian, Ubuntu, Red Hat; not Alpine), or --url with a server "
        return problem("platform", f"{says}: {engine.name} {reason}", f"{fix}elsewhere")
    return fine("platform", says)


def judge_sandbox(sandbox: Sandbox) -> Finding:
    """Whether foreign code can be confined while it scores answers."""
    if sandbox.problem is None:
        return fine("sandbox", "bubblewrap confines scoring by foreign code")
    says = f"{sandbox.problem}: scoring by reasoning_gym or by a function is confined less"
    return warning("sandbox", says, sandbox.fix or "install bubblewrap")


def _shared_memory(size: int) -> Finding:
    says = f"{size / _GIB:.1f} GiB in /dev/shm"
    if size >= _LITTLE_SHARED:
        return fine("shared memory", says)
    fix = "start the container with --shm-size=8g (or --ipc=host)"
    return warning("shared memory", f"{says}, too little for several GPUs", fix)


def judge_disk(machine: Machine, plan: EnvironmentPlan, *, built: bool) -> Iterator[Finding]:
    """Whether the cache and the state can be written, and have enough room."""
    for name, folder in machine.folders.items():
        check = f"{name} folder"
        needed = _ENVIRONMENT_SIZE[plan.variant] if name == "cache" and not built else _LITTLE_DISK
        says = f"{folder.path}, {folder.free_bytes / _GIB:.1f} GiB free"
        if folder.problem is not None:
            fix = "correct its owner or mode, or set ENGINEHOUSE_HOME to a folder of your own"
            yield problem(check, f"cannot be written: {folder.problem}", fix)
        elif folder.free_bytes < needed:
            fix = f"make room for {needed / _GIB:.0f} GiB, or set ENGINEHOUSE_HOME to another disk"
            yield problem(check, says, fix)
        else:
            yield fine(check, says)


def judge_gpus(
    machine: Machine, plan: EnvironmentPlan, *, engine: ServedEngine, chosen: bool
) -> Iterator[Finding]:
    """Which build of the engine is used and why; whether driver, GPUs and compiler suit it."""
    shown = machine.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = shown in {"", "-1", "NoDevFiles"}
    reason = "--variant says so"
    if chosen:
        reason = "there is an NVIDIA GPU" if plan.variant == "cuda" else "there is no NVIDIA GPU"
        reason = f"CUDA_VISIBLE_DEVICES is {shown!r}" if hidden else reason
    says = f"{plan.engine} {plan.version} for {plan.variant}: {reason}"
    driver = machine.driver
    if plan.variant == "cpu" and driver and driver.gpus and chosen and not hidden:
        fix = "give the container access to the GPU (--gpus all), or give --variant cpu"
        yield warning("build", f"{says} in /dev, but the driver lists one", fix)
    else:
        yield fine("build", says)
    if plan.variant == "cpu":
        chosen_type = type_on_cpu(machine.cpu)
        yield fine("number type", f"chosen is {chosen_type.dtype}: {chosen_type.reason}")
    if plan.variant == "cuda":
        yield from _driver(machine, plan)
        for gpu in driver.gpus if driver else ():
            yield _gpu(gpu, engine)
    yield _compiler(machine, plan)


def _driver(machine: Machine, plan: EnvironmentPlan) -> Iterator[Finding]:
    driver = machine.driver
    if driver is None:
        fix = "install NVIDIA's driver; in a container, start it with --gpus all"
        yield problem("NVIDIA driver", "not found", fix)
        return
    if driver.problem is not None:
        fix = "see whether nvidia-smi works; after an update of the driver, restart the machine"
        yield problem("NVIDIA driver", f"it does not answer: {driver.problem}", fix)
        return
    newest = ".".join(map(str, driver.cuda)) if driver.cuda else "an unknown version"
    says = f"{driver.version}, for CUDA up to {newest}"
    wanted = cuda_version(plan.requirements)
    if wanted is None or driver.cuda is None:
        yield fine("NVIDIA driver", says)
        return
    says = f"{says}; {plan.engine} {plan.version} is made for {wanted[0]}.{wanted[1]}"
    if driver.cuda[0] < wanted[0]:
        fix = f"update the driver to one for CUDA {wanted[0]}, or name an older --version"
        yield problem("NVIDIA driver", says, fix)
    elif driver.cuda < wanted:
        yield warning("NVIDIA driver", says, "update the driver if a kernel fails to compile")
    else:
        yield fine("NVIDIA driver", says)


def _gpu(gpu: GpuReading, engine: ServedEngine) -> Finding:
    check, says = f"GPU {gpu.index}", gpu.name
    used, total = gpu.used_bytes or 0, gpu.total_bytes or 0
    if total:
        says += f", {(total - used) / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    if engine.gpu_share is not None and used > (1 - engine.gpu_share) * total:
        share = max(0, int(100 * (1 - used / total)) - 2) / 100
        fix = f"end what uses it (nvidia-smi), or --gpu-memory-utilization {share:g}"
        says += f"; {engine.name} takes {engine.gpu_share:g} of it unless told otherwise"
        return warning(check, says, fix)
    if gpu.capability is not None and gpu.capability < _BFLOAT16:
        fix = "serve with --dtype float16"
        return warning(check, f"{says}; capability {gpu.capability}: no bfloat16", fix)
    return fine(check, says)


def _compiler(machine: Machine, plan: EnvironmentPlan) -> Finding:
    lacking = [
        name
        for name, there in (
            ("a C compiler", machine.compiler),
            ("a C++ compiler", machine.compiler_cxx),
            ("Python.h", machine.python_headers or plan.variant == "cpu"),
        )
        if not there
    ]
    if not lacking:
        return fine("compiler", f"{machine.compiler}, {machine.compiler_cxx}")
    says = f"there is no {', no '.join(name.removeprefix('a ') for name in lacking)}"
    install = "apt-get install g++ python3-dev (or your system's packages)"
    if plan.variant == "cpu":
        return warning(
            "compiler", f"{says}; only compiled models need it", f"{install}, or --enforce-eager"
        )
    return problem("compiler", f"{says}; Triton needs it", install)


def _environment(plan: EnvironmentPlan, installation: Installation, layout: Layout) -> Finding:
    """Whether the planned environment exists, unchanged."""
    folder = layout.environments / plan.key
    again = f"`enginehouse envs remove {plan.key}`, then `enginehouse install {plan.engine}"
    again += f" --version {plan.version} --variant {plan.variant}`"
    if read_record(folder) is None:
        if folder.exists():
            return problem("environment", f"{plan.key} is incomplete", again)
        fix = f"`enginehouse install {plan.engine}`; otherwise the first `serve` or `eval` does it"
        return warning("environment", f"{plan.key} is not built yet", fix)
    installed = _installed(folder)
    pinned: dict[str, set[str]] = {}
    for name, version in _PINNED.findall(plan.requirements):  # which may depend on Python's
        pinned.setdefault(_normal(name), set()).add(version)
    wrong = [
        f"{name} is {version}"
        for name, version in installed.items()
        if name in pinned and version not in pinned[name]
    ]
    builds = sorted({d.package for d in installation.distributions.values()} & installed.keys())
    if len(builds) > 1:
        says = f"{plan.key} has {' and '.join(builds)}, one installed over the other"
        return problem("environment", says, again)
    if installation.distributions and not builds:
        return problem("environment", f"{plan.key} has no {plan.engine} any more", again)
    if wrong:
        says = f"{plan.key} was changed, and is not as pinned: {', '.join(wrong[:3])}"
        return warning("environment", says, again)
    return fine("environment", plan.key)


def _installed(folder: Path) -> dict[str, str]:
    """The packages of an environment, by normalized name."""
    packages = {}
    for entry in folder.glob("lib/python*/site-packages/*.dist-info"):
        name, _, version = entry.name.removesuffix(".dist-info").partition("-")
        packages[_normal(name)] = version
    return packages


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


async def _own_environment(
    origin: str, path: Path, *, installation: Installation, layout: Layout
) -> Finding:
    try:
        environment = await existing_environment(
            path, installation=installation, layout=layout, origin=origin
        )
    except EnginehouseError as error:
        says = f"{error.message}: {error.why}" if error.why else error.message
        return problem("environment", says, error.fix or f"correct {origin}")
    version = f"{environment.engine} {environment.version} ({environment.variant})"
    says = f"{version}, {environment.executable} from {origin}"
    return fine("environment", says)


def judge_surroundings(machine: Machine) -> Iterator[Finding]:
    """The effects of environment variables. Secrets are never repeated."""
    environ = machine.environ
    says = "there is one" if machine.hub_token else "none; gated and private models need HF_TOKEN"
    yield fine("hub token", says)
    if environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        says = "HF_HUB_OFFLINE is set: only models that are on this machine can be used"
        yield warning("hub", says, "unset HF_HUB_OFFLINE to download")
    else:
        yield fine("hub", environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxies = {
        name: urlsplit(value).hostname or "?"
        for name, value in sorted(environ.items())
        if name.lower() in {"http_proxy", "https_proxy", "all_proxy"} and value
    }
    if proxies:
        yield fine("proxy", ", ".join(f"{name} {host}" for name, host in proxies.items()))
    path = environ.get("LD_LIBRARY_PATH", "")
    if re.search(r"cuda|nvidia", path, re.IGNORECASE):
        says = f"LD_LIBRARY_PATH is {path}: its CUDA is loaded before the engine's own"
        yield warning("libraries", says, "unset LD_LIBRARY_PATH unless an engine needs it")


def _servers(layout: Layout) -> Iterator[Finding]:
    """Servers without a supervisor."""
    statuses = list_servers(layout)
    for status in statuses:
        name = status.record.name
        pids = ", ".join(map(str, status.pids))
        if status.abandoned:
            says = f"{name} still runs (pid {pids}), and what started it is gone"
            yield warning("servers", says, f"`enginehouse stop {name}`")
        elif status.state is ServerState.FAILED:
            says = f"{name} failed" + (f", and processes of it are left: {pids}" if pids else "")
            fix = f"`enginehouse logs {name}` says why, `enginehouse stop {name}` clears it away"
            yield warning("servers", says, fix)
    if not any(status.abandoned or status.state is ServerState.FAILED for status in statuses):
        yield fine("servers", f"{len(statuses)} known, none left behind")
