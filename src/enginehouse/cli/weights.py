"""enginehouse weights swap, info, merge."""

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
    str, typer.Argument(help="A server's name, as `enginehouse ps` lists it, or a vLLM's address.")
]


@weights.command()
def swap(
    server: ServerArgument,
    path: Annotated[Path, typer.Argument(help="The checkpoint's folder.")],
    *,
    abort: Annotated[
        bool,
        typer.Option("--abort", help="Abort in-flight requests instead of waiting for them."),
    ] = False,
    deadline: Annotated[
        float,
        typer.Option(
            "--deadline",
            min=0.001,
            callback=finite,
            help="The longest the swap may take, in seconds.",
        ),
    ] = DEADLINE,
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Replace a running server's weights with a checkpoint. If that fails, nothing changes."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    from enginehouse.deployment.swapping import swapper_of

    async def run() -> Swapped:
        async with swapper_of(server, layout=Layout.from_environment()) as swapper:
            return await swapper.swap(
                path, in_flight="abort" if abort else "drain", deadline=deadline
            )

    swapped = run_async(run())
    if swapped.unloaded:
        console.note(
            f"unloaded {', '.join(swapped.unloaded)}: no effect after the server's sleep, even "
            "when loaded again"
        )
    seconds = swapped.checking + swapped.draining + swapped.replacing + swapped.canary
    after = swapped.after
    console.result(
        swapped,
        text=lambda: console.say(
            f"{server} has the weights in {after.path} (digest {after.digest[:12]}, "
            f"version {after.version}) after {seconds:.1f} s"
        ),
    )


@weights.command()
def info(server: ServerArgument, *, json: JsonOption = False) -> None:
    """Show which weights a server has: path, digest, version."""
    console = Console(json=json)
    from enginehouse.deployment.swapping import weights_info

    current = run_async(weights_info(server, layout=Layout.from_environment()))

    def text() -> None:
        sent = f"none, they were sent by a trainer; a restart restores those in {current.declared}"
        console.say(f"path:    {current.path or sent}")
        console.say(f"digest:  {current.digest}")
        console.say(f"version: {current.version}")
        if not current.agrees:
            console.say(
                f"but the server calls its weights {current.named!r}: either a swap was "
                "interrupted or the server is restarting; swap again to fix this"
            )

    console.result(current, text=text)


@weights.command()
def merge(
    base: Annotated[Path, typer.Argument(help="The base model's checkpoint, a folder.")],
    adapter: Annotated[Path, typer.Argument(help="The LoRA adapter's folder, as PEFT saves it.")],
    out: Annotated[Path, typer.Argument(help="The folder to write, which does not exist yet.")],
    *,
    keep_dtype: Annotated[
        bool,
        typer.Option(
            "--keep-dtype",
            help="Round the changed weights to the base model's type instead of storing them in "
            "float32.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Merge an adapter into its base model: a checkpoint that needs no adapter any more."""
    console = Console(json=json)
    from enginehouse.weights import merge as merging

    merged = merging.merge(base, adapter, out, keep_dtype=keep_dtype)

    def text() -> None:
        types = " and ".join(merged.dtypes)
        console.say(f"{out} has the changes of {merged.modules} modules, stored as {types}")
        if merged.untied:
            console.say(
                "its output layer has separate weights, although the base model shares them with "
                "its embedding"
            )

    console.result(merged, text=text)
