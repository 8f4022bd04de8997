"""enginehouse weights swap, info."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import JsonOption, QuietOption, VerboseOption, finite
from enginehouse.store.layout import Layout
from enginehouse.weights.limits import DEADLINE

if TYPE_CHECKING:
    from enginehouse.weights.swap import Swapped

weights = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
ServerArgument = Annotated[
    str, typer.Argument(help="A name that `enginehouse ps` lists, or a vLLM's address.")
]


@weights.command()
def swap(
    server: ServerArgument,
    path: Annotated[Path, typer.Argument(help="The checkpoint's folder.")],
    *,
    abort: Annotated[
        bool, typer.Option("--abort", help="Give requests under way up; else they end first.")
    ] = False,
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            min=0.001,
            callback=finite,
            help="Seconds that the swap may take.",
        ),
    ] = DEADLINE,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put a checkpoint in the place of a running server's weights, or leave everything as it is."""
    console = Console(json=json, verbose=verbose, quiet=quiet)

    from enginehouse.deployment.swapping import swapper_of

    async def work() -> Swapped:
        async with swapper_of(server, layout=Layout.from_environment()) as swapper:
            return await swapper.swap(
                path, in_flight="abort" if abort else "drain", deadline=deadline
            )

    done = run_async(work())
    seconds = done.checking + done.draining + done.replacing + done.canary
    if done.unloaded:
        console.note(
            f"unloaded {', '.join(done.unloaded)}: without effect after the server's sleep, even "
            "when loaded again"
        )
    console.result(
        done,
        text=lambda: console.say(
            f"{server} has the weights in {done.after.path} (digest {done.after.digest[:12]}, "
            f"version {done.after.version}) after {seconds:.1f} s"
        ),
    )


@weights.command()
def info(server: ServerArgument, *, json: JsonOption = False) -> None:
    """Say which weights a server has: path, digest, version."""
    console = Console(json=json)
    from enginehouse.deployment.swapping import weights_info

    found = run_async(weights_info(server, layout=Layout.from_environment()))

    def text() -> None:
        sent = f"none: they were sent; a restart brings back those in {found.declared}"
        console.say(f"path:    {found.path or sent}")
        console.say(f"digest:  {found.digest}")
        console.say(f"version: {found.version}")
        if not found.agrees:
            console.say(
                f"but the server calls its weights {found.named!r}: a swap was broken off, or it "
                "is being started again; swap once more to mend it"
            )

    console.result(found, text=text)
