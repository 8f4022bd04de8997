"""The endpoint of a Lepton job: the server, which Lepton runs, scales and guards by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.strict_model import StrictModel
from enginehouse.engines.registry import own_command

ADDRESS = "https://endpoint.invalid"
"""Stands for the endpoint's address in a job's files, until that is known."""
DEFAULT_STORAGE = "node-nfs:lepton-shared-fs"
_IDLE = 3600  # seconds without a request until an endpoint that nobody deletes gives its GPUs back
_PORT = 8000
_UNKNOWN_TO_LEPTON = "leptonai 0.47 has no such field"

Count = Annotated[int, Field(ge=0)]


class LeptonCache(StrictModel):
    """The storage that an endpoint keeps its models in."""

    not_acted_on: ClassVar[Mapping[str, str]] = {}

    enabled: bool = True
    """Whether it is mounted."""
    cache_path: str = ""
    """The folder in the storage of the tasks' first mount."""
    mount_path: str = "/root/.cache/huggingface"
    """Where it is mounted."""


class ScaleDown(StrictModel):
    """When an endpoint gives replicas back."""

    not_acted_on: ClassVar[Mapping[str, str]] = {"scale_from_zero": _UNKNOWN_TO_LEPTON}

    no_traffic_timeout: Count | None = None
    """Seconds without a request until no replica is left."""
    not_ready_timeout: Count | None = None
    """Seconds for which a replica may be not ready."""


class AutoScaler(StrictModel):
    """How an endpoint is scaled."""

    not_acted_on: ClassVar[Mapping[str, str]] = {"scale_up": _UNKNOWN_TO_LEPTON}

    scale_down: ScaleDown = ScaleDown(no_traffic_timeout=_IDLE)
    """When replicas are given back."""
    target_gpu_utilization_percentage: Annotated[int, Field(ge=0, le=100)] | None = None
    """Replicas are added above it."""
    target_throughput: Mapping[str, Any] | None = None
    """Replicas are added above it: `qpm`, `paths`, `methods`."""


class LeptonConfig(StrictModel):
    """The key `lepton_config` of a deployment."""

    not_acted_on: ClassVar[Mapping[str, str]] = {
        "server_port": "deployment.port is the server's port",
    }

    endpoint_name: str = "server"
    """The beginning of the endpoint's name; the job's id follows."""
    resource_shape: str | None = None
    """What a replica gets: `gpu.1xh200`."""
    min_replicas: Count = 1
    """The fewest replicas."""
    max_replicas: Annotated[int, Field(ge=1)] = 1
    """The most replicas."""
    api_tokens: tuple[Mapping[str, Any], ...] = ()
    """Tokens that requests need; each by `value_from: {token_name_ref: NAME}`."""
    auto_scaler: AutoScaler = AutoScaler()
    """How it is scaled."""
    envs: Mapping[str, Any] = Field(default_factory=dict)
    """Variables of the server; secrets by `value_from: {secret_name_ref: NAME}`."""
    mounts: LeptonCache = LeptonCache(enabled=False)
    """Where models are kept."""
    health: Mapping[str, Any] | None = None
    """Lepton's checks, as it names them."""
    log: Mapping[str, Any] | None = None
    """Lepton's collection of logs, as it names it."""
    metrics: Mapping[str, Any] | None = None
    """Lepton's metrics, as it names them."""
    queue_config: Mapping[str, Any] | None = None
    """Lepton's priorities, as it names them."""
    image_pull_secrets: tuple[str, ...] | None = None
    """Secrets of the image's registry."""

    @field_validator("api_tokens")
    @classmethod
    def _by_reference(cls, tokens: tuple[Mapping[str, Any], ...]) -> tuple[Mapping[str, Any], ...]:
        for token in tokens:
            if "token_name_ref" not in token.get("value_from", {}):
                raise ValueError("a token is given by value_from: {token_name_ref: NAME}")
        return tokens

    @property
    def gpus(self) -> int | None:
        """The GPUs of a replica, where the shape's name tells."""
        match = re.match(r"gpu\.(?:(\d+)x)?", self.resource_shape or "")
        return int(match[1] or 1) if match else None


def endpoint_spec(deployment: Any, *, defaults: Mapping[str, Any], storage: str) -> dict[str, Any]:
    """Lepton's specification of the endpoint of a deployment (a DeploymentSettings).

    `defaults` are Lepton's fields that every endpoint has, and `storage` is where its models are
    kept. Raises ConfigurationError for an engine that cannot be an endpoint, and for a secret by
    value.
    """
    config: LeptonConfig = deployment.lepton_config
    port = deployment.port or _PORT
    resources = {
        "resource_shape": config.resource_shape,
        "min_replicas": config.min_replicas,
        "max_replicas": max(config.min_replicas, config.max_replicas),
    }
    spec = {
        **defaults,
        "container": {
            "image": deployment.image,
            "ports": [{"container_port": port}],
            "command": list(_command(deployment, port)),
        },
        "resource_requirement": resources,
        "auto_scaler": config.auto_scaler.model_dump(exclude_none=True),
        "api_tokens": [dict(token) for token in config.api_tokens],
        "envs": variables({**_literals(deployment.env_vars), **config.envs}),
    }
    for name in ("health", "log", "metrics", "queue_config", "image_pull_secrets"):
        if (value := getattr(config, name)) is not None:
            spec[name] = list(value) if isinstance(value, tuple) else dict(value)
    if config.mounts.enabled and config.mounts.cache_path:
        mount = {"from": storage, "path": config.mounts.cache_path}
        spec["mounts"] = [mount | {"mount_path": config.mounts.mount_path}]
    return spec


def variables(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Variables as Lepton takes them: a text, or `value_from`."""
    return [
        {"name": name, **(dict(value) if isinstance(value, Mapping) else {"value": str(value)})}
        for name, value in values.items()
    ]


def _literals(values: Mapping[str, str]) -> dict[str, str]:
    texts = {}
    for name, value in values.items():
        kind, _, rest = value.partition(":")
        if kind in ("host", "runtime"):
            raise ConfigurationError(
                f"deployment.env_vars.{name}: an endpoint on Lepton cannot have {value}",
                why="it is not started from here",
                fix=f"deployment.lepton_config.envs.{name}: {{value_from: {{secret_name_ref: "
                "NAME}}, with a secret of your workspace",
            )
        texts[name] = rest if kind == "lit" else value
    return texts


def _command(deployment: Any, port: int) -> Sequence[str]:
    """What the endpoint's image runs: the engine's own command, or the user's."""
    extra = deployment.extra_args
    own = own_command(deployment.type)
    if own.program:
        values = {
            "host": "0.0.0.0",  # noqa: S104
            "port": port,
            "served_model_name": deployment.served_model_name or deployment.model,
            "tensor_parallel_size": deployment.tensor_parallel_size,
            "pipeline_parallel_size": deployment.pipeline_parallel_size,
            "data_parallel_size": deployment.data_parallel_size,
            "gpu_memory_utilization": deployment.gpu_memory_utilization,
        }
        return (*own.words(deployment.model, values), *extra)
    if deployment.command is not None:
        words = ("sh", *extra) if extra else ()
        return (
            "/bin/sh",
            "-c",
            f'{deployment.command} "$@"' if extra else deployment.command,
            *words,
        )
    raise ConfigurationError(
        f"{deployment.type} cannot be an endpoint on Lepton",
        why="which command starts it in an image is not known",
        fix="use deployment: generic with its command, or none with the url of a server",
    )
