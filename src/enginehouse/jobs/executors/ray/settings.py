"""The section `execution` for Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from enginehouse.jobs.base import Resources
from enginehouse.jobs.executors.base import ExecutionSettings, Walltime, gpus_on_each


class RaySettings(ExecutionSettings):
    """Jobs on a running Ray cluster."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "mode": "all tasks of a job use one server",
        "mounts": "jobs run without containers, and see the nodes' paths",
    }

    type: Literal["ray"] = "ray"
    address: str | None = None
    """The address of the dashboard; by default RAY_API_SERVER_ADDRESS, or RAY_ADDRESS."""
    python: str = "python3"
    """The Python of the nodes that has Ray."""
    num_nodes: Annotated[int, Field(ge=1)] = 1
    """The number of nodes, over all servers of a job."""
    num_instances: Annotated[int, Field(ge=1)] = 1
    """The number of independent servers, among which the nodes are divided."""
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    """GPUs to reserve on each node; by default as many as the deployment needs."""
    cpus_per_node: Annotated[int, Field(ge=1)] | None = None
    """CPUs to reserve on each node; 1 by default."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory to reserve on each node, in GiB."""
    resources_per_node: Mapping[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Other resources to reserve on each node: `{"accelerator_type:H100": 0.001}`."""
    walltime: Walltime | None = None
    """The longest time for a job once it has its nodes, in seconds."""
    kill_grace: Annotated[float, Field(gt=0)] = 60.0
    """How long a job may take to stop its server when it is asked to end, in seconds."""

    @field_validator("output_dir")
    @classmethod
    def _absolute(cls, folder: str) -> str:
        if not PurePosixPath(folder).is_absolute():
            raise ValueError("must be an absolute path: jobs run on the cluster, not here")
        return folder

    @field_validator("address")
    @classmethod
    def _no_password(cls, address: str | None) -> str | None:
        if address is not None and urlsplit(address).password:
            raise ValueError(
                "contains a password, which would be stored; set RAY_JOB_HEADERS instead"
            )
        return address

    @property
    def gives_nodes(self) -> bool:
        """Yes."""
        return True

    @property
    def has_ray(self) -> bool:
        """Yes."""
        return True

    @property
    def place(self) -> str:
        """The cluster: that of the address, or of Ray's variables."""
        return f"ray at {self.address}" if self.address else "ray"

    @property
    def jobs_folder(self) -> PurePosixPath:
        """`output_dir`, on the nodes."""
        return PurePosixPath(self.output_dir)

    @property
    def nodes(self) -> int:
        """The number of nodes, over all servers of a job."""
        return self.num_nodes

    @property
    def instances(self) -> int:
        """The servers that the nodes are divided among."""
        return self.num_instances

    def resources(self, *, gpus: int) -> Resources:
        """The nodes with `gpus_per_node` GPUs each, or with what is needed.

        With `gpus_per_node: 0`, GPUs are neither reserved nor counted.
        """
        return Resources(
            nodes=self.num_nodes,
            gpus_per_node=gpus_on_each(
                gpus, nodes=self.num_nodes, given=self.gpus_per_node, option="gpus_per_node"
            ),
            cpus_per_node=self.cpus_per_node,
            memory_gb=self.memory_gb,
            walltime=self.walltime,
        )
