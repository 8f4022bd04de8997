"""What a user may set for lm-eval beside the settings that all harnesses have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from enginehouse.core.strict_model import StrictModel


class LmEvalArguments(StrictModel):
    """lm-eval's own options, by the names that they have there."""

    apply_chat_template: bool | None = None
    """Whether prompts are chats: by default written answers are, and choices are not."""
    fewshot_as_multiturn: bool = True
    """Whether the examples of a chat are turns of it, or all in one message."""
    gen_kwargs: Mapping[str, Any] = Field(default_factory=dict)
    """Fields of requests for written answers, in place of the task's own, such as until."""
    batch_size: int = Field(default=1, ge=1)
    """Prompts in one request for log-likelihoods; requests are sent concurrently in any case."""
    tokenizer: str | None = None
    """A folder or hub handle: for log-likelihoods of a model that is not on this machine."""
    confirm_run_unsafe_code: bool = False
    """Let tasks such as humaneval run the code that the model writes, without a sandbox."""
    metadata: Mapping[str, Any] = Field(default_factory=dict)
    """What some tasks, such as ruler, are made from."""
