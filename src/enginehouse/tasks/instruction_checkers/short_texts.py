"""The checkers for tasks that ask for a sentence or two: IFEval's, but for language detection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from enginehouse.tasks.instruction_checkers import CHECKERS
from enginehouse.tasks.instruction_checkers.base import Checker
from enginehouse.tasks.instruction_checkers.change_case import EnglishCapital, EnglishLowercase
from enginehouse.tasks.instruction_checkers.language import ResponseLanguage, may_be_in


class ShortResponseLanguage(ResponseLanguage, frozen=True, kw_only=True):
    """The response can be in a language."""

    is_in = staticmethod(may_be_in)


class ShortEnglishCapital(EnglishCapital, frozen=True, kw_only=True):
    """English, as far as that can be told, without small letters."""

    is_in = staticmethod(may_be_in)


class ShortEnglishLowercase(EnglishLowercase, frozen=True, kw_only=True):
    """English, as far as that can be told, without capital letters."""

    is_in = staticmethod(may_be_in)


SHORT_TEXT_CHECKERS: Final[Mapping[str, type[Checker]]] = {
    **CHECKERS,
    "language:response_language": ShortResponseLanguage,
    "change_case:english_capital": ShortEnglishCapital,
    "change_case:english_lowercase": ShortEnglishLowercase,
}
