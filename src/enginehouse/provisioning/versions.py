"""Any published version of an engine, resolved with uv for this machine if it is not pinned."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import tomllib
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from packaging.version import InvalidVersion, Version

from enginehouse.core.errors import ConfigurationError, ProvisioningError
from enginehouse.processes.gpus import cuda_of_driver
from enginehouse.provisioning import plans
from enginehouse.provisioning.building import read_record
from enginehouse.provisioning.installation import Distribution, Installation
from enginehouse.provisioning.plans import ANY, EnvironmentPlan, cuda_version, plan_environment
from enginehouse.provisioning.programs import Finished, new_log
from enginehouse.provisioning.uv_program import run_uv, uv_error
from enginehouse.runtime.context import Context, Notify
from enginehouse.store.layout import Layout

LATEST = "latest"
# Torch's builds for CUDA as uv names them, newest first.
TORCH_BACKENDS = (
    *("cu132", "cu130", "cu129", "cu128", "cu126", "cu125", "cu124", "cu123", "cu122", "cu121"),
    *("cu120", "cu118"),
)
# An engine names most of its requirements without an upper bound, so an old release would get
# newer packages that it does not work with (transformers 5 for vLLM 0.10). This long after a
# release, its own requirements have been published, and few later ones have.
_SETTLED = timedelta(days=14)
# Engines pin these exactly, and torch's own index has no upload times.
_UNDATED = ("torch", "torchvision", "torchaudio", "triton", "pytorch-triton")
_KEY = re.compile(
    r"(?P<engine>[a-z]+(?:-[a-z]+)*)-(?P<version>[^-]+)-(?P<variant>[a-z]+)-py(?P<python>[\d.]+)-[0-9a-f]+"
)
_CPU_BUILD = re.compile(r"^([a-z0-9-]+)==([^\s;]+\+cpu)\b", re.MULTILINE)
_NEAREST = 2  # on either side


async def find_plan(
    installation: Installation,
    *,
    version: str | None,
    variant: str | None,
    context: Context,
) -> EnvironmentPlan:
    """The plan for a version: pinned, installed before, or resolved now from the registry.

    None means our default version, "latest" the newest that is published. Resolving takes seconds.
    Raises ConfigurationError for a version that is not published, with the nearest ones, and
    ProvisioningError if its packages do not suit this machine.
    """
    variant = plans.choose_variant(installation, variant)
    if version != LATEST and (known := _known(installation, version, variant, context.layout)):
        plan = known
    else:
        assert version is not None
        plan = await _resolve(installation, version, variant, context=context)
    if not plan.pinned:
        context.notify(
            f"environment: {plan.engine} {plan.version} is not a version that we test; "
            f"pinned are {', '.join(plans.pinned_versions(installation, variant))}"
        )
    return plan


def known_plan(
    installation: Installation, *, version: str | None, variant: str | None, layout: Layout
) -> EnvironmentPlan:
    """The plan for a version that is pinned or installed; asks no registry. Blocking, quick.

    Raises ConfigurationError for any other version.
    """
    variant = plans.choose_variant(installation, variant)
    if plan := _known(installation, version, variant, layout):
        return plan
    assert version is not None
    raise plans.not_pinned(installation, version, variant)


def _known(
    installation: Installation, version: str | None, variant: str, layout: Layout
) -> EnvironmentPlan | None:
    """The plan for a pinned version, or the newest one that was resolved and built here before."""
    if version is None or plans.pinned_version(installation, version, variant):
        return plan_environment(installation, version=version, variant=variant)
    try:
        wanted = Version(version)
    except InvalidVersion:
        return None
    built: dict[float, EnvironmentPlan] = {}
    for folder in layout.environments.iterdir() if layout.environments.is_dir() else ():
        key, record = _KEY.fullmatch(folder.name), read_record(folder)
        if key is None or record is None or Version(key["version"]) != wanted:
            continue
        if (key["engine"], key["variant"]) != (installation.engine, variant):
            continue
        text = (folder / "requirements.txt").read_text(encoding="utf-8")
        plan = _plan(
            installation.engine, key["version"], variant, requirements=text, torch_backend=None
        )
        if plan.key == folder.name:  # or it belongs to another machine or Python
            built[record.created] = plan
    return built[max(built)] if built else None


def _plan(
    engine: str, version: str, variant: str, *, requirements: str, torch_backend: str | None
) -> EnvironmentPlan:
    return EnvironmentPlan(
        engine=engine,
        version=version,
        variant=variant,
        python_version=plans.python_version(),
        base_python=plans.base_python(),
        requirements=requirements,
        torch_backend=torch_backend,
        find_links=plans.find_links(),
        pinned=False,
    )


async def _resolve(
    installation: Installation, version: str, variant: str, *, context: Context
) -> EnvironmentPlan:
    engine = installation.engine
    distribution = installation.distributions.get(variant)
    if distribution is None:
        raise plans.not_pinned(installation, version, variant)
    if version != LATEST:
        try:
            version = str(Version(version))
        except InvalidVersion:
            raise ConfigurationError(
                f"{version!r} is not a version",
                fix=f"give one such as {installation.default_version}, or {LATEST}",
            ) from None
    log = new_log(context.layout, f"resolve-{engine}-{version}-{variant}")
    context.notify(
        f"environment: resolving {engine} {version}{plans.in_words(variant)} (log: {log})"
    )
    registry = _Registry(
        engine=engine,
        variant=variant,
        distribution=distribution,
        python_variables=installation.variables,
        log=log,
    )
    release = await registry.find(version)
    if plans.pinned_version(installation, release.version, variant):
        return plan_environment(installation, version=release.version, variant=variant)
    if variant == "cuda":
        lock = await _lock_for_driver(registry, release, notify=context.notify)
    else:
        lock = await registry.lock(release, torch_backend=plans.cpu_backend(variant))
    return _plan(
        engine,
        release.version,
        variant,
        requirements=lock.requirements,
        torch_backend=lock.torch_backend,
    )


async def _lock_for_driver(registry: _Registry, release: _Release, *, notify: Notify) -> _Lock:
    """Lock with a torch for a CUDA that the driver runs, of the major version the engine links to.

    The engine's wheel is compiled against one CUDA, which is named by its local version
    (0.33.0+cu129) or else is that of the registry's torch.
    """
    lock = await registry.lock(release, torch_backend=None)
    of_torch = cuda_version(lock.requirements)
    made_for = _cuda_of_local(lock.requirements, registry.distribution.package) or of_torch
    if made_for is None or of_torch is None or os.environ.get("UV_TORCH_BACKEND"):
        return lock
    driver = await asyncio.to_thread(cuda_of_driver)
    if driver is None:
        notify("environment: no NVIDIA driver answers here, so it cannot be considered")
    limit = driver or made_for
    if of_torch[0] == made_for[0] and of_torch <= limit:
        return lock
    if limit[0] < made_for[0]:
        raise ProvisioningError(
            f"{registry.engine} {release.version} does not run with this NVIDIA driver",
            why=f"it is compiled for CUDA {_dotted(made_for)}, and the driver runs CUDA up to "
            f"{_dotted(limit)}",
            fix="take an older version, update the driver, or name an index that has a build for "
            "your CUDA in UV_INDEX",
            log=registry.log,
        )
    for backend in _backends(made_for[0], limit):
        try:
            chosen = await registry.lock(release, torch_backend=backend)
        except ProvisioningError:
            continue  # that index does not have this torch
        notify(f"environment: torch for {backend}: the driver runs CUDA up to {_dotted(limit)}")
        return chosen
    notify(
        f"environment: torch for CUDA {_dotted(of_torch)}, newer than the driver's "
        f"{_dotted(limit)}: kernels that are compiled at run time may fail"
    )
    return lock


def _cuda_of_local(requirements: str, package: str) -> tuple[int, int] | None:
    match = re.search(rf"^{re.escape(package)}==\S+\+cu(\d+)(\d)\b", requirements, re.MULTILINE)
    return (int(match[1]), int(match[2])) if match else None


def _backends(major: int, limit: tuple[int, int]) -> list[str]:
    """Torch's builds for CUDA of this major version, up to `limit`, newest first."""
    versions = {name: (int(name[2:-1]), int(name[-1])) for name in TORCH_BACKENDS}
    return [name for name, cuda in versions.items() if cuda[0] == major and cuda <= limit]


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


@dataclass(frozen=True)
class _Release:
    """A published version. `uploaded` is None if the registry does not say."""

    version: str
    uploaded: datetime | None


@dataclass(frozen=True)
class _Lock:
    """Every package with its version and hashes, and where uv found torch."""

    requirements: str
    torch_backend: str | None


@dataclass(frozen=True)
class _Registry:
    """What uv finds for one engine's packages on this machine, with this Python."""

    engine: str
    variant: str
    distribution: Distribution
    python_variables: tuple[str, ...]
    log: Path

    async def find(self, version: str) -> _Release:
        """A published version, or the newest."""
        package = self.distribution.package
        wanted = package if version == LATEST else f"{package}=={version}"
        finished, release = await self._newest(wanted)
        if release is not None:
            return release
        if "no version of" not in finished.errors:
            raise uv_error(f"cannot look up {self.engine} {version}", finished, log=self.log)
        raise ConfigurationError(
            f"{self.engine} {version} is not published{plans.in_words(self.variant)}",
            why=f"the registry has no {package} {version} that this Python can install",
            fix=f"the nearest: {', '.join(await self._nearest(version)) or 'none'}",
            log=self.log,
        )

    async def lock(self, release: _Release, *, torch_backend: str | None) -> _Lock:
        """All packages of a release, from the time of the release if possible.

        Raises ProvisioningError if uv finds no solution.
        """
        finished, text = await self._compile(release, torch_backend, dated=True)
        if text is None and release.uploaded is not None:
            finished, text = await self._compile(release, torch_backend, dated=False)
        if text is None:
            error = uv_error(
                f"{self.engine} {release.version} cannot be resolved for this machine",
                finished,
                log=self.log,
            )
            if self.variant == "cpu" and plans.find_links() and "torch" in (error.why or ""):
                error.fix = (
                    "take another version; or, if torch's own index is reached from here, unset "
                    "PIP_FIND_LINKS and UV_FIND_LINKS"
                )
            if self.variant == ANY and self.python_variables:
                error.fix = (
                    "take another version, or name a Python that has this one in "
                    f"{self.python_variables[0]}"
                )
            raise error
        return _Lock(requirements=text, torch_backend=torch_backend)

    async def _compile(
        self, release: _Release, torch_backend: str | None, *, dated: bool
    ) -> tuple[Finished, str | None]:
        """The pinned requirements of a release.

        A CPU torch, which a folder of wheels may hold beside others, is kept out of a CUDA build:
        for uv, 2.13.0+cpu is a newer 2.13.0.
        """
        options = ["--generate-hashes", "--no-header", "--no-annotate"]
        options += ["--no-emit-index-url", "--no-emit-find-links"]
        if torch_backend:
            options += ["--torch-backend", torch_backend]
        if dated and release.uploaded and not os.environ.get("UV_EXCLUDE_NEWER"):
            options += ["--exclude-newer", (release.uploaded + _SETTLED).isoformat()]
            for package in _UNDATED:
                options += ["--exclude-newer-package", f"{package}=false"]
        avoided: list[str] = []
        while True:
            wanted = [f"{self.distribution.package}=={release.version}"]
            wanted += [*self.distribution.besides, *avoided]
            finished, text = await self._run(wanted, options, output="requirements.txt")
            unwanted = _CPU_BUILD.findall(text or "") if self.variant == "cuda" else []
            if not unwanted:
                return finished, text
            avoided += [f"{name}!={version}" for name, version in unwanted]

    async def _newest(self, requirement: str, *options: str) -> tuple[Finished, _Release | None]:
        """The release that uv prefers for a requirement, ignoring its dependencies."""
        finished, text = await self._run(
            [requirement], ["--no-deps", *options], output="pylock.toml"
        )
        if text is None:
            return finished, None
        (package,) = tomllib.loads(text)["packages"]
        times = [wheel["upload-time"] for wheel in package["wheels"] if "upload-time" in wheel]
        return finished, _Release(version=package["version"], uploaded=max(times, default=None))

    async def _nearest(self, version: str) -> list[str]:
        """Published versions on either side of one that is not, oldest first."""
        package = self.distribution.package
        below: list[str] = []
        while len(below) < _NEAREST:
            _, release = await self._newest(f"{package}<{below[0] if below else version}")
            if release is None:
                break
            below.insert(0, release.version)
        above: list[str] = []
        while len(above) < _NEAREST:
            _, release = await self._newest(
                f"{package}>{above[-1] if above else version}", "--resolution", "lowest"
            )
            if release is None:
                break
            above.append(release.version)
        return below + above

    async def _run(
        self, wanted: list[str], options: list[str], *, output: str
    ) -> tuple[Finished, str | None]:
        """`uv pip compile` for this Python, in the format of `output`; None if it fails."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "wanted.in").write_text("\n".join(wanted) + "\n", encoding="utf-8")
            (folder / "overrides.txt").write_text(self.distribution.overrides, encoding="utf-8")
            file = folder / output
            finished = await run_uv(
                [
                    *("pip", "compile", "--quiet", "--python", str(plans.base_python())),
                    # Compiling an engine's source with CUDA would take an hour.
                    *("--only-binary", self.distribution.package),
                    *("--overrides", str(folder / "overrides.txt")),
                    *("--output-file", str(file), *options, str(folder / "wanted.in")),
                ],
                log=self.log,
                find_links=plans.find_links(),
            )
            return finished, None if finished.returncode else file.read_text(encoding="utf-8")
