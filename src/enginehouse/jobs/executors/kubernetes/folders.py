"""What is in a job's folder, read from its volume by a pod."""

from __future__ import annotations

import asyncio
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from enginehouse.core.errors import JobError
from enginehouse.jobs.executors.kubernetes.cluster import ApiError, Cluster
from enginehouse.jobs.executors.kubernetes.states import is_final, phase, waiting

_POLL = 0.5


class Reader:
    """A pod that only reads a volume, for as long as the block lasts."""

    def __init__(self, cluster: Cluster, manifest: dict[str, Any]) -> None:
        self._cluster = cluster
        self._manifest = manifest
        self._name: str = manifest["metadata"]["name"]

    async def __aenter__(self) -> str:
        with suppress(ApiError):  # one that was left behind
            if await self._cluster.delete("", "pods", self._name):
                await until_gone(self._cluster, "pods", self._name, None)
        pod = await self._cluster.create("", "pods", self._manifest)
        try:
            await self._until_started(pod)
        except BaseException:
            await asyncio.shield(self.__aexit__())
            raise
        return self._name

    async def __aexit__(self, *exc: object) -> None:
        await self._cluster.delete("", "pods", self._name)

    async def _until_started(self, pod: dict[str, Any]) -> None:
        while phase(pod) == "Pending":
            if (reason := waiting(pod)) is not None and is_final(reason):
                raise JobError(
                    "the job's folder cannot be read",
                    why=f"the pod {self._name}, which reads it, does not start: {reason}",
                    fix=f"`kubectl describe pod {self._name} -n {self._cluster.namespace}`",
                    kind="no_reader",
                )
            await asyncio.sleep(_POLL)
            pod = await self._cluster.read("", "pods", self._name) or {}


async def copy_folder(cluster: Cluster, pod: str, folder: PurePosixPath, into: Path) -> None:
    """Copy a folder of a pod into a local one."""
    with tempfile.TemporaryDirectory(dir=into.parent if into.parent.exists() else None) as space:
        archive = Path(space) / "folder.tar"
        await cluster.run(pod, ("tar", "cf", "-", "-C", str(folder), "."), output=archive)
        await asyncio.to_thread(_extract, archive, into)


def _extract(archive: Path, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")


async def until_gone(
    cluster: Cluster, plural: str, name: str, uid: str | None, *, group: str = ""
) -> None:
    """Wait until no object of that name, or another one, is there."""
    while (current := await cluster.read(group, plural, name)) is not None:
        if uid is not None and current["metadata"]["uid"] != uid:
            return
        await asyncio.sleep(_POLL)
