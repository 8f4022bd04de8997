"""A generic server's command, which a shell runs, and its environment."""

from __future__ import annotations

import os
import re

from enginehouse.core.errors import ConfigurationError
from enginehouse.engines import arguments
from enginehouse.engines.base import LaunchContext
from enginehouse.engines.checks import require_free_variables
from enginehouse.engines.options import ServerOptions
from enginehouse.processes.process import Command
from enginehouse.provisioning.environments import EngineEnvironment

_TOLD = ("HOST", "PORT", "SERVED_MODEL_NAME", "API_KEY")
_TAKEN = {
    *("command", "health_path", "only_endpoint", "extra_args"),
    *("host", "port", "served_model_name", "api_key", "env_vars", "env_names", "avoid_quirks"),
}
# A command gets of our variables what a shell would give it, but no key that is not meant for it.
_NOT_INHERITED = re.compile(
    r"^ENGINEHOUSE_|(?:^|_)(?:TOKEN|KEY|SECRET|PASS|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH)S?"
    r"(?:_FOR_\w+)?$",
    re.IGNORECASE,
)


def check(options: ServerOptions, environment: EngineEnvironment) -> None:  # noqa: ARG001
    """Raise what ServedEngine.check does."""
    if not (options.command or "").strip():
        raise ConfigurationError(
            "a generic server needs its command",
            fix="give --command 'my-server --port $PORT' (server.command in a plan)",
        )
    if given := sorted(options.model_dump(exclude_defaults=True).keys() - _TAKEN):
        raise ConfigurationError(
            f"a generic server cannot have {', '.join(given)}",
            why="how its command is told that is not known",
            fix="leave it out, and put the server's own flags into its command",
        )
    told = dict.fromkeys(_TOLD, "the command is told by it how to serve")
    require_free_variables(options, told)


def command(options: ServerOptions, context: LaunchContext) -> Command:
    """The shell that runs the command, and its whole environment."""
    assert options.command is not None, "see check"
    env = {name: v for name, v in os.environ.items() if not _NOT_INHERITED.search(name)}
    env |= {
        "HOST": options.host,
        "PORT": str(context.port),
        "SERVED_MODEL_NAME": context.served_model_name,
    }
    if options.api_key:
        env["API_KEY"] = options.api_key
    script = options.command.strip()
    words: tuple[str, ...] = ()
    if extra := arguments.split(options.extra_args):
        script, words = f'{script} "$@"', ("sh", *extra)
    argv = (str(context.environment.executable), "-c", script, *words)
    return Command(argv=argv, env=env | dict(options.env_vars))
