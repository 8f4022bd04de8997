"""What each of several servers on one machine has to itself: GPUs, or CPU cores."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from enginehouse.core.errors import ConfigurationError
from enginehouse.deployment.preparation import Prepared
from enginehouse.processes.gpus import read_gpus
from enginehouse.runtime.context import Notify

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Share:
    """A server's preparation with its own GPUs, and the cores it runs on; None is all of them."""

    prepared: Prepared
    cpus: frozenset[int] | None = None


def divide_machine(prepared: Prepared, instances: int, *, notify: Notify) -> tuple[Share, ...]:
    """Equal shares of this machine for so many servers. Blocking.

    Servers that compute on GPUs get as many of those that are visible (CUDA_VISIBLE_DEVICES) each;
    others get cores. Raises ConfigurationError if there are too few GPUs.
    """
    if instances == 1:
        return (Share(prepared=prepared),)
    if prepared.environment.variant == "cuda":
        return _with_gpus(prepared, instances)
    if not hasattr(os, "sched_getaffinity"):  # Linux only
        return (Share(prepared=prepared),) * instances
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < instances:
        notify(f"{instances} servers share {len(cores)} cores, and will slow each other down")
        return (Share(prepared=prepared),) * instances
    each = len(cores) // instances
    return tuple(
        Share(prepared=prepared, cpus=frozenset(cores[n * each : (n + 1) * each]))
        for n in range(instances)
    )


def _with_gpus(prepared: Prepared, instances: int) -> tuple[Share, ...]:
    options = prepared.options
    named = options.env_vars.get(_VISIBLE) or os.environ.get(_VISIBLE)
    if named:
        gpus = [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    else:
        gpus = [str(gpu.index) for gpu in read_gpus()]
    needed = (
        (options.tensor_parallel_size or 1)
        * (options.pipeline_parallel_size or 1)
        * (options.data_parallel_size or 1)
    )
    each = len(gpus) // instances
    if each < needed:
        raise ConfigurationError(
            f"{instances} instances on {needed} GPU(s) each need {instances * needed}",
            why=f"this machine has {len(gpus)}" + (f" in {_VISIBLE}" if named else ""),
            fix=f"ask for at most {len(gpus) // needed} instances, or for fewer GPUs for each "
            "(tensor, pipeline and data parallel size)",
        )
    return tuple(
        Share(
            prepared=replace(
                prepared,
                options=options.model_copy(
                    update={
                        "env_vars": {
                            **options.env_vars,
                            _VISIBLE: ",".join(gpus[n * each : (n + 1) * each]),
                        }
                    }
                ),
            )
        )
        for n in range(instances)
    )
