"""`enginehouse run-with`: any program, with a deployment behind its OpenAI client."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence

from enginehouse.commands.configuration import RunWithConfig
from enginehouse.commands.gateway import with_adapter_folder
from enginehouse.core.errors import ConfigurationError, StopError
from enginehouse.core.incidents import Incident
from enginehouse.deployment.opening import open_deployment
from enginehouse.deployment.running_servers import with_running_server
from enginehouse.gateway.configuration import GatewayOptions
from enginehouse.gateway.service import Gateway, open_gateway
from enginehouse.processes.foreground import require_program, run_in_foreground
from enginehouse.processes.process import Command
from enginehouse.runtime.context import Context
from enginehouse.runtime.interrupts import SignalRoute

_ADDRESSES = (
    "OPENAI_BASE_URL",
    "OPENAI_API_BASE",
    "VLLM_BASE_URL",
    "HOSTED_VLLM_API_BASE",
    "PRIME_INFERENCE_URL",
)
_KEYS = ("OPENAI_API_KEY", "VLLM_API_KEY", "HOSTED_VLLM_API_KEY", "PRIME_API_KEY")
_MODELS = ("OPENAI_MODEL", "OPENAI_MODEL_NAME")
# What would lead a client past the address that it is given: another service's protocol, a proxy.
_REMOVED = ("OPENAI_API_TYPE", "OPENAI_API_VERSION", "OPENAI_PROXY")
_NOT_PROXIED = ("127.0.0.1", "localhost")


async def run_with(
    config: RunWithConfig, context: Context, *, argv: Sequence[str], signals: SignalRoute
) -> int:
    """Run `argv` with clients' variables set to a gateway; returns its exit status.

    That is 128 + N for a program that signal N ended. The server, if one was started, and all that
    the program has left running have ended then. While the program runs, signals are passed on to
    it. Raises CommandNotFoundError, NotExecutableError, and what `open_deployment` and
    `open_gateway` do.
    """
    if not argv:
        raise ConfigurationError(
            "there is nothing to run", fix="enginehouse run-with MODEL -- COMMAND …"
        )
    argv = tuple(argv)
    require_program(Command(argv=argv, env=os.environ))
    options = GatewayOptions(
        api_key=secrets.token_urlsafe(32),  # others on this machine cannot read our variables
        max_loras=config.plan.server.max_loras,
        settings=config.settings,
    )
    plan = with_running_server(config.plan, layout=context.layout)
    plan = await asyncio.to_thread(with_adapter_folder, plan, config.settings.adapters)
    status: int | None = None
    try:
        async with (
            open_deployment(plan, context) as deployment,
            open_gateway(deployment, options, context) as gateway,
        ):
            command = Command(argv=argv, env=variables_for(gateway, before=os.environ))
            with deployment.incidents.subscribe(lambda incident: _note_end(incident, context)):
                async with run_in_foreground(command) as process:
                    with signals.passing_to(process.forward):
                        code = await process.wait()
                    status = 128 - code if code < 0 else code
    except StopError as error:
        if status is None:
            raise
        context.notify(f"warning: {error}")
    return status


def variables_for(gateway: Gateway, *, before: Mapping[str, str]) -> dict[str, str]:
    """The environment `before` with the variables that clients read set to the gateway.

    docs/run-with.md says which client reads which.
    """
    url, key, model = f"{gateway.url}/v1", gateway.api_key, gateway.model
    assert key is not None
    variables = {name: value for name, value in before.items() if name not in _REMOVED}
    variables |= dict.fromkeys(_ADDRESSES, url) | dict.fromkeys(_KEYS, key)
    variables |= dict.fromkeys(_MODELS, model)
    variables["INSPECT_EVAL_MODEL"] = f"vllm/{model}"
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in variables.get(name, "").split(",") if host.strip()]
        variables[name] = ",".join([*hosts, *(each for each in _NOT_PROXIED if each not in hosts)])
    return variables


def _note_end(incident: Incident, context: Context) -> None:
    """Say that the server is given up; the program's requests fail from then on."""
    if incident.given_up:
        context.notify(f"the server is gone for good: {incident.consequence}: {incident.cause}")
