"""enginehouse adapters load, list, unload, verify."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from enginehouse.cli.console import Console, run_async
from enginehouse.cli.options import JsonOption, QuietOption, VerboseOption
from enginehouse.core.errors import UnknownNameError
from enginehouse.runtime.context import Context

if TYPE_CHECKING:
    from enginehouse.deployment.adapters import Adapters, Proof, ProvenAdapter

adapters = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
ServerArgument = Annotated[
    str, typer.Argument(help="A name that `enginehouse ps` lists, or a server's address.")
]
ProveOption = Annotated[
    str,
    typer.Option(
        "--prove",
        help="effect: it changes log-probabilities; peft: and they are PEFT's own; none.",
    ),
]
T = TypeVar("T")


@adapters.command()
def load(
    server: ServerArgument,
    adapter: Annotated[str, typer.Argument(help="NAME=FOLDER, or a folder, whose name it gets.")],
    *,
    prove: ProveOption = "effect",
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check an adapter, load it into a running server, and prove that it has an effect."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    path, proof = Path(adapter), _proof(prove)
    from enginehouse.weights.pool import alias_of

    alias = alias_of(path)
    if "=" in adapter and not path.is_dir():  # which may have one in its name
        alias, _, folder = adapter.partition("=")
        path = Path(folder)
    done = _with(server, console, lambda it: it.load(alias, path, proof=proof))
    console.result(done, text=lambda: _print(done, console))


@adapters.command("list")
def list_(server: ServerArgument, *, json: JsonOption = False) -> None:
    """List the adapters that a server has."""
    console = Console(json=json)
    found = _with(server, console, lambda it: it.list())

    def text() -> None:
        for one in found:
            console.say(f"{one.model}  {one.path or ''}")

    console.result(found, text=text)


@adapters.command()
def unload(
    server: ServerArgument,
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    *,
    json: JsonOption = False,
) -> None:
    """Unload an adapter."""
    console = Console(json=json)
    gone = _with(server, console, lambda it: it.unload(name))
    console.result(gone, text=lambda: console.say(f"unloaded {', '.join(a.model for a in gone)}"))


@adapters.command()
def verify(
    server: ServerArgument,
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    *,
    prove: ProveOption = "effect",
    json: JsonOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check that an adapter's content is what was loaded, and that it has an effect."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    proof = _proof(prove)
    done = _with(server, console, lambda it: it.verify(name, proof=proof))
    console.result(done, text=lambda: _print(done, console))


def _with(server: str, console: Console, work: Callable[[Adapters], Awaitable[T]]) -> T:
    from enginehouse.deployment.adapters import adapters_of

    async def run() -> T:
        async with adapters_of(server, Context(notify=console.note)) as adapters:
            return await work(adapters)

    return run_async(run())


def _proof(given: str) -> Proof:
    for proof in ("none", "effect", "peft"):
        if given == proof:
            return proof
    raise UnknownNameError("proof", given, ["none", "effect", "peft"])


def _print(done: ProvenAdapter, console: Console) -> None:
    console.say(f"model:  {done.adapter.model}")
    console.say(f"digest: {done.adapter.digest}")
    if done.effect is not None:
        console.say(
            f"effect: {done.effect.mean_difference:.3g} nats a token from the base, "
            f"{done.effect.largest_difference:.3g} at most"
        )
    if done.parity is not None:
        console.say(
            f"peft:   {done.parity.mean:.3g} nats a token from PEFT's own values, "
            f"{done.parity.largest:.3g} at most"
        )
