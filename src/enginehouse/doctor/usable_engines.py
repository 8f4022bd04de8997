"""Which engines this machine can use, and why not the others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from enginehouse.core.errors import ConfigurationError, ProvisioningError
from enginehouse.doctor.findings import Finding, Verdict, fine
from enginehouse.doctor.machine import Machine
from enginehouse.engines import base as engines
from enginehouse.engines.registry import ENGINES
from enginehouse.provisioning.building import read_record
from enginehouse.provisioning.installation import given_install
from enginehouse.provisioning.plans import VARIANTS, pinned_versions, plan_environment

_OTHERS = "use one of the other engines here"


def judge_engines(
    machine: Machine, *, cuda: bool, environments: Path | None = None
) -> Iterator[Finding]:
    """A finding for each engine there is. `cuda`: an NVIDIA GPU is there. Shows no key.

    `environments`: the folder of those that were provisioned.
    """
    for name in ENGINES.names():
        check = f"engine {name}"
        try:
            engine: engines.Engine = ENGINES.load(name)()
        except ConfigurationError as error:
            says = f"{error.message}: {error.why}" if error.why else error.message
            yield Finding(check=check, verdict=Verdict.PROBLEM, says=says, fix=error.fix)
            continue
        if package := ENGINES.overridden().get(name):
            says = f"the package {package} has an engine of this name, which is not used"
            fix = f"rename it there, or uninstall {package}"
            yield Finding(check=check, verdict=Verdict.PROBLEM, says=says, fix=fix)
        if isinstance(engine, engines.ServedEngine):
            yield _served(check, engine, machine, cuda=cuda, environments=environments)
        elif isinstance(engine, engines.RemoteEngine):
            yield _remote(check, engine, machine)


def as_place(machine: Machine) -> engines.Machine:
    """What engines are told about a machine."""
    return engines.Machine(
        system=machine.system, architecture=machine.architecture, libc=machine.libc
    )


def _no(check: str, says: str, fix: str) -> Finding:
    return Finding(check=check, verdict=Verdict.NO, says=says, fix=fix)


def _remote(check: str, engine: engines.RemoteEngine, machine: Machine) -> Finding:
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


def _served(  # noqa: PLR0911  one rule after another
    check: str,
    engine: engines.ServedEngine,
    machine: Machine,
    *,
    cuda: bool,
    environments: Path | None,
) -> Finding:
    installation = engine.installation
    if given := given_install(installation, python=None, environ=machine.environ):
        return fine(check, f"the one that {given[0]} names")
    if problem := engine.unsuited(as_place(machine)):
        fix = "use one of the other engines, or a server elsewhere with --url"
        return _no(check, problem, fix)
    if program := installation.on_path(machine.environ.get("PATH", os.defpath)):
        return fine(check, f"{program}, on PATH")
    if not any(pinned_versions(installation, known) for known in VARIANTS):
        says = "is not provisioned by Enginehouse"
        variables = installation.variables or ("--python",)
        return _no(check, says, f"install it, and name it in {variables[0]}")
    variant = "cuda" if cuda else "cpu"
    if not pinned_versions(installation, variant):
        says = "needs an NVIDIA GPU" if variant == "cpu" else "is provisioned for CPUs only"
        return _no(check, says, _OTHERS)
    key = plan_environment(installation, variant=variant).key
    if environments is not None and read_record(environments / key) is not None:
        return fine(check, f"provisioned: {key}")
    try:
        installation.require_build_tools(variant, environ=machine.environ)
    except ProvisioningError as error:
        return _no(check, error.message, error.fix or "install them")
    version = installation.default_version
    if installation.build_settings(version, variant):
        return fine(check, f"not on PATH, but it can be compiled, for {variant}")
    return fine(check, f"{installation.engine} {version} can be provisioned, for {variant}")
