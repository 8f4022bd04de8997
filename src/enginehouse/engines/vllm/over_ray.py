"""A vLLM server whose machines are joined by Ray: see payloads/vllm_over_ray.py.

Its options have vLLM's own flags, `--nnodes`, `--master-port` and `--distributed-executor-backend
ray`. vLLM itself takes the first two only without Ray, so here they say how Ray is started.
"""

from __future__ import annotations

from collections.abc import Sequence

from enginehouse.core.errors import ConfigurationError
from enginehouse.engines.addresses import own_address
from enginehouse.engines.arguments import Argument
from enginehouse.engines.base import LaunchContext
from enginehouse.provisioning.programs import PAYLOADS

NODES, PORT, BACKEND = "--nnodes", "--master-port", "--distributed-executor-backend"


def span_flags(nodes: int, *, port: int) -> tuple[str, ...]:
    """What is added to the options of a server on so many machines."""
    return (NODES, str(nodes), PORT, str(port), BACKEND, "ray")


def is_over_ray(extra: Sequence[Argument]) -> bool:
    """Whether the flags are those of a server on several machines that are joined by Ray."""
    values = {argument.flag: argument.values for argument in extra}
    return NODES in values and values.get(BACKEND) == ("ray",)


def without_ours(extra: Sequence[Argument]) -> list[str]:
    """The words of the flags that vLLM is given."""
    words: list[str] = []
    for argument in extra:
        if argument.flag not in (NODES, PORT):
            name, equals, _ = argument.given.partition("=")
            words += [argument.given, *argument.values[1:]] if equals else [name, *argument.values]
    return words


def head(
    server: Sequence[str], extra: Sequence[Argument], context: LaunchContext
) -> tuple[str, ...]:
    """The command of the first machine, given that of the server."""
    (nodes,) = next(a.values for a in extra if a.flag == NODES)
    words = ("--nodes", nodes, "--", *server)
    return (*_program("head", extra, context), *words)


def worker(extra: Sequence[Argument], context: LaunchContext, *, first: str) -> tuple[str, ...]:
    """The command of another machine, given the first one's name."""
    return (*_program("worker", extra, context), "--head", first)


def _program(role: str, extra: Sequence[Argument], context: LaunchContext) -> tuple[str, ...]:
    port = next((a.values[0] for a in extra if a.flag == PORT and a.values), None)
    if port is None:
        raise ConfigurationError(
            f"a server over several machines needs {PORT}",
            fix=f"add {PORT} PORT to extra_args, a port that is free on the first machine, and the "
            "next one, too",
        )
    return (
        *(str(context.environment.executable), str(PAYLOADS / "vllm_over_ray.py"), role),
        *("--address", own_address(), "--port", port, "--patience", str(context.start_limit)),
    )
