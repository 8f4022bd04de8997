"""The servers of a job that spans several nodes: what runs beside its main command.

The main command, on the first node, evaluates, and starts a server of its own there. The other
nodes have companions: a server each that announces itself in the job's folder (as many instances as
nodes), or the other parts of one server that spans all nodes.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml

from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.configuration import ServeConfig, merged, parse
from enginehouse.engines.registry import engines_that, load_engine, own_command
from enginehouse.jobs.base import Companion
from enginehouse.jobs.configuration import LaunchConfig

SERVER, ANNOUNCED = "server.yaml", "servers"
_BACKEND, _RAY = "distributed_executor_backend", "ray"
_RANK = 64  # of adapters, which are not read before the job runs
_PORTS = range(20000, 32000, 2)  # below those that systems give out by themselves


@dataclass(frozen=True, kw_only=True)
class Arrangement:
    """What a job's nodes do besides evaluating.

    `plan` has keys of the evaluation's plan that follow from it, and `files` are the companions',
    by name. `notes` are warnings.
    """

    plan: Mapping[str, Any] = field(default_factory=dict)
    companions: tuple[Companion, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def arrange_nodes(
    config: LaunchConfig, plan: Mapping[str, Any], *, job: str, folder: PurePosixPath
) -> Arrangement:
    """What runs where, given the plan's values for one server, the job's id and its folder.

    Raises ConfigurationError for nodes that cannot be divided among instances like that.
    """
    nodes, instances = config.execution.nodes, config.execution.instances
    if not config.deployment.deployed:
        unused = "nothing is deployed, so the job needs one node only"
        return Arrangement(notes=(unused,) if nodes > 1 else ())
    if nodes == 1:
        return _on_one_node(config, plan)
    if instances == nodes:
        return _one_on_each_node(config, plan, announced=str(folder / ANNOUNCED))
    if instances == 1:
        return _one_over_all_nodes(config, plan, job=job)
    raise ConfigurationError(
        f"{instances} instances cannot be divided among {nodes} nodes",
        why="each node runs one, or one spans all nodes, or all are on one node",
        fix=f"ask for {nodes} instances or 1 (num_instances), or for one node (num_nodes)",
    )


def _on_one_node(config: LaunchConfig, plan: Mapping[str, Any]) -> Arrangement:
    instances = config.execution.instances
    changes: dict[str, Any] = {"instances": instances} if instances > 1 else {}
    if changes and config.deployment.port is not None:
        raise ConfigurationError(
            f"{instances} instances on one node cannot share a port, and deployment.port is "
            f"{config.deployment.port}",
            fix="leave deployment.port out, or set it to null: each gets a free one",
        )
    if not _may_use_ray(config):
        return Arrangement(plan=changes)
    if not config.execution.has_ray:
        return Arrangement(plan=changes, notes=_without_ray(config))
    flags = (own_command(config.deployment.type).flags[_BACKEND], _RAY)
    server = {**plan["server"], "extra_args": (*_words(plan["server"]), *flags)}
    note = (
        f"{config.deployment.type} reserves its GPUs in the Ray cluster by itself, besides those "
        "of the job "
        "(execution.gpus_per_node: 0 reserves none), and its environment needs the cluster's Ray"
    )
    return Arrangement(plan={**changes, "server": server}, notes=(note,))


def _may_use_ray(config: LaunchConfig) -> bool:
    deployment = config.deployment
    return (
        deployment.distributed_executor_backend == _RAY
        and _BACKEND in own_command(deployment.type).flags
    )


def _without_ray(config: LaunchConfig) -> tuple[str, ...]:
    """What to note if a server that could use Ray has a node of its own."""
    if not _may_use_ray(config):
        return ()
    return ("Ray is not used: each server is on one node, where its processes need none",)


def _words(server: Mapping[str, Any]) -> tuple[str, ...]:
    """The engine's flags among the options of a server."""
    extra = server.get("extra_args") or ()
    return tuple(shlex.split(extra) if isinstance(extra, str) else extra)


def _one_on_each_node(
    config: LaunchConfig, plan: Mapping[str, Any], *, announced: str
) -> Arrangement:
    # reached from the first node, and guarded by a key of its own
    server = merged(_serve_values(plan), {"server": {"host": "0.0.0.0"}})  # noqa: S104
    words = ("--announce", announced, "--remain")
    return Arrangement(
        plan={"instances": 1, "addresses": announced},
        companions=(_companion(config, "server", *words, nodes=config.execution.nodes - 1),),
        files={SERVER: _server_file(server)},
        notes=_without_ray(config),
    )


def _one_over_all_nodes(config: LaunchConfig, plan: Mapping[str, Any], *, job: str) -> Arrangement:
    from enginehouse.engines.base import SupportsNodes

    nodes = config.execution.nodes
    engine = load_engine(config.deployment.type)
    if not isinstance(engine, SupportsNodes):
        others = ", ".join(engines_that(lambda other: isinstance(other, SupportsNodes)))
        raise ConfigurationError(
            f"a server of {engine.name} cannot span {nodes} nodes",
            fix=f"ask for as many instances (num_instances: {nodes}), or use one of: {others}",
        )
    if config.deployment.gpus % nodes:
        raise ConfigurationError(
            f"{config.deployment.gpus} GPUs cannot be divided among {nodes} nodes",
            why="tensor_parallel_size x pipeline_parallel_size x data_parallel_size is the number "
            "of GPUs of a server that spans all nodes",
            fix=f"choose sizes whose product is a multiple of {nodes}, or ask for as many "
            f"instances (num_instances: {nodes})",
        )
    over = config.deployment.distributed_executor_backend
    over = over if over == _RAY else None
    flags = engine.span_flags(nodes, port=_PORTS[int(job[:8], 16) % len(_PORTS)], over=over)
    words = (*_words(plan["server"]), *flags)
    # a part that ends takes the others with it: the job fails, and can be resumed
    changes = {"server": {**plan["server"], "extra_args": words}, "max_restarts": 0}
    notes = [
        "a server over several nodes is not started again in place: if it dies, resume the job"
    ]
    if over is not None:
        notes.append(
            "Ray is started on each node of the job, and ended with it; the engine's environment "
            "needs Ray, which its packages do not include (deployment.python)"
        )
    return Arrangement(
        plan=changes,
        companions=(
            _companion(config, "worker", "--head", "{head}", "--node", "{node}", nodes=nodes - 1),
        ),
        files={SERVER: _server_file({**_serve_values(plan), **changes})},
        notes=tuple(notes),
    )


def arrange_judge(
    config: LaunchConfig, name: str, plan: Mapping[str, Any], *, folder: PurePosixPath
) -> Arrangement:
    """An auxiliary deployment on nodes of its own, given its plan's values for one server.

    Its `plan` is that of those who ask it. Raises ConfigurationError for nodes that it cannot use.
    """
    deployment = config.auxiliary_deployments[name]
    nodes, instances = deployment.num_nodes, deployment.num_instances
    if nodes != instances:
        raise ConfigurationError(
            f"auxiliary_deployments.{name} cannot have {instances} instances on {nodes} nodes",
            why="it has a server on each of its nodes",
            fix=f"set its num_instances to {nodes}, or its num_nodes to {instances}",
        )
    server = merged(_serve_values(plan), {"server": {"host": "0.0.0.0"}})  # noqa: S104
    file, announced = f"{name}.yaml", f"{name}-servers"
    others_go_on = ("--remain",) if nodes > 1 else ()
    words = ("serve", "--config", file, "--announce", announced, *others_go_on)
    return Arrangement(
        plan={"addresses": str(folder / announced), "engine": deployment.type},
        companions=(
            Companion(
                name=name,
                command=(*config.execution.command_words, *words),
                nodes=deployment.num_nodes,
                environment=config.auxiliary_variables[name].environment(),
            ),
        ),
        files={file: _server_file(server)},
    )


def _companion(config: LaunchConfig, name: str, *words: str, nodes: int) -> Companion:
    return Companion(
        name=name,
        command=(*config.execution.command_words, "serve", "--config", SERVER, *words),
        nodes=nodes,
        environment=config.variables.environment(),
    )


def _serve_values(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a plan that a server is started with; adapters are loaded by those who ask."""
    values = {name: plan[name] for name in ServeConfig.model_fields if name in plan}
    if values.pop("adapter", None) is not None:
        lora = {"enable_lora": True, "max_lora_rank": _RANK}
        values["server"] = {**lora, **values["server"]}
    return values


def _server_file(values: Mapping[str, Any]) -> str:
    server = parse(ServeConfig, merged({}, values), origin=SERVER)
    written = server.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return yaml.safe_dump(written, sort_keys=False, allow_unicode=True)
