r"""Removes the LaTeX that models write around their answers."""

from __future__ import annotations

import re
from typing import Final

_BOXED: Final = re.compile(r"\\f?boxed\s{0,3}\{")
_BOX_LENGTH: Final = 400  # the longest content of a box, in characters
_BRACE: Final = re.compile(r"[{}]")

_PART: Final = r"\s{0,3}(?:\{\s{0,3}([^{}\\\s]{1,80})\s{0,3}\}|([0-9]))"
_FRACTION: Final = re.compile(rf"\\[dtc]?frac{_PART}{_PART}")
# Separators of thousands: 70{,}000 and 70,\!000 and 70\,000.
_SEPARATORS: Final = (
    (re.compile(r"\{(\\?,)\}"), r"\1"),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\[,:;> ]|~"), " "),
)
_COMMANDS: Final = (
    (re.compile(r"\\(?:left|right|displaystyle|textstyle)(?![A-Za-z])"), ""),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"\\(?:times|cdot|ast)(?![A-Za-z])"), "*"),
    (re.compile(r"\\div(?![A-Za-z])"), "\u00f7"),
    (re.compile(r"\\(?:approx|simeq|equiv)(?![A-Za-z])"), "="),
    (re.compile(r"\\(?:to|Rightarrow|rightarrow|implies)(?![A-Za-z])"), "\u2192"),
    (re.compile(r"\\([$%#&_{}])"), r"\1"),
    (re.compile(r"\^\s{0,3}\{\s{0,3}([+\u2212-]?[0-9]{1,4})\s{0,3}\}"), r"^\1"),
    (re.compile(r"\\[A-Za-z]{1,40}\*?"), " "),
    (re.compile(r"[{}]"), " "),
)


def boxed(text: str) -> list[str]:
    r"""The content of each `\boxed{…}`, in order, without boxes that are not closed soon."""
    contents = []
    end = 0
    for opening in _BOXED.finditer(text):
        if opening.start() < end:  # a box in a box
            continue
        depth = 1
        for brace in _BRACE.finditer(text, opening.end(), opening.end() + _BOX_LENGTH):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                contents.append(text[opening.end() : brace.start()])
                end = brace.end()
                break
    return contents


def without_latex(text: str) -> str:
    r"""The text with its LaTeX written plainly: `\text{C}` is C, `\frac{36}{2}` is 36/2.

    Commands become spaces or signs, dollar signs stay. Linear in the length of the text.
    """
    if "\\" not in text and "{" not in text:
        return text
    for pattern, replacement in _SEPARATORS:
        text = pattern.sub(replacement, text)
    text = _FRACTION.sub(_fraction, text)
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    return text


def _fraction(match: re.Match[str]) -> str:
    above, below = match[1] or match[2], match[3] or match[4]
    before = match.string[match.start() - 1 : match.start()]
    space = " " if before.isalnum() else ""  # 2\frac{1}{2} is two and a half
    return f"{space}{above}/{below}"
