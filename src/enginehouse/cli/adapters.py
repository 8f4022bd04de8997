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
    str, typer.Argument(help="A server's name, as `enginehouse ps` lists it, or its address.")
]
ProveOption = Annotated[
    str,
    typer.Option(
        "--prove",
        help="effect: the adapter changes log-probabilities; "
        "peft: they also agree with PEFT's; none: do not check.",
    ),
]
T = TypeVar("T")


@adapters.command()
def load(
    server: ServerArgument,
    adapter: Annotated[
        str, typer.Argument(help="NAME=FOLDER, or a folder, whose name becomes the adapter's.")
    ],
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
    if "=" in adapter and not path.is_dir():  # a folder's own name may contain "="
        alias, _, folder = adapter.partition("=")
        path = Path(folder)
    loaded = _run(server, console, lambda adapters: adapters.load(alias, path, proof=proof))
    console.result(loaded, text=lambda: _print(loaded, console))


@adapters.command("list")
def list_(server: ServerArgument, *, json: JsonOption = False) -> None:
    """List a server's adapters."""
    console = Console(json=json)
    loaded = _run(server, console, lambda adapters: adapters.list())

    def text() -> None:
        for adapter in loaded:
            console.say(f"{adapter.model}  {adapter.path or ''}")

    console.result(loaded, text=text)


@adapters.command()
def unload(
    server: ServerArgument,
    name: Annotated[str, typer.Argument(help="The adapter's name.")],
    *,
    json: JsonOption = False,
) -> None:
    """Unload an adapter."""
    console = Console(json=json)
    gone = _run(server, console, lambda adapters: adapters.unload(name))
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
    """Check that an adapter is still what was loaded, and that it has an effect."""
    console = Console(json=json, verbose=verbose, quiet=quiet)
    proof = _proof(prove)
    verified = _run(server, console, lambda adapters: adapters.verify(name, proof=proof))
    console.result(verified, text=lambda: _print(verified, console))


def _run(server: str, console: Console, work: Callable[[Adapters], Awaitable[T]]) -> T:
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


def _print(proven: ProvenAdapter, console: Console) -> None:
    console.say(f"model:  {proven.adapter.model}")
    console.say(f"digest: {proven.adapter.digest}")
    if (effect := proven.effect) is not None:
        console.say(
            f"effect: on average {effect.mean_difference:.3g} nats per token from the base model, "
            f"at most {effect.largest_difference:.3g}"
        )
    if (parity := proven.parity) is not None:
        console.say(
            f"peft:   on average {parity.mean:.3g} nats per token from PEFT's own values, "
            f"at most {parity.largest:.3g}"
        )
