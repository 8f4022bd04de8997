"""SGLang's two OpenAI endpoints: the same replies, but several fields of vLLM under other names.

Read in sglang 0.5.23, srt/entrypoints/openai/{protocol,serving_chat,serving_completions}.py and
srt/sampling/sampling_params.py. Unknown fields are dropped there without a word, so each constraint
must have the name that SGLang knows.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from enginehouse.core.errors import ConfigurationError
from enginehouse.core.sampler import (
    Capabilities,
    Capability,
    Delta,
    SampleRequest,
    SampleResponse,
    Timing,
)
from enginehouse.core.sampling import StructuredOutput
from enginehouse.dialects import openai_chat, openai_completions
from enginehouse.dialects.base import Dialect, require

_SPECIAL = re.compile(r"([\\^$.|?*+()\[\]{}])")


class SglangDialect:
    """One of OpenAI's dialects, as SGLang speaks it.

    `streams_token_ids`: whether a streamed request may ask for them; where not, it gets a 400.
    """

    def __init__(self, openai: Dialect, *, streams_token_ids: bool) -> None:
        self.path = openai.path
        self._openai = openai
        self._streams_token_ids = streams_token_ids

    def encode(
        self, request: SampleRequest, *, model: str, capabilities: Capabilities, stream: bool
    ) -> bytes:
        """See Dialect.encode."""
        parameters = request.parameters
        supports = set(capabilities.supports)
        if stream and not self._streams_token_ids:
            supports.discard(Capability.TOKEN_IDS)
        structured = parameters.structured
        own = _constraint(structured, capabilities)
        changes: dict[str, Any] = {"structured": None} if own else {}
        if Capability.TOP_K in supports:
            # 0, which is off for everybody else, is an error here
            supports.discard(Capability.TOP_K)
            own["top_k"] = parameters.top_k or -1
            changes["top_k"] = 0
        if taken := own.keys() & parameters.extra.keys():
            raise ConfigurationError(
                f"extra must not set {', '.join(sorted(taken))!r}",
                why="it has a place of its own and is sent already",
                fix="set it in the request or its SamplingParameters",
            )
        changes["extra"] = parameters.extra | own
        return self._openai.encode(
            msgspec.structs.replace(
                request, parameters=msgspec.structs.replace(parameters, **changes)
            ),
            model=model,
            capabilities=msgspec.structs.replace(capabilities, supports=frozenset(supports)),
            stream=stream,
        )

    def decode(self, body: bytes, *, request: SampleRequest, timing: Timing) -> SampleResponse:
        """See Dialect.decode."""
        return self._openai.decode(body, request=request, timing=timing)

    def decode_chunk(self, data: bytes) -> tuple[Delta, ...]:
        """See Dialect.decode_chunk."""
        return self._openai.decode_chunk(data)

    def is_end(self, data: bytes) -> bool:
        """See Dialect.is_end."""
        return self._openai.is_end(data)


def _constraint(structured: StructuredOutput | None, capabilities: Capabilities) -> dict[str, Any]:
    """SGLang's own field for a constraint; a JSON schema goes where OpenAI has it."""
    if structured is None:
        return {}
    if structured.choice is not None:
        require(capabilities, Capability.CHOICE, "structured output by choice")
        return {"regex": "|".join(_SPECIAL.sub(r"\\\1", text) for text in structured.choice)}
    if structured.regex is not None:
        require(capabilities, Capability.REGEX, "structured output by regex")
        return {"regex": structured.regex}
    if structured.grammar is not None:
        require(capabilities, Capability.GRAMMAR, "structured output by grammar")
        return {"ebnf": structured.grammar}
    return {}


chat = SglangDialect(openai_chat, streams_token_ids=False)
completions = SglangDialect(openai_completions, streams_token_ids=True)
