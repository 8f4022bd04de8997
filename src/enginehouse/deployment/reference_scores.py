"""Log-probabilities by transformers and PEFT, with which an engine's are compared."""

from __future__ import annotations

import asyncio
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import MalformedResponseError, ModelError
from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.deployment.compute_type import automatic_type, type_in_command
from enginehouse.engines.registry import REFERENCE_ENGINE, load_served_engine
from enginehouse.provisioning.checkpoints import read_checkpoint
from enginehouse.provisioning.environments import find_environment
from enginehouse.provisioning.programs import PAYLOADS, new_log, python_environ, run_program
from enginehouse.runtime.context import Context
from enginehouse.servers.endpoint import Server
from enginehouse.statistics.parity import TokenParity, token_parity

# prose, code, numbers, a list, other scripts, a conversation
TEXTS = (
    (
        "The harbour was quiet that morning. Two fishermen mended their nets on the quay, and "
        "neither of them spoke until the church bell had struck seven. Then the old one looked up, "
        "nodded towards the open sea, and said that the wind would turn before noon."
    ),
    (
        "def median(values):\n    ordered = sorted(values)\n    middle = len(ordered) // 2\n    if "
        "len(ordered) % 2:\n        return ordered[middle]\n    return (ordered[middle - 1] + "
        "ordered[middle]) / 2\n"
    ),
    (
        "A train leaves at 9:40 and travels 126 km at 84 km/h. 126 / 84 = 1.5, so it arrives one "
        "and a half hours later, at 11:10. The second train needs 2 h and 15 min for 189 km."
    ),
    (
        "Shopping list:\n- 2 kg of potatoes\n- 500 g butter\n- a dozen eggs\n- olive oil\n\nDo not "
        "forget: the shop closes at six on Saturdays, and there is no bread on Mondays."
    ),
    (
        "Die Brücke wurde 1893 gebaut und im Krieg zerstört. Aujourd'hui, il ne reste que deux "
        "arches. 今日は天気がいいので、川まで散歩しました。"
    ),
    (
        "User: Which planet has the most moons?\nAssistant: Saturn. More than a hundred have been "
        "confirmed so far, and new ones are still being found.\nUser: And the second?\nAssistant: "
        "Jupiter, with more than ninety."
    ),
)


async def score_with_peft(
    sampler: HTTPSampler,
    *,
    server: Server,
    model: str,
    checkpoint: Path,
    adapter: Path,
    context: Context,
) -> TokenParity:
    """How far a running server's log-probabilities with an adapter are from PEFT's own.

    PEFT computes in the server's type, but on the CPU, since the server has the GPU's memory. Sends
    one request at a time. Raises UnsupportedError, WireError, and ModelError if transformers cannot
    score the checkpoint or values of either side are not finite.
    """
    sequences = [await sampler.tokenize(text) for text in TEXTS]
    ours = [await score_prompt(sampler, tokens, model=model) for tokens in sequences]
    dtype = await asyncio.to_thread(computing_type, server, checkpoint)
    context.notify(f"scoring the same tokens with PEFT in {dtype}, on the CPU")
    reference = await score_with_transformers(
        checkpoint,
        sequences,
        dtype=dtype,
        device="cpu",
        adapter=adapter,
        context=context,
    )
    return compare_scores(ours, reference.logprobs, engine=server.engine or "the server")


def computing_type(server: Server, checkpoint: Path) -> str:
    """The type that a server computes in: as its command says, or by itself. Blocking."""
    named = type_in_command(server.engine, server.command or ())
    return named or own_type(checkpoint, server.engine)


def own_type(checkpoint: Path, engine: str | None) -> str:
    """The type that an engine computes in unless it is told another one. Blocking."""
    return automatic_type(read_checkpoint(checkpoint), engine)


def compare_scores(
    ours: Sequence[Sequence[float]], reference: Sequence[Sequence[float | None]], *, engine: str
) -> TokenParity:
    """Compare the scores token by token. Raises ModelError for values that are not finite."""
    for side, scores in ((engine, ours), ("transformers", reference)):
        places = [
            f"text {text}, token {token}"
            for text, one in enumerate(scores, 1)
            for token, value in enumerate(one, 2)
            if value is None or not math.isfinite(value)
        ]
        if places:
            more = f" and {len(places) - 1} more" if len(places) > 1 else ""
            raise ModelError(
                f"{side} gives log-probabilities that are not finite: {places[0]}{more}",
                why="values overflow (float16 ends at 65,504), or the weights have diverged",
                fix="serve it in bfloat16 or float32 (--dtype), or use an earlier checkpoint",
            )
    return token_parity(ours, [[value or 0.0 for value in one] for one in reference])


async def score_prompt(
    sampler: HTTPSampler, tokens: tuple[int, ...], *, model: str | None = None
) -> list[float]:
    """The engine's log-probabilities of all tokens but the first."""
    parameters = SamplingParameters(max_tokens=1, prompt_logprobs=0)
    response = await sampler.sample(
        SampleRequest(prompt=TokenPrompt(tokens), parameters=parameters, model=model)
    )
    logprobs = response.prompt_logprobs or ()
    scores = [one.logprob for one in logprobs[1:] if one is not None]
    if len(scores) != len(tokens) - 1:
        raise MalformedResponseError(
            f"the server returned {len(scores)} prompt log-probabilities for {len(tokens)} tokens"
        )
    return scores


class ReferenceScores(msgspec.Struct, frozen=True):
    """For each sequence the log-probabilities (nats) of all tokens but the first, and the dtype."""

    logprobs: list[list[float | None]]
    dtype: str


async def score_with_transformers(
    model: Path,
    sequences: list[tuple[int, ...]],
    *,
    dtype: str,
    device: str,
    adapter: Path | None,
    context: Context,
) -> ReferenceScores:
    """Score token sequences with transformers, in its own environment and process.

    Raises ModelError, naming the log, if transformers cannot score the model.
    """
    environment = await find_environment(
        load_served_engine(REFERENCE_ENGINE).installation,
        python=None,
        version=None,
        variant=None,
        context=context,
    )
    log = new_log(context.layout, f"parity-{model.name}")
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.json"
        await asyncio.to_thread(tokens.write_text, json.dumps(sequences))
        argv = [str(environment.executable), str(PAYLOADS / "reference_logprobs.py")]
        argv += [str(model), str(tokens), dtype, device, *([str(adapter)] if adapter else [])]
        env = python_environ(write_bytecode=environment.key is not None) | {"HF_HUB_OFFLINE": "1"}
        finished = await run_program(argv, env=env, cwd=log.parent, log=log)
    if finished.returncode:
        raise ModelError(
            f"transformers cannot score {model}", why=finished.why(), fix="read the log", log=log
        )
    return msgspec.json.decode(finished.output.splitlines()[-1], type=ReferenceScores)
