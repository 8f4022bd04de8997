"""enginehouse tinker serve, status, keys."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import (
    Given,
    JsonOption,
    QuietOption,
    VerboseOption,
    with_config_options,
)
from enginehouse.core.errors import ConfigurationError
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout
from enginehouse.tinker.configuration import TinkerConfig, with_variables

if TYPE_CHECKING:
    from enginehouse.tinker.service_status import ServiceStatus

tinker = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
tinker.add_typer(keys, name="keys", help="Make, list and revoke API keys.")
_EXTRA = {"alembic", "google", "prometheus_client", "psycopg", "sqlalchemy", "tinker"}
_SHOWN = 8  # adapters that `status` names
HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="The service's home; by default the one in the state folder."),
]


@tinker.command()
@with_config_options(TinkerConfig)
def serve(*, given: Given[TinkerConfig], console: Console) -> None:
    """Let users of the tinker SDK train and sample LoRAs of one base model, until Ctrl-C."""
    from enginehouse.deployment.configuration import merged, read_yaml

    chosen = with_variables(
        merged(read_yaml(given.file) if given.file else {}, given.options), os.environ
    )
    config = given.parse(chosen.values)
    for note in chosen.notes:
        console.note(note)
    with _extra():
        from enginehouse.commands.tinker import serve_until_stopped

        context = Context(notify=console.note)

        def ready(url: str) -> None:
            home = config.folder(context.layout)
            facts = {"url": url, "base_model": config.base_model, "home": str(home)}
            console.result(facts, text=lambda: _announce(url, home, console))

        run_async(serve_until_stopped(config, context, ready=ready))


def _announce(url: str, home: Path, console: Console) -> None:
    console.say(f"ready: {url}")
    console.say(f"use:   export TINKER_BASE_URL={url} TINKER_API_KEY=tml-…")
    console.say(f"keys:  enginehouse tinker keys add NAME --home {home}")
    console.say(f"state: enginehouse tinker status --home {home}")
    console.say("stop:  Ctrl-C")


@tinker.command()
def status(
    *,
    url: Annotated[
        str | None,
        typer.Option("--url", help="The service's URL; by default the one stored in its home."),
    ] = None,
    home: HomeOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show a running service's queue, adapters and users, and how far engines disagree."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    with _extra():
        from enginehouse.commands.tinker import ask_status

        answer = run_async(ask_status(_home(home), url=url))
        console.result(answer, text=lambda: _print(answer, console))


def _print(answer: ServiceStatus, console: Console) -> None:
    from enginehouse.report.terminal import print_rows

    queue = answer.queue
    console.say(
        f"{answer.base_model}: trainer {queue.trainer}, {answer.sessions} sessions, "
        f"{answer.futures} requests without an answer, up for {answer.uptime_seconds:.0f} s"
    )
    for notice in (*answer.notices, *queue.warnings):
        console.say(f"note: {notice}")
    for name, value in answer.sampling.items():
        console.say(f"sampling, {name.replace('_', ' ')}: {_words(value)}")
    samples = {load.user: load for load in answer.samples}
    trained = {user.user: user for user in queue.users}
    rows = []
    for user in sorted({*samples, *trained}):
        jobs, load = trained.get(user), samples.get(user)
        reasons = jobs.reasons if jobs else {}
        rows.append(
            (
                user,
                f"{jobs.tokens_per_second:.1f}" if jobs else "0.0",
                f"{load.tokens_per_second:.1f}" if load else "0.0",
                str(jobs.waiting if jobs else 0),
                str(load.in_flight if load else 0),
                str(load.waiting if load else 0),
                "; ".join(f"{count}: {reason}" for reason, count in reasons.items()),
            )
        )
    if rows:
        figures = ("trained tok/s", "sampled tok/s", "jobs", "samples", "waiting")
        print_rows(("user", *figures, "why jobs wait"), rows, right=range(1, 6))
    models = [
        (
            model.model_id,
            model.user,
            model.lost or ("in memory" if model.resident else "on disk"),
            str(model.done),
            str(model.waiting),
            f"{model.kl.v1:.5f}" if model.kl else "-",
            f"{model.kl.v2:.5f}" if model.kl else "-",
        )
        for model in queue.models
    ]
    if models:
        titles = ("model", "user", "adapter", "done", "waiting", "KL v1", "KL v2")
        print_rows(titles, models, right=range(3, 7))


def _words(value: object) -> str:
    """A value of the sampling engine's description, in one line."""
    if isinstance(value, dict):
        return "; ".join(f"{name.replace('_', ' ')} {_words(v)}" for name, v in value.items())
    if isinstance(value, list):
        more = [f"and {len(value) - _SHOWN} more"] if len(value) > _SHOWN else []
        return ", ".join([*map(str, value[:_SHOWN]), *more]) or "none"
    return str(value) or "none"


@keys.command()
def add(
    user: Annotated[str, typer.Argument(help="The user that the key belongs to.")],
    *,
    note: Annotated[str, typer.Option("--note", help="What the key is for.")] = "",
    home: HomeOption = None,
    json: JsonOption = False,
) -> None:
    """Make an API key for a user, and print it once."""
    console = Console(json=json)
    with _extra():
        from enginehouse.tinker.keys import KEYS, KeyFile

        key = KeyFile(_home(home) / KEYS).add(user, note=note)
        console.result({"user": user, "key": key}, text=lambda: console.say(key))
        console.note("it is stored hashed and cannot be shown again; TINKER_API_KEY is for it")


@keys.command("list")
def list_(
    *,
    home: HomeOption = None,
    keys_file: Annotated[
        Path | None, typer.Option("--keys-file", help="The operator's own file of keys, if any.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the keys, by the beginning of their hashes."""
    console = Console(json=json)
    with _extra():
        from enginehouse.tinker.keys import list_keys

        found = list_keys(_home(home), operator_file=keys_file)

        def text() -> None:
            from enginehouse.report.terminal import print_rows

            if not found:
                console.note("no keys; `enginehouse tinker keys add NAME` makes one")
                return
            rows = [
                (
                    listed.key.key_id,
                    listed.key.user,
                    f"{listed.key.created:%Y-%m-%d %H:%M}" if listed.key.created else "-",
                    listed.key.note,
                    listed.place,
                )
                for listed in found
            ]
            print_rows(("key", "user", "made (UTC)", "note", "from"), rows)

        console.result(found, text=text)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    *,
    home: HomeOption = None,
) -> None:
    """Revoke a key; a running service refuses it from then on."""
    console = Console()
    with _extra():
        from enginehouse.tinker.keys import KEYS, KeyFile

        revoked = KeyFile(_home(home) / KEYS).revoke(key)
        console.say(f"revoked {revoked.key_id} of {revoked.user}")


def _home(given: Path | None) -> Path:
    return (given or Layout.from_environment().tinker).expanduser().absolute()


@keys.callback()
def _key_group() -> None:
    """Who may use the service."""


@tinker.callback()
def _group() -> None:
    """The Tinker service."""


@contextmanager
def _extra() -> Iterator[None]:
    """Say how to install what the service needs, where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise ConfigurationError(
            "the packages of the Tinker service are not installed",
            why=f"there is no module {error.name}",
            fix="pip install 'enginehouse[tinker]'",
        ) from None
