"""Which engines this machine can run or ask, and why not the others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from enginehouse.core.errors import ProvisioningError
from enginehouse.doctor.findings import Finding, Verdict, fine
from enginehouse.doctor.machine import Machine
from enginehouse.engines.base import Engine, RemoteEngine
from enginehouse.engines.registry import ENGINES
from enginehouse.provisioning.environments import given_by_variables, read_record
from enginehouse.provisioning.llama_server import PROGRAM, check_build_tools
from enginehouse.provisioning.plans import DEFAULT_VERSIONS, pinned_versions, plan_environment

_ONLY_ON_LINUX = ("vllm", "sglang")
_ARCHITECTURES = ("x86_64", "amd64", "aarch64", "arm64")


def judge_engines(
    machine: Machine, *, cuda: bool, environments: Path | None = None
) -> Iterator[Finding]:
    """A finding for each engine there is. `cuda`: an NVIDIA GPU is there. Shows no key.

    `environments`: the folder of those that were provisioned.
    """
    for name in ENGINES.names():
        engine: Engine = ENGINES.load(name)()
        check = f"engine {name}"
        if isinstance(engine, RemoteEngine):
            yield _remote(check, engine, machine)
        else:
            yield _served(check, name, machine, cuda=cuda, environments=environments)


def _no(check: str, says: str, fix: str) -> Finding:
    return Finding(check=check, verdict=Verdict.NO, says=says, fix=fix)


def _remote(check: str, engine: RemoteEngine, machine: Machine) -> Finding:
    def first_set(names: tuple[str, ...]) -> str | None:
        return next((name for name in names if machine.environ.get(name)), None)

    address, key = first_set(engine.url_variables), first_set(engine.key_variables)
    if address is None and engine.default_url is None:
        wanted = engine.url_variables[0]
        return _no(check, f"{wanted} is not set", f"export {wanted}=http://…, or give --url")
    if key is None and engine.needs_key:
        wanted = engine.key_variables[0]
        return _no(check, f"{wanted} is not set", f"export {wanted}=…, or give --api-key-env")
    says = ", ".join(f"{name} is set" for name in (address, key) if name)
    return fine(check, says or f"asked at {engine.default_url}, without a key")


def _served(
    check: str, name: str, machine: Machine, *, cuda: bool, environments: Path | None
) -> Finding:
    given = next((v for v in given_by_variables(name) if machine.environ.get(v)), None)
    if given is not None:
        return fine(check, f"the one that {given} names")
    linux = machine.system == "Linux" and machine.libc.startswith("glibc")
    if name in _ONLY_ON_LINUX and not (linux and machine.architecture.lower() in _ARCHITECTURES):
        says = f"runs on Linux with glibc, on x86-64 or arm64; this is {machine.system} "
        fix = "use one of the other engines, or a server elsewhere with --url"
        return _no(check, f"{says}{machine.architecture}", fix)
    variant = "cuda" if cuda else "cpu"
    path = machine.environ.get("PATH", os.defpath)
    if name == "llamacpp" and (found := shutil.which(PROGRAM, path=path)):
        return fine(check, f"{found}, on PATH")
    if not pinned_versions(name, variant):
        says = "needs an NVIDIA GPU" if variant == "cpu" else "is provisioned for CPUs only"
        return _no(check, says, "use one of the other engines here")
    return _provisioned(check, name, machine, variant=variant, environments=environments)


def _provisioned(
    check: str, name: str, machine: Machine, *, variant: str, environments: Path | None
) -> Finding:
    key = plan_environment(name, variant=variant).key
    if environments is not None and read_record(environments / key) is not None:
        return fine(check, f"provisioned: {key}")
    if name == "llamacpp":
        return _compiled(check, machine, variant=variant)
    return fine(check, f"{name} {DEFAULT_VERSIONS[name]} can be provisioned, for {variant}")


def _compiled(check: str, machine: Machine, *, variant: str) -> Finding:
    try:
        check_build_tools(variant, environ=machine.environ)
    except ProvisioningError as error:
        return _no(check, f"no {PROGRAM} on PATH; {error.message}", error.fix or "install them")
    return fine(check, f"no {PROGRAM} on PATH, but it can be compiled, for {variant}")
