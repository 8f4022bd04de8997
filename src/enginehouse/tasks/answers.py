"""What of a model's text counts as its answer."""

from __future__ import annotations

OPEN = "<think>"
CLOSE = "</think>"


def strip_reasoning(text: str) -> str:
    """The text without its reasoning; every task scores only this.

    A leading `<think>…</think>` block goes, and so does everything up to a lone `</think>` (some
    chat templates open the block in the prompt). A block that is never closed leaves "": the
    answer was not reached. Without reasoning the text comes back as it is.
    """
    opened = text.lstrip().startswith(OPEN)
    _, closed, answer = text.partition(CLOSE)
    if closed and (opened or OPEN not in text[: text.index(CLOSE)]):
        return answer.lstrip()
    return "" if opened else text
