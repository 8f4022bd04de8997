"""A generic server is not installed by us: what starts it is a shell."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from enginehouse.core.errors import ProvisioningError
from enginehouse.provisioning.description import Description
from enginehouse.provisioning.installation import Distribution
from enginehouse.provisioning.plans import EnvironmentPlan, cuda_is_there
from enginehouse.runtime.context import Notify


@dataclass(frozen=True)
class Shell:
    """An Installation of which there is nothing to install."""

    engine: ClassVar[str] = "generic"
    default_version: ClassVar[str] = "unknown"
    variables: ClassVar[tuple[str, ...]] = ()
    requirements: ClassVar[None] = None
    distributions: ClassVar[Mapping[str, Distribution]] = {}
    program: ClassVar[str] = "bin/sh"
    title: ClassVar[str] = "shell"

    def locate(self, path: Path) -> Path:
        """The shell itself."""
        return path

    def on_path(self, search: str) -> Path | None:
        """The shell, which every machine has."""
        shell = shutil.which("sh", path=search) or shutil.which("/bin/sh")
        return Path(shell) if shell else None

    def build_settings(self, version: str, variant: str) -> str | None:  # noqa: ARG002
        """None."""
        return None

    def require_build_tools(self, variant: str, *, environ: Mapping[str, str]) -> None:
        """Need nothing."""

    async def install(
        self,
        plan: EnvironmentPlan,  # noqa: ARG002
        *,
        folder: Path,  # noqa: ARG002
        requirements: Path,  # noqa: ARG002
        log: Path,
        notify: Notify,  # noqa: ARG002
    ) -> Description:
        """Raise ProvisioningError."""
        raise ProvisioningError(
            "a generic server is not installed by Enginehouse",
            fix="install it yourself, and name its command",
            log=log,
        )

    async def describe(
        self,
        program: Path,
        *,
        managed: bool,  # noqa: ARG002
        log: Path,  # noqa: ARG002
        known_identity: str | None = None,  # noqa: ARG002
    ) -> Description:
        """What it runs is unknown before it does; it may use the GPUs here if there are any."""
        return Description(
            version=self.default_version,
            variant="cuda" if cuda_is_there() else "cpu",
            python="",
            identity=str(program),
            packages={},
            flags={},
        )


INSTALLATION = Shell()
