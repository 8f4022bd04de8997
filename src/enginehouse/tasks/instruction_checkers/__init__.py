"""IFEval's 25 checkers: which verifiable instructions a response follows.

The semantics, quirks included, are those of google-research/instruction_following_eval (Zhou et
al., "Instruction-Following Evaluation for Large Language Models", arXiv:2311.07911).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from enginehouse.core.errors import DataError, nearest
from enginehouse.tasks.instruction_checkers import (
    change_case,
    combination,
    detectable_content,
    detectable_format,
    keywords,
    language,
    length_constraints,
    punctuation,
    startend,
)
from enginehouse.tasks.instruction_checkers.base import Checker

CHECKERS: Final[Mapping[str, type[Checker]]] = {
    "keywords:existence": keywords.Existence,
    "keywords:frequency": keywords.Frequency,
    "keywords:forbidden_words": keywords.ForbiddenWords,
    "keywords:letter_frequency": keywords.LetterFrequency,
    "language:response_language": language.ResponseLanguage,
    "length_constraints:number_sentences": length_constraints.NumberSentences,
    "length_constraints:number_paragraphs": length_constraints.NumberParagraphs,
    "length_constraints:number_words": length_constraints.NumberWords,
    "length_constraints:nth_paragraph_first_word": length_constraints.NthParagraphFirstWord,
    "detectable_content:number_placeholders": detectable_content.NumberPlaceholders,
    "detectable_content:postscript": detectable_content.Postscript,
    "detectable_format:number_bullet_lists": detectable_format.NumberBulletLists,
    "detectable_format:constrained_response": detectable_format.ConstrainedResponse,
    "detectable_format:number_highlighted_sections": detectable_format.NumberHighlightedSections,
    "detectable_format:multiple_sections": detectable_format.MultipleSections,
    "detectable_format:json_format": detectable_format.JsonFormat,
    "detectable_format:title": detectable_format.Title,
    "combination:two_responses": combination.TwoResponses,
    "combination:repeat_prompt": combination.RepeatPrompt,
    "startend:end_checker": startend.EndChecker,
    "startend:quotation": startend.Quotation,
    "change_case:capital_word_frequency": change_case.CapitalWordFrequency,
    "change_case:english_capital": change_case.EnglishCapital,
    "change_case:english_lowercase": change_case.EnglishLowercase,
    "punctuation:no_comma": punctuation.NoComma,
}


def build_checker(
    instruction: str,
    arguments: Mapping[str, Any],
    *,
    where: str,
    checkers: Mapping[str, type[Checker]] = CHECKERS,
) -> Checker:
    """The checker of `instruction`; arguments that are None count as not given.

    Raises DataError, which names `where`, for an unknown instruction and for arguments that are
    missing, of the wrong kind or too many (the original would draw missing ones at random).
    """
    kind = checkers.get(instruction)
    if kind is None:
        close = nearest(instruction, checkers)
        raise DataError(
            f"{where}: there is no instruction {instruction!r}",
            fix=f"did you mean {close!r}?" if close else f"known: {', '.join(sorted(checkers))}",
        )
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        wanted = ", ".join(kind.__struct_fields__) or "no arguments"
        raise DataError(
            f"{where}: the arguments of {instruction!r} are wrong",
            why=str(error),
            fix=f"it takes {wanted}",
        ) from error
