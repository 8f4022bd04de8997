"""IFEval's 25 checkers, in its groups: what each instruction asks of a response."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from enginehouse.tasks.instruction_checkers.language import Language, is_in, may_be_in
from enginehouse.tasks.instruction_checkers.splitting import count_words, sentences, words

Count = Annotated[int, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Keywords = Annotated[tuple[Text, ...], msgspec.Meta(min_length=1)]
Relation = Literal["less than", "at least"]


class Checker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One verifiable instruction; its fields are IFEval's kwargs of that instruction."""

    def follows(self, response: str) -> bool:
        """Whether `response`, which is not blank, follows the instruction. Pure."""
        raise NotImplementedError


def _holds(count: int, relation: Relation, threshold: int) -> bool:
    """IFEval's two comparisons: "less than" excludes the threshold, "at least" includes it."""
    return count < threshold if relation == "less than" else count >= threshold


def _require_patterns(*patterns: str) -> None:
    """Raise ValueError unless these are regular expressions, which is how IFEval uses them."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error


class Existence(Checker, frozen=True):
    """Every keyword occurs somewhere, in any case, inside longer words too."""

    keywords: Keywords

    def __post_init__(self) -> None:
        _require_patterns(*self.keywords)

    def follows(self, response: str) -> bool:
        """Whether all of them are found."""
        return all(re.search(keyword, response, re.IGNORECASE) for keyword in self.keywords)


class Frequency(Checker, frozen=True):
    """The keyword's occurrences, in any case and inside longer words, compare with a number."""

    keyword: Text
    frequency: Count
    relation: Relation

    def __post_init__(self) -> None:
        _require_patterns(self.keyword)

    def follows(self, response: str) -> bool:
        """Whether the number of occurrences is as asked."""
        found = sum(1 for _ in re.finditer(self.keyword.strip(), response, re.IGNORECASE))
        return _holds(found, self.relation, self.frequency)


class ForbiddenWords(Checker, frozen=True):
    """None of the words occurs as a whole word, in any case."""

    forbidden_words: Keywords

    def __post_init__(self) -> None:
        _require_patterns(*self.forbidden_words)

    def follows(self, response: str) -> bool:
        """Whether none is found."""
        return not any(
            re.search(rf"\b{word}\b", response, re.IGNORECASE) for word in self.forbidden_words
        )


class LetterFrequency(Checker, frozen=True):
    """A character's occurrences, in any case, compare with a number.

    Two of IFEval's prompts ask for "#" and "!". The original replaces anything but an ASCII letter
    with a random letter; here the character that the prompt names is counted.
    """

    letter: Annotated[str, msgspec.Meta(min_length=1, max_length=1)]
    let_frequency: Count
    let_relation: Relation

    def follows(self, response: str) -> bool:
        """Whether the number of occurrences is as asked."""
        found = response.lower().count(self.letter.lower())
        return _holds(found, self.let_relation, self.let_frequency)


class ResponseLanguage(Checker, frozen=True):
    """The whole response is in a language, named by its ISO 639-1 code."""

    language: Language

    def follows(self, response: str) -> bool:
        """Whether the language is detected, or none can be."""
        return self.is_in(response, self.language)

    is_in = staticmethod(is_in)


class NumberSentences(Checker, frozen=True):
    """The number of sentences compares with a number."""

    num_sentences: Count
    relation: Relation

    def follows(self, response: str) -> bool:
        """Whether the number is as asked."""
        return _holds(len(sentences(response)), self.relation, self.num_sentences)


class NumberParagraphs(Checker, frozen=True):
    """Exactly so many paragraphs, divided by `***`; a divider may open or close the response."""

    num_paragraphs: Count

    def follows(self, response: str) -> bool:
        """Whether the number is right and none between two dividers is blank."""
        first, *rest = re.split(r"\s?\*\*\*\s?", response)
        inner, last = rest[:-1], rest[-1:]
        if not all(part.strip() for part in inner):
            return False
        ends = sum(1 for part in (first, *last) if part.strip())
        return len(inner) + ends == self.num_paragraphs


class NumberWords(Checker, frozen=True):
    """The number of words compares with a number."""

    num_words: Count
    relation: Relation

    def follows(self, response: str) -> bool:
        """Whether the number is as asked."""
        return _holds(count_words(response), self.relation, self.num_words)


class NthParagraphFirstWord(Checker, frozen=True):
    """Exactly so many paragraphs, divided by blank lines, and one that starts with a word.

    As in the original, blank paragraphs are left out of the number but not out of the position.
    """

    num_paragraphs: Count
    nth_paragraph: Annotated[int, msgspec.Meta(ge=1)]
    first_word: Text

    def __post_init__(self) -> None:
        if self.nth_paragraph > self.num_paragraphs:
            raise ValueError(
                f"nth_paragraph {self.nth_paragraph} exceeds num_paragraphs {self.num_paragraphs}"
            )

    def follows(self, response: str) -> bool:
        """Whether the number is right, and the word, which a mark from `.,?!'"` ends."""
        paragraphs = response.split("\n\n")
        if sum(1 for paragraph in paragraphs if paragraph.strip()) != self.num_paragraphs:
            return False
        beginning = paragraphs[self.nth_paragraph - 1].split(maxsplit=1)[:1]
        if not beginning:
            return False
        word = beginning[0].lstrip("'").lstrip('"')
        return re.split("[.,?!'\"]", word, maxsplit=1)[0].lower() == self.first_word.lower()


class NumberPlaceholders(Checker, frozen=True):
    """At least so many placeholders such as [address]."""

    num_placeholders: Count

    def follows(self, response: str) -> bool:
        """Whether there are enough; empty brackets count."""
        count = sum(_bracketed(line) for line in response.split("\n"))
        return count >= self.num_placeholders


def _bracketed(line: str) -> int:
    r"""How often `\[.*?\]` matches in a line, in linear time."""
    count, end = 0, 0
    while (opening := line.find("[", end)) >= 0:
        closing = line.find("]", opening)
        if closing < 0:
            break
        count, end = count + 1, closing + 1
    return count


class Postscript(Checker, frozen=True):
    """A postscript's marker occurs anywhere, in any case."""

    postscript_marker: Text

    def __post_init__(self) -> None:
        _require_patterns(self.postscript_marker.lower())

    def follows(self, response: str) -> bool:
        """Whether it does. "P.S." and "P.P.S" may have spaces inside, others are patterns."""
        marker = self.postscript_marker.strip()
        spaced = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
        return bool(re.search(spaced.get(marker, marker.lower()), response.lower()))


_STAR = re.compile(r"\s*+(\*[^*].*)?+")
_DASH = re.compile(r"\s*+(-.*)?+")


def _count_bullets(bullet: re.Pattern[str], response: str) -> int:
    r"""How often `^\s*` and the bullet match, in linear time.

    White space spans lines, so that blank lines belong to the bullet behind them, and a bare `*`
    takes the next line for its text, as in the original.
    """
    count = start = 0
    while start <= len(response) and (match := bullet.match(response, start)):
        count += match[1] is not None
        end = match.end()
        if not (match[1] and response[end - 1] == "\n"):
            end = response.find("\n", end) + 1
        if end == 0:
            break
        start = end
    return count


class NumberBulletLists(Checker, frozen=True):
    """Exactly so many lines that begin with `*` (not `**`) or with `-`."""

    num_bullets: Count

    def follows(self, response: str) -> bool:
        """Whether the number is right; a rule of dashes counts as a bullet, as in the original."""
        bullets = _count_bullets(_STAR, response) + _count_bullets(_DASH, response)
        return bullets == self.num_bullets


class ConstrainedResponse(Checker, frozen=True):
    """One of three sentences occurs anywhere, letter by letter."""

    def follows(self, response: str) -> bool:
        """Whether one does."""
        return any(f"My answer is {word}." in response for word in ("yes", "no", "maybe"))


class NumberHighlightedSections(Checker, frozen=True):
    """At least so many sections *highlighted* or **highlighted** within one line.

    As in the original, one that is marked ***so*** counts twice: both patterns find it.
    """

    num_highlights: Count

    def follows(self, response: str) -> bool:
        """Whether there are enough; blank ones don't count."""
        single = re.findall(r"\*([^\n*]*)\*", response)
        double = re.findall(r"\*\*([^\n*]*)\*\*", response)
        return sum(1 for part in single + double if part.strip()) >= self.num_highlights


class MultipleSections(Checker, frozen=True):
    """At least so many headings such as "Section 1"; case matters, the numbers don't."""

    section_spliter: Text
    num_sections: Count

    def __post_init__(self) -> None:
        _require_patterns(self.section_spliter)

    def follows(self, response: str) -> bool:
        """Whether there are enough."""
        heading = rf"\s?{self.section_spliter.strip()}\s?\d+\s?"
        return len(re.split(heading, response)) - 1 >= self.num_sections


class JsonFormat(Checker, frozen=True):
    """The whole response is JSON, perhaps in a markdown fence."""

    def follows(self, response: str) -> bool:
        """Whether it parses; the original's quirk of removing several openings is kept."""
        text = response.strip()
        for opening in ("```json", "```Json", "```JSON", "```"):
            text = text.removeprefix(opening)
        try:
            json.loads(text.removesuffix("```").strip())
        except (ValueError, RecursionError):
            return False
        return True


class Title(Checker, frozen=True):
    """A title in double angular brackets, <<such as this>>, within one line."""

    def follows(self, response: str) -> bool:
        """Whether there is one that is not blank."""
        titles = (_title(line) for line in response.split("\n"))
        return any(title.lstrip("<").rstrip(">").strip() for title in titles)


def _title(line: str) -> str:
    r"""What `<<[^\n]+>>` matches in a line, or "": from the first opening to the last closing."""
    start, end = line.find("<<"), line.rfind(">>")
    return line[start : end + 2] if 0 <= start < end - 2 else ""


class TwoResponses(Checker, frozen=True):
    """Two different responses, divided by `******`; a divider may also open or close them."""

    def follows(self, response: str) -> bool:
        """Whether there are two, they differ, and no blank one stands between dividers."""
        parts = [part.strip() for part in response.split("******")]
        if not all(parts[1:-1]):
            return False
        given = [part for part in parts if part]
        return len(given) == 2 and given[0] != given[1]


class RepeatPrompt(Checker, frozen=True):
    """The response begins with the request, repeated word for word in any case."""

    prompt_to_repeat: Text

    def follows(self, response: str) -> bool:
        """Whether it does."""
        return response.strip().lower().startswith(self.prompt_to_repeat.strip().lower())


class EndChecker(Checker, frozen=True):
    """The response ends with a phrase, in any case; closing quotation marks are overlooked."""

    end_phrase: Text

    def follows(self, response: str) -> bool:
        """Whether it does."""
        return response.strip().strip('"').lower().endswith(self.end_phrase.strip().lower())


class Quotation(Checker, frozen=True):
    """The whole response stands in straight double quotation marks."""

    def follows(self, response: str) -> bool:
        """Whether its first and last characters are two such marks."""
        text = response.strip()
        return len(text) > 1 and text[0] == text[-1] == '"'


class CapitalWordFrequency(Checker, frozen=True):
    """The number of words in capitals ("I" and "A" are such words) compares with a number."""

    capital_frequency: Count
    capital_relation: Relation

    def follows(self, response: str) -> bool:
        """Whether the number is as asked."""
        capitals = sum(1 for word in words(response) if word.isupper())
        return _holds(capitals, self.capital_relation, self.capital_frequency)


class EnglishCapital(Checker, frozen=True):
    """English without small letters."""

    def follows(self, response: str) -> bool:
        """Whether it is."""
        return response.isupper() and self.is_in(response, "en")

    is_in = staticmethod(is_in)


class EnglishLowercase(Checker, frozen=True):
    """English without capital letters."""

    def follows(self, response: str) -> bool:
        """Whether it is."""
        return response.islower() and self.is_in(response, "en")

    is_in = staticmethod(is_in)


class NoComma(Checker, frozen=True):
    """No comma anywhere; other scripts' commas are none."""

    def follows(self, response: str) -> bool:
        """Whether there is none."""
        return "," not in response


class ShortResponseLanguage(ResponseLanguage, frozen=True):
    """The response may be in a language."""

    is_in = staticmethod(may_be_in)


class ShortEnglishCapital(EnglishCapital, frozen=True):
    """English, as far as that can be told, without small letters."""

    is_in = staticmethod(may_be_in)


class ShortEnglishLowercase(EnglishLowercase, frozen=True):
    """English, as far as that can be told, without capital letters."""

    is_in = staticmethod(may_be_in)


CHECKERS: Final[Mapping[str, type[Checker]]] = {
    "keywords:existence": Existence,
    "keywords:frequency": Frequency,
    "keywords:forbidden_words": ForbiddenWords,
    "keywords:letter_frequency": LetterFrequency,
    "language:response_language": ResponseLanguage,
    "length_constraints:number_sentences": NumberSentences,
    "length_constraints:number_paragraphs": NumberParagraphs,
    "length_constraints:number_words": NumberWords,
    "length_constraints:nth_paragraph_first_word": NthParagraphFirstWord,
    "detectable_content:number_placeholders": NumberPlaceholders,
    "detectable_content:postscript": Postscript,
    "detectable_format:number_bullet_lists": NumberBulletLists,
    "detectable_format:constrained_response": ConstrainedResponse,
    "detectable_format:number_highlighted_sections": NumberHighlightedSections,
    "detectable_format:multiple_sections": MultipleSections,
    "detectable_format:json_format": JsonFormat,
    "detectable_format:title": Title,
    "combination:two_responses": TwoResponses,
    "combination:repeat_prompt": RepeatPrompt,
    "startend:end_checker": EndChecker,
    "startend:quotation": Quotation,
    "change_case:capital_word_frequency": CapitalWordFrequency,
    "change_case:english_capital": EnglishCapital,
    "change_case:english_lowercase": EnglishLowercase,
    "punctuation:no_comma": NoComma,
}

# for tasks that ask for a sentence or two, too short for language detection
SHORT_TEXT_CHECKERS: Final[Mapping[str, type[Checker]]] = {
    **CHECKERS,
    "language:response_language": ShortResponseLanguage,
    "change_case:english_capital": ShortEnglishCapital,
    "change_case:english_lowercase": ShortEnglishLowercase,
}
