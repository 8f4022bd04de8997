"""Separates a model's reasoning from its answer."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final, NamedTuple


class ReasoningUse(StrEnum):
    """What happens to the reasoning in a written answer before the answer is scored.

    STRIP takes it out; an answer that never ends its reasoning has no text then. STRIP_FINISHED
    scores such an answer as it is. KEEP scores every answer as it is.
    """

    STRIP = "strip"
    STRIP_FINISHED = "strip_finished"
    KEEP = "keep"


# How models mark their reasoning, if the server's reasoning parser has not removed it.
_MARKS: Final = (
    ("<think>", "</think>"),  # DeepSeek R1, Qwen 3, GLM and most others
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),  # Kimi-VL
)
_OPENING: Final = {opening.lower(): closing.lower() for opening, closing in _MARKS}
_CLOSING: Final = frozenset(_OPENING.values())
# A mark in quotation marks or backticks is mentioned, not used.
_MARK: Final = re.compile(
    r"(?<![`\"'])(?:" + "|".join(re.escape(mark) for pair in _MARKS for mark in pair) + ")",
    re.IGNORECASE,
)

# gpt-oss (harmony): messages on channels, of which only `final` is for the user.
_CHANNEL: Final = "<|channel|>"
_FINAL: Final = re.compile(
    r"<\|channel\|>\s{0,3}final\b[^<]{0,80}(?:<\|constrain\|>[^<]{0,80})?<\|message\|>"
)
_MESSAGE_END: Final = re.compile(r"<\|(?:return|end|call|start)\|>")
# The same once a server has dropped the special tokens: "analysisLet me see…assistantfinal42".
_BARE_FINAL: Final = "assistantfinal"
_BARE_THOUGHT: Final = re.compile(r"\A\s*(?:analysis|commentary)(?=[A-Z])")


class Separated(NamedTuple):
    """A text, and the reasoning that was in it; `finished` unless the text ended in it."""

    visible: str
    reasoning_words: int = 0
    finished: bool = True


def separate_reasoning(text: str, *, end: str | None = None) -> Separated:
    """Take the reasoning out, as `strip_reasoning` does; `end` is a text that ends it, too.

    Everything up to the last `end` is reasoning. `visible` is empty, or what stood before it, if
    the reasoning never ends.
    """
    rest = text
    if end and end in text:
        rest = text.rpartition(end)[2].lstrip()
    visible = strip_reasoning(rest)
    if visible == text:
        return Separated(visible=text)
    unmarked = _MARK.sub(" ", text.replace(end, " ") if end else text)
    words = max(len(unmarked.split()) - len(visible.split()), 0)
    finished = strip_reasoning(rest, keep_unfinished=True) == visible
    return Separated(visible=visible, reasoning_words=words, finished=finished)


def strip_reasoning(text: str, *, keep_unfinished: bool = False) -> str:
    """The text without its reasoning blocks, wherever they are.

    Everything up to a closing mark without an opening one is reasoning too: some chat templates
    open the block in the prompt. A block that is never closed hides the rest, unless
    `keep_unfinished`: the model never reached its answer. Such a block has to begin on a line of
    its own: an opening mark within a sentence is prose. Text without reasoning is returned
    unchanged. Linear in the length of the text.
    """
    if (answer := _final_channel(text, keep_unfinished=keep_unfinished)) is not None:
        return answer
    kept: list[str] = []
    awaited: str | None = None  # the closing mark of the block that is open
    opened = end = 0
    for mark in _MARK.finditer(text):
        name = mark[0].lower()
        if awaited is not None:
            if name == awaited:
                awaited, end = None, mark.end()
        elif name in _CLOSING:
            kept, end = [""], mark.end()
        else:
            kept.append(text[end : mark.start()])
            awaited, opened = _OPENING[name], mark.start()
    if awaited is None:
        kept.append(text[end:])
    elif keep_unfinished or text[text.rfind("\n", 0, opened) + 1 : opened].strip():
        kept.append(text[opened:])
    if len(kept) > 1 and not kept[0].strip():
        return "".join(kept).lstrip()
    return "".join(kept)


def _final_channel(text: str, *, keep_unfinished: bool) -> str | None:
    """The text on harmony's final channel; None if the text is not in that format."""
    unfinished = text if keep_unfinished else ""
    if _CHANNEL in text:
        finals = list(_FINAL.finditer(text))
        if not finals:
            return unfinished
        answer = text[finals[-1].end() :]
        ending = _MESSAGE_END.search(answer)
        return answer[: ending.start()] if ending else answer
    _, marked, answer = text.rpartition(_BARE_FINAL)
    if marked:
        return answer.lstrip()
    return unfinished if _BARE_THOUGHT.match(text) else None
