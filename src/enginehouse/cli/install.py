"""enginehouse install, enginehouse envs, enginehouse envs remove."""

from __future__ import annotations

from typing import Annotated

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import (
    JsonOption,
    QuietOption,
    VariantOption,
    VerboseOption,
    VersionOption,
)
from enginehouse.engines.registry import DEFAULT_ENGINE
from enginehouse.runtime.context import Context
from enginehouse.store.layout import Layout

envs = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


def install(
    engine: Annotated[
        str,
        typer.Argument(
            help="An engine that runs here (`enginehouse engines` lists them); a harness, such as "
            "lm-eval; or trainer, for the Tinker service."
        ),
    ] = DEFAULT_ENGINE,
    *,
    variant: VariantOption = None,
    version: VersionOption = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only print what would be built.")] = False,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Build an isolated environment for an engine or a harness, unless it exists already."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    layout = Layout.from_environment()
    from enginehouse.commands.installations import load_installation
    from enginehouse.provisioning.environments import ensure_environment
    from enginehouse.provisioning.versions import find_plan

    context = Context(layout=layout, notify=console.note)
    installation = load_installation(engine)
    planned = run_async(find_plan(installation, version=version, variant=variant, context=context))
    if plan:
        console.result(planned, text=lambda: console.say(planned.describe()))
        return

    built = run_async(ensure_environment(planned, installation=installation, context=context))
    summary = {"key": built.key, "executable": str(built.executable), "version": built.version}
    console.result(summary, text=lambda: console.say(f"{built.key}: {built.executable}"))


@envs.callback()
def list_all(context: typer.Context, *, json: JsonOption = False) -> None:
    """List engine environments."""
    if context.invoked_subcommand:
        return
    console = Console(json=json)
    from enginehouse.provisioning.inventory import list_environments
    from enginehouse.report.terminal import print_rows

    environments = list_environments(Layout.from_environment())

    def text() -> None:
        if not environments:
            console.note("no engine environments; `enginehouse install` builds one")
            return
        rows = [
            (
                e.key,
                f"{e.size_bytes / 2**30:.1f} GiB",
                "yes" if e.in_use else "no",
                str(e.executable),
            )
            for e in environments
        ]
        print_rows(("environment", "size", "in use", "executable"), rows)

    console.result(environments, text=text)


@envs.command()
def remove(
    key: Annotated[
        str, typer.Argument(help="The environment's name, as `enginehouse envs` lists it.")
    ],
) -> None:
    """Remove an engine environment."""
    from enginehouse.provisioning.inventory import remove_environment

    remove_environment(key, layout=Layout.from_environment())
    Console().note(f"removed {key}")
