"""Files of the rewritten NeMo Evaluator launcher (0.3 and later) as launch files.

Such a file has services (models and other servers), benchmarks with a solver that names a service,
and a cluster. A launch file has one model under test, so a file becomes one for each service that
benchmarks are solved with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from enginehouse.core.errors import ConfigurationError, UnknownNameError
from enginehouse.deployment.configuration import read_yaml

_VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::-([^{}]*))?\}")
_PROTOCOLS = {"chat_completions": "chat", "completions": "completions"}
_GENERATION = {"temperature": "temperature", "top_p": "top_p", "max_tokens": "max_new_tokens"}
_PROXY = {
    "request_timeout": "request_timeout",
    "max_retries": "max_retries",
    "max_concurrent_upstream": "parallelism",
}
_SERVER = (
    "port",
    "served_model_name",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "data_parallel_size",
    "image",
)
_SLURM = ("hostname", "username", "account", "walltime", "max_walltime")
_POOL = {
    "partition": "partition",
    "nodes": "num_nodes",
    "ntasks_per_node": "ntasks_per_node",
    "gres": "gres",
}
_ELSEWHERE = {
    "nim": "start NVIDIA's container yourself, as a service of type api",
    "docker_model": "start it yourself, as a service of type api",
    "dynamo": "start it yourself, as a service of type api",
}
_MODEL = re.compile(r"[./~]")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A launch file, and the keys of the original that it lacks, each with the reason."""

    service: str
    values: Mapping[str, Any]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The launch file; what it lacks is named in comments at its head."""
        head = [f"# {key} is left out: {reason}" for key, reason in self.left_out.items()]
        body = yaml.safe_dump(dict(self.values), sort_keys=False, allow_unicode=True)
        return "\n".join([*head, body])


def convert(path: Path, *, service: str | None = None) -> Conversion:
    """The launch file for one service of a file of the rewritten launcher. Blocking.

    `service` may be left out where all benchmarks use the same one. Raises ConfigurationError.
    """
    values = read_yaml(path)
    services, benchmarks = values.get("services"), values.get("benchmarks")
    if not isinstance(services, Mapping) or not isinstance(benchmarks, list):
        raise ConfigurationError(
            f"{path} has no services and benchmarks",
            why="only files for version 0.3 or later of the NeMo Evaluator launcher are converted",
            fix="a file with execution, deployment and evaluation needs no conversion: "
            "enginehouse "
            f"launch run --config {path}",
        )
    solved = [_service_of(benchmark) for benchmark in benchmarks]
    used = sorted({name for name in solved if name is not None})
    if service is None and len(used) > 1:
        raise ConfigurationError(
            f"the benchmarks of {path} use several services: {', '.join(used)}",
            why="a launch file has one model under test",
            fix=f"convert one at a time: --service {used[0]}",
        )
    name = service or (used[0] if used else "")
    if name not in services or not isinstance(services[name], Mapping):
        raise UnknownNameError("service in this file", name, map(str, services))
    own = [
        (index, benchmark)
        for index, (benchmark, solver) in enumerate(zip(benchmarks, solved, strict=True))
        if solver == name
    ]
    converting = _Converting(path, values, name)
    return converting.convert(services[name], own)


def _service_of(benchmark: Any) -> str | None:
    """The service that a benchmark is solved with; early files called it `model`."""
    if not isinstance(benchmark, Mapping):
        return None
    solver = benchmark.get("solver")
    name = solver.get("service") if isinstance(solver, Mapping) else benchmark.get("model")
    return name if isinstance(name, str) else None


class _Converting:
    """Moves what is known to its place; whatever is not taken is left out, and named."""

    def __init__(self, path: Path, values: Mapping[str, Any], service: str) -> None:
        self._path = path
        self._values = values
        self._service = service
        self._left_out: dict[str, str] = {}

    def convert(
        self, service: Mapping[str, Any], benchmarks: Sequence[tuple[int, Mapping[str, Any]]]
    ) -> Conversion:
        """The launch file of the service and its benchmarks."""
        execution = self._execution(service)
        kind = str(service.get("type"))
        if reason := _ELSEWHERE.get(kind):
            raise ConfigurationError(f"the service {self._service} is of type {kind}", fix=reason)
        where = f"services.{self._service}"
        parameters = self._take(service.get("generation"), _GENERATION, f"{where}.generation")
        parameters |= self._take(service.get("proxy"), _PROXY, f"{where}.proxy")
        deployed = kind in ("vllm", "sglang")
        model = self._deployment(service) if deployed else self._target(service, kind)
        ray = deployed and kind == "vllm" and int(service.get("num_nodes", 1)) > 1
        group = "vllm_ray" if ray else kind if deployed else "none"
        tasks = [
            task
            for index, benchmark in benchmarks
            if (task := self._task(benchmark, f"benchmarks.{index}", service)) is not None
        ]
        if not tasks:
            raise ConfigurationError(
                f"no benchmark of {self._path} can be converted",
                why="; ".join(f"{key}: {reason}" for key, reason in self._left_out.items()),
                fix="`enginehouse tasks` lists the tasks that run here",
            )
        evaluation: dict[str, Any] = {"tasks": tasks}
        if parameters:
            evaluation["nemo_evaluator_config"] = {"config": {"params": parameters}}
        self._leave_out(
            "",
            self._values,
            {"services", "benchmarks", "cluster", "output"},
            "it has no counterpart",
        )
        kind_of_place = execution.pop("type")
        place = "slurm/default" if kind_of_place == "slurm" else kind_of_place
        return Conversion(
            service=self._service,
            values={
                "defaults": [{"execution": place}, {"deployment": group}, "_self_"],
                "execution": execution,
                **model,
                "evaluation": evaluation,
            },
            left_out=self._left_out,
        )

    def _execution(self, service: Mapping[str, Any]) -> dict[str, Any]:
        cluster = self._values.get("cluster") or {"type": "local"}
        output = self._values.get("output") or {}
        kind = str(cluster.get("type", "local"))
        if kind not in ("local", "docker", "slurm"):
            raise UnknownNameError("type of cluster", kind, ("local", "docker", "slurm"))
        folder = output.get("dir") or ("???" if kind == "slurm" else "results")
        execution: dict[str, Any] = {"type": kind, "output_dir": _resolvable(folder)}
        taken = {"type", "node_pools", "container_env"}
        if kind == "slurm":
            execution |= {key: _resolvable(cluster[key]) for key in _SLURM if cluster.get(key)}
            taken |= {*_SLURM, "auto_resume"}  # an interrupted job is always resumed
            execution |= self._pool(cluster, service)
        if variables := cluster.get("container_env"):
            execution["env_vars"] = {"evaluation": _variables(variables)}
        if mounts := cluster.get("container_mounts"):
            pairs = dict(str(mount).split(":")[:2] for mount in mounts)
            execution["mounts"] = {"deployment": pairs, "evaluation": pairs}
            taken.add("container_mounts")
        self._leave_out("cluster", cluster, taken, "it has no counterpart")
        self._leave_out("output", output, {"dir"}, "`enginehouse launch export` writes reports")
        return execution

    def _pool(self, cluster: Mapping[str, Any], service: Mapping[str, Any]) -> dict[str, Any]:
        pools = cluster.get("node_pools") or {}
        name = service.get("node_pool") or next(iter(pools), None)
        if name is None:
            return {}
        if name not in pools:
            raise UnknownNameError("node pool in this file", str(name), map(str, pools))
        unused = {key: pool for key, pool in pools.items() if key != name}
        self._leave_out("cluster.node_pools", unused, (), f"{self._service} does not use it")
        pool = self._take(pools[name], _POOL, f"cluster.node_pools.{name}")
        if (nodes := int(service.get("num_nodes", 1))) > 1:
            pool["num_nodes"] = nodes
        return pool

    def _deployment(self, service: Mapping[str, Any]) -> dict[str, Any]:
        model = str(service.get("model") or "")
        source = "checkpoint_path" if _MODEL.match(model) else "hf_model_handle"
        deployment: dict[str, Any] = {source: _resolvable(model)}
        # the launcher's own default is a single GPU, that of a launch file's group is eight
        deployment["tensor_parallel_size"] = 1
        deployment |= {key: _resolvable(service[key]) for key in _SERVER if service.get(key)}
        deployment.setdefault("served_model_name", self._service)
        if words := service.get("extra_args"):
            deployment["extra_args"] = [_resolvable(word) for word in words]
        if variables := service.get("extra_env"):
            deployment["env_vars"] = _variables(variables)
        lines = [*(service.get("setup_commands") or ()), service.get("pre_cmd")]
        if script := "\n".join(line for line in lines if line):
            deployment["pre_cmd"] = script
        taken = {
            *_SERVER,
            *("type", "model", "extra_args", "extra_env", "setup_commands", "pre_cmd"),
            *("protocol", "generation", "proxy", "node_pool", "num_nodes"),
        }
        self._leave_out(
            f"services.{self._service}", service, taken, "the server has no such option"
        )
        return {"deployment": deployment}

    def _target(self, service: Mapping[str, Any], kind: str) -> dict[str, Any]:
        where = f"services.{self._service}"
        if kind != "api":
            raise ConfigurationError(
                f"the service {self._service} is of type {kind}, which is not a model",
                fix="name one of type api, vllm or sglang: --service NAME",
            )
        endpoint = {"url": _resolvable(service.get("url"))}
        if model := service.get("model"):
            endpoint["model_id"] = _resolvable(model)
        key = str(service.get("api_key") or "")
        if match := _VARIABLE.fullmatch(key):
            endpoint["api_key_name"] = match[1]
        elif key:
            endpoint["api_key_name"] = "API_KEY"
            self._left_out[f"{where}.api_key"] = "keys do not belong in a file: export API_KEY"
        taken = {"type", "url", "model", "api_key", "protocol", "generation", "proxy"}
        self._leave_out(where, service, taken, "a running server keeps its own settings")
        return {"target": {"api_endpoint": endpoint}}

    def _task(
        self, benchmark: Mapping[str, Any], where: str, service: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        solver = benchmark.get("solver")
        solver = solver if isinstance(solver, Mapping) else {"type": "simple"}
        if (kind := solver.get("type", "simple")) != "simple":
            self._left_out[where] = f"there is no counterpart of the solver {kind}"
            return None
        protocol = str(service.get("protocol") or benchmark.get("endpoint_type") or "")
        task: dict[str, Any] = {
            "name": str(benchmark.get("name")).replace("lm-eval://", "lm-eval.")
        }
        endpoint = _PROTOCOLS.get(protocol, protocol)
        if endpoint in _PROTOCOLS.values():
            task["endpoint_type"] = endpoint
        elif endpoint:
            self._left_out[f"services.{self._service}.protocol"] = f"requests do not use {endpoint}"
        names = {"max_problems": "limit_samples", "max_concurrent": "parallelism"}
        parameters = {new: benchmark[old] for old, new in names.items() if benchmark.get(old)}
        parameters |= self._take(
            solver.get("generation"), _GENERATION, f"{where}.solver.generation"
        )
        if benchmark.get("repeats", 1) != 1:
            parameters["extra"] = {"n_samples": benchmark["repeats"]}
        config: dict[str, Any] = {"config": {"params": parameters}} if parameters else {}
        if prompt := solver.get("system_prompt"):
            adapter = {"use_system_prompt": True, "custom_system_prompt": _resolvable(prompt)}
            config["target"] = {"api_endpoint": {"adapter_config": adapter}}
        if config:
            task["nemo_evaluator_config"] = config
        taken = {"name", "solver", "model", "endpoint_type", "repeats", *names}
        self._leave_out(
            where, benchmark, taken, "a task's scoring is fixed; see `enginehouse tasks`"
        )
        self._leave_out(
            f"{where}.solver",
            solver,
            {"type", "service", "generation", "system_prompt"},
            "tasks send text prompts only",
        )
        return task

    def _take(self, values: Any, names: Mapping[str, str], where: str) -> dict[str, Any]:
        """The values under their new names; the others are left out."""
        if not isinstance(values, Mapping):
            return {}
        self._leave_out(where, values, names, "it has no counterpart")
        return {
            new: _resolvable(values[old])
            for old, new in names.items()
            if values.get(old) is not None
        }

    def _leave_out(
        self, where: str, values: Mapping[str, Any], taken: Iterable[str], reason: str
    ) -> None:
        known = set(taken)
        for key in values:
            if key not in known:
                self._left_out[f"{where}.{key}" if where else str(key)] = reason


def _resolvable(value: Any) -> Any:
    """A value whose ${VARIABLE} is Hydra's ${oc.env:VARIABLE}."""
    if not isinstance(value, str):
        return value

    def resolver(match: re.Match[str]) -> str:
        default = f",{match[2]}" if match[2] is not None else ""
        return f"${{oc.env:{match[1]}{default}}}"

    return _VARIABLE.sub(resolver, value)


def _variables(values: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a job: those that are one of this machine's are named, not read."""
    return {
        name: f"host:{match[1]}"
        if (match := _VARIABLE.fullmatch(str(value)))
        else f"lit:{_resolvable(str(value))}"
        for name, value in values.items()
    }
