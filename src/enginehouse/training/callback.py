"""The evaluator in transformers' Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from enginehouse.core.errors import ConfigurationError
from enginehouse.training.evaluator import CheckpointEvaluator

if TYPE_CHECKING:
    from transformers import TrainerCallback


def trainer_callback(
    evaluator: CheckpointEvaluator, *, every: int, tokenizer: Any = None
) -> TrainerCallback:
    """A callback that evaluates every `every` steps: Trainer(…, callbacks=[callback]).

    `tokenizer` None takes the Trainer's processing_class. Imports transformers. Raises
    ConfigurationError.
    """
    if every < 1:
        raise ConfigurationError("every must be at least 1 step")
    from transformers import TrainerCallback

    class Evaluating(TrainerCallback):  # type: ignore[misc]
        def on_step_end(
            self,
            args: Any,  # noqa: ARG002 - transformers' signature
            state: Any,
            control: Any,  # noqa: ARG002
            *,
            model: Any = None,
            optimizer: Any = None,
            processing_class: Any = None,
            **_: Any,
        ) -> None:
            if state.global_step % every == 0:
                evaluator.evaluate(
                    state.global_step,
                    model=model,
                    tokenizer=tokenizer or processing_class,
                    optimizer=optimizer,
                )

    return Evaluating()
