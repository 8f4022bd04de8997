"""SGLang's two OpenAI endpoints: the same replies, but several fields of vLLM under other names.

Read in sglang 0.5.23, srt/entrypoints/openai/{protocol,serving_chat,serving_completions}.py and
srt/sampling/sampling_params.py. SGLang drops unknown fields silently, so each constraint must have
the name that it knows.
"""

from __future__ import annotations

import re
from typing import Any

from enginehouse.core.sampler import Capabilities, Capability, SampleRequest
from enginehouse.dialects import openai_chat, openai_completions
from enginehouse.dialects.base import Dialect
from enginehouse.dialects.openai_requests import constraint_of
from enginehouse.dialects.openai_variant import Changes, OpenAIVariant

_SPECIAL = re.compile(r"([\\^$.|?*+()\[\]{}])")
_FIELDS = {"choice": "regex", "regex": "regex", "grammar": "ebnf"}


class SglangDialect(OpenAIVariant):
    """One of OpenAI's dialects, as SGLang speaks it.

    `streams_token_ids`: whether a streamed request may ask for them; if not, it would get a 400.
    """

    def __init__(self, openai: Dialect, *, streams_token_ids: bool) -> None:
        super().__init__(openai)
        self._streams_token_ids = streams_token_ids

    def _changes(
        self, request: SampleRequest, *, capabilities: Capabilities, stream: bool
    ) -> Changes:
        parameters = request.parameters
        fields: dict[str, Any] = {}
        replaced: dict[str, Any] = {}
        handled = set()
        if stream and not self._streams_token_ids:
            handled.add(Capability.TOKEN_IDS)
        if Capability.TOP_K in capabilities.supports:
            # 0 turns top_k off everywhere else, but is an error here
            handled.add(Capability.TOP_K)
            fields["top_k"] = parameters.top_k or -1
            replaced["top_k"] = 0
        structured = parameters.structured
        if structured is not None and structured.json_schema is None:
            name, value = constraint_of(structured, capabilities)
            if name == "choice":
                value = "|".join(_SPECIAL.sub(r"\\\1", text) for text in value)
            fields[_FIELDS[name]] = value
            replaced["structured"] = None
        return Changes(fields, replaced, frozenset(handled))


chat = SglangDialect(openai_chat, streams_token_ids=False)
completions = SglangDialect(openai_completions, streams_token_ids=True)
