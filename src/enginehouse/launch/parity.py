"""`enginehouse parity`: whether the engine computes what transformers computes.

A trainer's importance ratios are as good as the agreement of the two programs; a wrong template,
adapter, dtype or kernel shows here first.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

import msgspec

from enginehouse.client.sampler import HTTPSampler
from enginehouse.core.errors import MalformedResponseError, ModelError
from enginehouse.core.messages import TokenPrompt
from enginehouse.core.sampler import Capability, SampleRequest
from enginehouse.core.sampling import SamplingParameters
from enginehouse.dialects.base import require
from enginehouse.engines.base import Engine
from enginehouse.engines.registry import ENGINES
from enginehouse.launch.configuration import ParityConfig
from enginehouse.launch.resident import serving_target
from enginehouse.launch.serving import Notify, choose_engine
from enginehouse.provisioning.environments import find_environment
from enginehouse.provisioning.programs import PAYLOADS, new_log, python_environ, run_program
from enginehouse.report.parity_table import ParityReport
from enginehouse.statistics.parity import TokenParity, token_parity
from enginehouse.store.layout import Layout

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


async def run_parity(config: ParityConfig, *, layout: Layout, notify: Notify) -> ParityReport:
    """Serve the model, score the texts, stop, and score the same tokens with transformers.

    Raises UnsupportedError for an engine without prompt log-probabilities, ModelError where
    transformers cannot score the model, and what `serving` does.
    """
    engine: Engine = ENGINES.load(choose_engine(config.engine, notify=lambda _: None))()
    require(engine.capabilities(None), Capability.PROMPT_LOGPROBS, "parity")
    require(engine.capabilities(None), Capability.TOKENIZE, "parity")
    async with serving_target(config, layout=layout, notify=notify) as ready:
        server, model = ready.server, ready.model
        assert model is not None
        sequences = [await ready.sampler.tokenize(text) for text in TEXTS]
        ours = [await _scored(ready.sampler, tokens) for tokens in sequences]
    notify("scoring the same tokens with transformers")
    reference = await _reference(
        Path(model.path),
        sequences,
        dtype=config.server.dtype or "auto",
        adapter=ready.adapter,
        layout=layout,
        notify=notify,
    )
    return ParityReport(
        model=config.model or model.name,
        engine=server.engine or engine.name,
        engine_version=server.version,
        reference_dtype=reference.dtype,
        threshold=config.threshold,
        parity=token_parity(ours, reference.logprobs),
    )


async def score_with_peft(
    sampler: HTTPSampler,
    *,
    model: str,
    checkpoint: Path,
    adapter: Path,
    layout: Layout,
    notify: Notify,
) -> TokenParity:
    """How far the engine's log-probabilities with an adapter are from PEFT's own.

    Asks one request at a time. Raises UnsupportedError, WireError, and ModelError where
    transformers cannot score the checkpoint.
    """
    sequences = [await sampler.tokenize(text) for text in TEXTS]
    ours = [await _scored(sampler, tokens, model=model) for tokens in sequences]
    notify("scoring the same tokens with PEFT")
    reference = await _reference(
        checkpoint, sequences, dtype="auto", adapter=adapter, layout=layout, notify=notify
    )
    return token_parity(ours, reference.logprobs)


async def _scored(
    sampler: HTTPSampler, tokens: tuple[int, ...], *, model: str | None = None
) -> list[float]:
    """The engine's log-probabilities of all tokens but the first."""
    parameters = SamplingParameters(max_tokens=1, prompt_logprobs=0)
    response = await sampler.sample(
        SampleRequest(prompt=TokenPrompt(tokens), parameters=parameters, model=model)
    )
    found = response.prompt_logprobs or ()
    scores = [one.logprob for one in found[1:] if one is not None]
    if len(scores) != len(tokens) - 1:
        raise MalformedResponseError(
            f"{len(scores)} prompt log-probabilities came for {len(tokens)} tokens"
        )
    return scores


class _Reference(msgspec.Struct, frozen=True):
    logprobs: list[list[float]]
    dtype: str


async def _reference(
    model: Path,
    sequences: list[tuple[int, ...]],
    *,
    dtype: str,
    adapter: Path | None,
    layout: Layout,
    notify: Notify,
) -> _Reference:
    environment = await find_environment(
        "hf", python=None, version=None, variant=None, layout=layout, notify=notify
    )
    log = new_log(layout, f"parity-{model.name}")
    with tempfile.TemporaryDirectory() as folder:
        tokens = Path(folder) / "tokens.json"
        await asyncio.to_thread(tokens.write_text, json.dumps(sequences))
        argv = [str(environment.executable), str(PAYLOADS / "reference_logprobs.py")]
        argv += [str(model), str(tokens), dtype, *([str(adapter)] if adapter else [])]
        env = python_environ(write_bytecode=environment.key is not None) | {"HF_HUB_OFFLINE": "1"}
        finished = await run_program(argv, env=env, cwd=log.parent, log=log)
    if finished.returncode:
        raise ModelError(
            f"transformers cannot score {model}", why=finished.why(), fix="read the log", log=log
        )
    return msgspec.json.decode(finished.output.splitlines()[-1], type=_Reference)
