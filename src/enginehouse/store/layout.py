"""Where everything is stored. The only place that knows paths."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from enginehouse.store.private import make_private

# Not the user's runtime folder, which is removed at logout while detached servers live on; and not
# TMPDIR, which a batch system sets for each job.
_MACHINE = Path("/tmp")  # noqa: S108 - the folder is private, and checked to be the user's own


@dataclass(frozen=True)
class Layout:
    """Folders, created when they are first written to."""

    cache: Path
    state: Path
    config: Path

    @classmethod
    def from_environment(cls) -> Layout:
        """The platform's folders, or folders below ENGINEHOUSE_HOME if that is set."""
        if home := os.environ.get("ENGINEHOUSE_HOME"):
            root = Path(home).expanduser().absolute()
            return cls(cache=root / "cache", state=root / "state", config=root / "config")
        dirs = platformdirs.PlatformDirs("enginehouse", appauthor=False)
        return cls(
            cache=dirs.user_cache_path, state=dirs.user_state_path, config=dirs.user_config_path
        )

    def make_private(self, folder: Path) -> None:
        """Make a folder below the state that only its owner may enter, like the state itself.

        Raises OSError.
        """
        make_private(self.state)
        make_private(folder)

    @property
    def environments(self) -> Path:
        """Engine environments, one folder per content key."""
        return self.cache / "environments"

    @property
    def models(self) -> Path:
        """Checkpoints converted from GGUF files, one folder per content key."""
        return self.cache / "models"

    @property
    def adapters(self) -> Path:
        """LoRA adapters that servers load, one folder per content digest."""
        return self.cache / "adapters"

    @property
    def data(self) -> Path:
        """Benchmark files extracted from packages, one folder per content key."""
        return self.cache / "data"

    def harness_data(self, harness: str) -> Path:
        """Data sets that another project's harness downloads itself."""
        return self.cache / "harnesses" / harness

    @property
    def digests(self) -> Path:
        """Known digests, one record per file."""
        return self.cache / "digests"

    @property
    def descriptions(self) -> Path:
        """Descriptions of engine environments that users brought, one record per Python."""
        return self.cache / "descriptions"

    @property
    def harness_tasks(self) -> Path:
        """The tasks of evaluation harnesses, one list per environment."""
        return self.cache / "harness-tasks"

    @property
    def logs(self) -> Path:
        """Logs of installs and conversions."""
        return self.state / "logs"

    @property
    def servers(self) -> Path:
        """One folder per server that is or was running."""
        return self.state / "servers"

    @property
    def weights(self) -> Path:
        """The weights swapped into servers that we did not start, one record per address."""
        return self.state / "weights"

    @property
    def ports(self) -> Path:
        """Port leases of this user's processes, shared by all homes as the ports are."""
        return _MACHINE / f"enginehouse-ports-{os.getuid()}"

    @property
    def runs(self) -> Path:
        """One folder per run: an evaluation or an experiment."""
        return self.state / "runs"

    @property
    def watches(self) -> Path:
        """One folder per watched folder, with its curve."""
        return self.state / "watches"

    @property
    def tinker(self) -> Path:
        """What the Tinker service keeps: records, accepted jobs, checkpoints, and its keys."""
        return self.state / "tinker"

    @property
    def jobs(self) -> Path:
        """The records of the jobs that were launched from here, a SQLite file."""
        return self.state / "jobs.sqlite"

    @property
    def locks(self) -> Path:
        """Locks of files that are stored elsewhere, where the user put them."""
        return self.state / "locks"
