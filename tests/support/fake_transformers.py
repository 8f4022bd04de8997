"""As much of transformers' Trainer as a callback sees."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType, SimpleNamespace
from typing import Any


class TrainerCallback:
    """`transformers.TrainerCallback`."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Nothing."""


def module() -> ModuleType:
    """What `import transformers` gives."""
    transformers = ModuleType("transformers")
    transformers.TrainerCallback = TrainerCallback  # type: ignore[attr-defined]
    return transformers


def train(callback: TrainerCallback, *, steps: Iterable[int], **objects: Any) -> None:
    """Call it as `CallbackHandler` does: everything but three by name."""
    for step in steps:
        callback.on_step_end(
            SimpleNamespace(),
            SimpleNamespace(global_step=step),
            SimpleNamespace(),
            lr_scheduler=None,
            train_dataloader=None,
            **objects,
        )
