"""How an engine is installed: the protocol, and its implementation for Python packages.

An engine's folder says what is peculiar to it (versions, packages, pinned requirements); planning,
building and describing environments is the same for all.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec

from enginehouse.provisioning.description import Description, describe
from enginehouse.provisioning.uv_program import require_uv
from enginehouse.runtime.context import Notify

if TYPE_CHECKING:
    from enginehouse.provisioning.plans import EnvironmentPlan


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """How one build of an engine is published.

    `package` is what a version number of the engine belongs to. `besides` is installed with it,
    and `excluded` never is, whatever depends on it.
    """

    package: str
    besides: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()

    @property
    def overrides(self) -> str:
        """The text of a uv overrides file that keeps the excluded packages out."""
        return "".join(f'{name} ; python_version < "0"\n' for name in self.excluded)


class Installation(Protocol):
    """How one engine is found, built and described.

    `variables` name an install of the user's own; the first that is set is used. `requirements` is
    the folder of pinned files, VERSION-VARIANT.txt. `distributions`, by variant, are what versions
    that are not pinned are resolved from. `program` is what starts servers, relative to the
    environment's folder, and `title` what error messages call it.
    """

    @property
    def engine(self) -> str: ...  # noqa: D102

    @property
    def default_version(self) -> str: ...  # noqa: D102

    @property
    def variables(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def requirements(self) -> Traversable | None: ...  # noqa: D102

    @property
    def distributions(self) -> Mapping[str, Distribution]: ...  # noqa: D102

    @property
    def program(self) -> str: ...  # noqa: D102

    @property
    def title(self) -> str: ...  # noqa: D102

    def locate(self, path: Path) -> Path:
        """The program that a user's path means: the program itself, or a folder that holds it."""
        ...

    def on_path(self, search: str) -> Path | None:
        """An install on PATH that is used where the user chose nothing; None if there is none."""
        ...

    def build_settings(self, version: str, variant: str) -> str | None:
        """What determines a build besides the requirements; None if nothing is compiled here."""
        ...

    def require_build_tools(self, variant: str, *, environ: Mapping[str, str]) -> None:
        """Raise ProvisioningError if this machine lacks what a build needs."""
        ...

    async def install(
        self, plan: EnvironmentPlan, *, folder: Path, requirements: Path, log: Path, notify: Notify
    ) -> Description:
        """Fill the empty `folder`, which may be renamed afterwards. Raises ProvisioningError."""
        ...

    async def describe(
        self, program: Path, *, managed: bool, log: Path, known_identity: str | None = None
    ) -> Description:
        """Ask an install what it is. Raises ProvisioningError if it does not work."""
        ...


@dataclass(frozen=True, kw_only=True)
class PythonPackage:
    """An Installation: packages from a registry, in a virtual environment of their own.

    `describe_payload` is run by that environment's Python and prints a Description.
    """

    engine: str
    default_version: str
    describe_payload: Path
    variables: tuple[str, ...]
    requirements: Traversable | None = None
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    program: ClassVar[str] = "bin/python"
    title: ClassVar[str] = "Python"

    def locate(self, path: Path) -> Path:
        """The interpreter itself, or that of a virtual environment's folder."""
        return path / self.program if path.is_dir() else path

    def on_path(self, search: str) -> Path | None:  # noqa: ARG002
        """None: a Python on PATH says nothing about the engine."""
        return None

    def build_settings(self, version: str, variant: str) -> str | None:  # noqa: ARG002
        """None: packages come built."""
        return None

    def require_build_tools(self, variant: str, *, environ: Mapping[str, str]) -> None:
        """Need nothing: uv is a dependency of Enginehouse."""

    async def install(
        self, plan: EnvironmentPlan, *, folder: Path, requirements: Path, log: Path, notify: Notify
    ) -> Description:
        """A virtual environment with the pinned packages."""
        venv = ["venv", "--relocatable", "--allow-existing", "--python", str(plan.base_python)]
        await require_uv([*venv, str(folder)], plan=plan, log=log, notify=notify)
        # sync instead of install: torchvision, which some requirement names, must stay out.
        backend = ["--torch-backend", plan.torch_backend] if plan.torch_backend else []
        constraints = folder / "constraints.txt"
        constraints.write_text(plan.constraints, encoding="utf-8")
        python = folder / self.program
        await require_uv(
            [
                *("pip", "sync", "--python", str(python), *backend),
                *("--constraints", str(constraints), str(requirements)),
            ],
            plan=plan,
            log=log,
            notify=notify,
        )
        notify(f"verifying: importing {self.engine} and reading its flags")
        return await self.describe(python, managed=True, log=log)

    async def describe(
        self, program: Path, *, managed: bool, log: Path, known_identity: str | None = None
    ) -> Description:
        """Import the engine with that Python: 3 to 15 seconds."""
        return await describe(
            program,
            engine=self.engine,
            payload=self.describe_payload,
            log=log,
            managed=managed,
            known_identity=known_identity,
        )


def given_install(
    installation: Installation, *, python: Path | None, environ: Mapping[str, str] = os.environ
) -> tuple[str, Path] | None:
    """The option or variable that names an install of the user's own, and the path; or None."""
    if python is not None:
        return "--python", python
    for name in installation.variables:
        if value := environ.get(name):
            return name, Path(value)
    return None
