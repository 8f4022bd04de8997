"""A Megatron-LM text generation server: somebody else's, asked for continuations of texts."""

from __future__ import annotations

from enginehouse.client.wire import Wire
from enginehouse.core.sampler import Capabilities, Capability, LoadSignal
from enginehouse.dialects import megatron_text


class MegatronEngine:
    """A RemoteEngine. It has no chat template, no names, and answers one request at a time."""

    name = "megatron"
    wire = Wire(
        chat=None,
        completions=megatron_text,
        method="PUT",
        error_reply=megatron_text.error_reply,
        reply_error=megatron_text.reply_error,
        models_path=None,
    )
    url_variables = ("MEGATRON_SERVER_URL",)
    key_variables: tuple[str, ...] = ()
    needs_key = False

    @property
    def tried(self) -> str | None:
        """Against what it has been tested."""
        return "the server in megatron-core 0.16.1, with a stand-in for the model"

    @property
    def default_url(self) -> str | None:
        """There is none."""
        return None

    @property
    def load_signal(self) -> LoadSignal | None:
        """It shows no queue."""
        return None

    def capabilities(self, version: str | None) -> Capabilities:
        """What megatron-core 0.16.1's server does; it ignores a seed, so that none is declared."""
        del version
        return Capabilities(
            supports=frozenset(
                {
                    Capability.TEXT,
                    Capability.TOP_K,
                    Capability.LOGPROBS,
                    Capability.PROMPT_LOGPROBS,
                }
            ),
            most_logprobs=0,
        )
