"""A pod as a process of this machine, in place of a container."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from enginehouse.processes.tree import ProcessTree, identify

_POLL = 0.05
_LONGEST_GRACE = 1.0  # seconds: tests do not wait for a pod's own

Data = Mapping[str, Mapping[str, Any]]  # name → ConfigMap or Secret


class PodProcess:
    """The first container of a pod. `folder` is for its log and its mounts.

    Nothing separates it from this machine: a hostPath must be mounted at its own path, and the path
    of a ConfigMap's mount is replaced wherever the command and the ConfigMap name it.
    """

    def __init__(self, manifest: Mapping[str, Any], folder: Path) -> None:
        self.manifest = manifest
        self._container: Mapping[str, Any] = manifest["spec"]["containers"][0]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """What the container has said."""
        return self._folder / "log.txt"

    def missing(self, *, config_maps: Data, secrets: Data) -> str | None:
        """The first object that the pod needs and that is not there yet."""
        for volume in self.manifest["spec"].get("volumes", []):
            name = volume.get("configMap", {}).get("name")
            if name is not None and name not in config_maps:
                return f'configmap "{name}" not found'
        for variable in self._container.get("env", []):
            reference = variable["valueFrom"]["secretKeyRef"]
            if reference["key"] not in secrets.get(reference["name"], {}).get("data", {}):
                return f'secret "{reference["name"]}" not found'
        return None

    def start(self, *, config_maps: Data, secrets: Data) -> None:
        """Start the command; nothing may be missing."""
        moved = self._mount(config_maps)
        environment = {
            name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "HOME")
        }
        for variable in self._container.get("env", []):
            reference = variable["valueFrom"]["secretKeyRef"]
            encoded = secrets[reference["name"]]["data"][reference["key"]]
            environment[variable["name"]] = base64.b64decode(encoded).decode()
        annotations = self.manifest["metadata"].get("annotations", {})
        if (index := annotations.get("batch.kubernetes.io/job-completion-index")) is not None:
            environment["JOB_COMPLETION_INDEX"] = index
        command = [_moved(word, moved) for word in self._container["command"]]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def started(self) -> bool:
        """Whether the command has been started."""
        return self._process is not None

    def exit_code(self) -> int | None:
        """As a container's; None while it runs."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        return code if code >= 0 else 128 - code

    async def stop(self) -> None:
        """End the command and everything that it started, as the end of a container does."""
        if self._process is None:
            return
        identity = identify(self._process.pid)
        if identity is not None and self._process.poll() is None:
            grace = self.manifest["spec"].get("terminationGracePeriodSeconds", 30)
            await ProcessTree(identity).stop(
                grace=min(grace, _LONGEST_GRACE), reap=self._process.poll
            )
        self._process.wait()

    async def output(self, *, follow: bool) -> AsyncIterator[bytes]:
        """The log so far; with `follow`, until the command has ended."""
        with self.log.open("rb") as log:
            while True:
                ended = not follow or self.exit_code() is not None
                while content := log.read(1 << 16):
                    yield content
                if ended:
                    return
                await asyncio.sleep(_POLL)

    def remove(self) -> None:
        """Delete the pod's folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _mount(self, config_maps: Data) -> dict[str, str]:
        """Write the ConfigMaps' files; gives where each mount path is instead."""
        paths = {one["name"]: one["mountPath"] for one in self._container["volumeMounts"]}
        volumes = [one for one in self.manifest["spec"]["volumes"] if "configMap" in one]
        moved = {paths[one["name"]]: str(self._folder / one["name"]) for one in volumes}
        for volume in volumes:
            data = config_maps[volume["configMap"]["name"]]["data"]
            for item in volume["configMap"]["items"]:
                path = self._folder / volume["name"] / item["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(_moved(data[item["key"]], moved))
        self._folder.mkdir(parents=True, exist_ok=True)
        return moved


def _moved(text: str, moved: Mapping[str, str]) -> str:
    for path, replacement in moved.items():
        text = text.replace(f"{path}/", f"{replacement}/")
    return text
