"""A Megatron-LM text generation server, which somebody else runs."""

from __future__ import annotations

from enginehouse.client.wire import Wire
from enginehouse.core.sampler import Capability
from enginehouse.dialects import megatron_text
from enginehouse.engines.hosted import HostedEngine


class MegatronEngine(HostedEngine):
    """It has no chat template and no model names, and answers one request at a time.

    It ignores a seed, so none is declared.
    """

    name = "megatron"
    tried = "the server in megatron-core 0.16.1, with a stand-in for the model"
    wire = Wire(
        chat=None,
        completions=megatron_text,
        method="PUT",
        error_reply=megatron_text.error_reply,
        reply_error=megatron_text.reply_error,
        models_path=None,
    )
    url_variables = ("MEGATRON_SERVER_URL",)
    key_variables = ()
    needs_key = False
    supports = frozenset(
        {Capability.TEXT, Capability.TOP_K, Capability.LOGPROBS, Capability.PROMPT_LOGPROBS}
    )
    most_logprobs = 0
