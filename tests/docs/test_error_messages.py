"""docs/errors.md quotes error messages: the one place where their wording is pinned.

Other tests assert the class, `kind`, `stage` or exit code of an error instead.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ANYTHING = "…"
SHORTEST = 11  # characters; shorter texts in the code match too much
# Put together from parts that are too short to be found.
ASSEMBLED = {
    "cannot append to …/journal.jsonl",
    "eval.yaml: unknown key 'server.max_modellen'; did you mean 'max_model_len'?",
    "port 8000 is taken by python3 (pid 20784)",
    "reasoning_gym's scorer did not end within 10 s",
    "the server answered 400",
    "the server answered 429",
    "the server answered 500",
    "the server at … refused us: it wants an API key",
}
CATALOGUE = (ROOT / "docs/errors.md").read_text().partition("## What to do")[2]
QUOTED = sorted(
    {
        " ".join(quote.split())
        for quote in re.findall(r"`([^`]+)`", CATALOGUE)
        # options, commands, names, addresses and vLLM's own words are not our messages
        if " " in " ".join(quote.split())
        and not re.match(
            r"(This model's|enginehouse|resume|git|df|kill|ulimit|--|https?://\S+$)", quote
        )
    }
)


@cache
def messages() -> list[tuple[str, re.Pattern[str]]]:
    """Every longer text in the code: without what is filled in, and as a pattern."""
    found = []
    for path in (ROOT / "src/enginehouse").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts: list[ast.expr] = node.values if isinstance(node, ast.JoinedStr) else []
            if isinstance(node, ast.Constant):
                parts = [node]
            texts = [str(p.value) if isinstance(p, ast.Constant) else ANYTHING for p in parts]
            if len("".join(texts).replace(ANYTHING, "")) >= SHORTEST:
                pattern = "".join(".+" if t == ANYTHING else re.escape(t) for t in texts)
                found.append(("".join(texts), re.compile(pattern)))
    return found


def is_said(quote: str) -> bool:
    """Whether the code has a text like this; `…` in the quote stands for anything."""
    pieces = [piece.strip() for piece in quote.split(ANYTHING)]
    return any(
        all(piece in text for piece in pieces)
        or (all(part in quote for part in text.split(ANYTHING)) and pattern.fullmatch(quote))
        for text, pattern in messages()
    )


@pytest.mark.slow
def test_every_quoted_message_is_in_the_code():
    """As it is printed, apart from what is filled in."""
    assert len(QUOTED) > 40
    assert [quote for quote in QUOTED if not is_said(quote)] == sorted(ASSEMBLED)
