r"""The numbers in a model's text, read exactly.

One reader for every task with numbers as answers. It knows thousands grouped by commas, spaces,
apostrophes, underscores and points, decimal points and commas, signs, currencies, exponents,
fractions and mixed numbers, other scripts' digits, and LaTeX. Units after a number never change
it: 20 % is 20, and 3 dozen is 3. Times (3:30), dates with slashes and version numbers (1.2.3) are
not numbers. Everything here takes time linear in the length of the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Final, NamedTuple

from enginehouse.tasks.latex import boxed, without_latex

_LONGEST: Final = 60  # digits: a model that repeats one endlessly has given no number
_MOST_BITS: Final = 4096  # of a power
_HEADINGS: Final = 9  # "#### 2. Money" is a heading whatever else is in the text, "#### 18. So" not


class _Plain(dict[int, str]):
    """What characters mean in ASCII; digits of all scripts are found when they first occur."""

    def __missing__(self, code: int) -> str:
        digit = unicodedata.decimal(chr(code), None)
        self[code] = chr(code) if digit is None else str(digit)
        return self[code]


_PLAIN: Final = _Plain(
    {
        **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width forms
        **dict.fromkeys(map(ord, "\u2212\u2013\u2010\u2011\ufe63"), "-"),
        **dict.fromkeys(
            map(ord, "\u00a0\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"), " "
        ),
        **dict.fromkeys(map(ord, "\u202f\u205f\u3000"), " "),
        **dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u200e\u200f\u061c"), ""),
        **dict.fromkeys(map(ord, "\u2018\u2019\u02bc"), "'"),
        **dict.fromkeys(map(ord, "\u00d7\u2062\u00b7\u22c5\u2217"), "*"),
        **dict.fromkeys(map(ord, "\u2248\u2243\u2245\u2192\u21d2\u27f9\u21a6"), "="),
        ord("\u066b"): ".",
        ord("\u066c"): ",",
        ord("\u2044"): "/",
        **{
            ord(sign): f" {above}/{below} "
            for sign, above, below in (
                ("\u00bd", 1, 2),
                ("\u2153", 1, 3),
                ("\u2154", 2, 3),
                ("\u00bc", 1, 4),
                ("\u00be", 3, 4),
                ("\u2155", 1, 5),
                ("\u2156", 2, 5),
                ("\u2157", 3, 5),
                ("\u2158", 4, 5),
                ("\u2159", 1, 6),
                ("\u215a", 5, 6),
                ("\u215b", 1, 8),
                ("\u215c", 3, 8),
                ("\u215d", 5, 8),
                ("\u215e", 7, 8),
            )
        },
    }
)
_SPACED_FRACTION: Final = re.compile(
    r"(?<=[0-9])[ \u00a0\u2009\u202f](?=[\u00bc-\u00be\u2153-\u215e])"
)
_SUPERSCRIPT: Final = re.compile("[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]{1,4}")
_RAISED: Final = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b", "0123456789+-"
)
_ARROW: Final = re.compile("[=-]>")

# Scripts without spaces between words (Thai to Khmer, Japanese, Chinese), and Korean, whose
# particles follow a number directly: a number may stand beside their letters.
_UNSPACED: Final = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
)
_WORD: Final = rf"[^\W_{_UNSPACED}]"

# A run of digits with single separators between them, which may be one number or several.
_RUN: Final = r"(?:[0-9]++|(?<![0-9.])\.[0-9]++)(?:[.,'_ ][0-9]++)*+"
_CURRENCY: Final = r"(?:[$\u20ac\u00a3\u00a5\u20b9]\s?+(?:-\s?+)?+)"
_CODE: Final = r"(?:(?<=\b(?:USD|EUR|GBP|INR|CAD|AUD|CHF|JPY|CNY|RMB))|(?<=\b(?:Rs|RM)))"
_TOKEN: Final = re.compile(
    rf"(?:(?<!{_WORD})|{_CODE}(?=[0-9]))(?<![A-Za-z]_)(?<!\^)(?P<sign>-)?+(?P<currency>{_CURRENCY}?+)(?P<run>{_RUN})"
)
_PIECE: Final = re.compile(r"([.,'_ ]?)([0-9]+)")
_EXPONENT: Final = re.compile(rf"[eE]([+-]?[0-9]{{1,3}})(?!{_WORD})")
_SCIENTIFIC: Final = re.compile(
    r"\s{0,3}[*x]\s{0,3}10\s?(?:\^|\*\*)\s?[({]?([+-]?[0-9]{1,3})(?![0-9])[)}]?"
)
_POWER: Final = re.compile(r"(?:\^|\*\*)\(?([+-]?[0-9]{1,3})(?![0-9]|\.[0-9])\)?")
_DENOMINATOR: Final = re.compile(
    r"\s?/\s?((?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?+)"
)
_DATE: Final = re.compile(r"(?<![0-9/])[0-9]++(?:\s?/\s?[0-9]++){2,}+")

_MARKER: Final = re.compile(r"####++")
_HEADING: Final = re.compile(r"^ {0,3}#{1,6}(?!#)", re.MULTILINE)
_NUMBERING: Final = re.compile(r"\A[\s*_`]*+([0-9]{1,3})([.):]?)(?=[^0-9])")
_LETTER: Final = re.compile(r"[^\W\d_]")
_LABEL: Final = re.compile(r"\A[^0-9\n]{0,80}?\banswer\b(?:[^0-9\n=]{0,80}?\bis\b)?", re.IGNORECASE)
_ANSWER: Final = re.compile(r"\banswer(?:[\s*_]{0,5}[:=]|\b[^0-9:=]{0,40}?\bis\b:?)", re.IGNORECASE)
_EQUALS: Final = re.compile(r"=++|\bequals\b", re.IGNORECASE)
_IS: Final = re.compile(r"\bis\b", re.IGNORECASE)
_LEAD: Final = re.compile(
    r"\A(?:[^\w.+-]|_)*+(?:(?:about|approximately|around|exactly|only|roughly"
    r"|USD|EUR|GBP|INR|CAD|AUD|US|Rs\.?+)(?=[^A-Za-z])(?:[^\w.+-]|_)*+)?\+?",
    re.IGNORECASE,
)
# What makes one side of an equation a sum: a further number behind an operator.
_OPERATION: Final = re.compile(
    r"(?:[-+*/\u00f7]|(?<![A-Za-z])(?:\^|[xX](?![A-Za-z]))"
    r"|\b(?:plus|minus|times|(?:divided|multiplied) by)\b)"
    r"\s{0,3}[$\u20ac\u00a3(]{0,3}\s?\.?[0-9]",
    re.IGNORECASE,
)
# Where a remark begins; a bracket behind an operator belongs to the sum.
_REMARK: Final = re.compile(r"[.;,](?=\s|$)|(?<=\s)(?<![-+*/^\u00f7=]\s)\(")
_CONNECTIVE: Final = re.compile(r"\s*+(?:(?:and|so|then|thus|hence|now)\b)?+", re.IGNORECASE)


class _Number(NamedTuple):
    """A number and its position; `value` is None if it is too long or divides by zero."""

    start: int
    end: int
    value: Fraction | None


class _Piece(NamedTuple):
    """Digits within a run, and the separator in front of them."""

    separator: str
    digits: str
    start: int
    end: int


def final_number(text: str) -> Fraction | None:
    r"""The number that the text gives as its answer, or None.

    It is the one that is marked with `####`, else the last in a `\boxed{…}`, else the last of all;
    on a last line such as "The answer is 18 eggs (not 20)" it is the one behind these words.
    """
    marked = marked_number(text)
    if marked is not None:
        return marked
    for content in reversed(boxed(text)):
        value = _of_clause(_normal(content))
        if value is not None:
            return value
    lines = reversed(_normal(text).split("\n"))
    line = next((line for line in lines if any(map(str.isdigit, line))), "")
    if answers := deque(_ANSWER.finditer(line), maxlen=1):
        value = _of_clause(line[answers[0].end() :].lstrip(" :*_`\t"))
        if value is not None:
            return value
    return last_number(text)


def marked_number(text: str) -> Fraction | None:
    """The number that the last `####` marks, or None.

    It is on the marker's line, or on the next one with text if that line is empty. Of an equation
    it is the side that is a number: 24 of "12 * 2 = 24" and of "24 = 12 * 2". Of several sums on
    the line ("16 - 7 = 9, 9 * 2 = 18") it is the last result. A sum without a result and a numbered
    heading ("#### 2. Money") are not answers.
    """
    text = _normal(text)
    headings = len(_HEADING.findall(text))
    _, *segments = _MARKER.split(text)
    lines = [_first_line(segment) for segment in segments]
    numbered = [_numbering(line) for line in lines]
    counted = [number for number, _ in filter(None, numbered)]
    in_sequence = len(counted) > 1 and counted == list(range(1, len(counted) + 1))
    for line, numbering in zip(reversed(lines), reversed(numbered), strict=True):
        if numbering is not None:
            number, dotted = numbering
            if in_sequence or (dotted and number <= max(headings, _HEADINGS)):
                continue
        value = _of_clause(line)
        if value is not None:
            return value
    return None


def right_number(text: str) -> Fraction | None:
    """The number that data give as the right answer, or None: it is read as if it were marked."""
    for marked in (text, f"#### {text}"):
        number = marked_number(marked)
        if number is not None:
            return number
    return final_number(text)


def last_number(text: str) -> Fraction | None:
    """The last number in the text, or None; also None if the last one is too long."""
    last = deque(_numbers(_normal(text)), maxlen=1)
    return last[0].value if last else None


def written(value: Fraction) -> str:
    """The number in decimal digits, or as a/b where those never end."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, digits = value.denominator, 0
    while (step := next((n for n in (10, 2, 5) if rest % n == 0), None)) is not None:
        rest //= step
        digits += 1
    if rest > 1:
        return f"{value.numerator}/{value.denominator}"
    scaled = str(abs(value) * 10**digits).rjust(digits + 1, "0")
    return f"{'-' if value < 0 else ''}{scaled[:-digits]}.{scaled[-digits:]}"


def _normal(text: str) -> str:
    """The text without LaTeX, with everything numeric in ASCII."""
    text = without_latex(text)
    if not text.isascii():
        text = _SUPERSCRIPT.sub(lambda raised: "^" + raised[0].translate(_RAISED), text)
        text = _SPACED_FRACTION.sub("", text).translate(_PLAIN)
    return _ARROW.sub("=", text)


def _first_line(text: str) -> str:
    """The first line with a letter or digit, or ""."""
    return next((line for line in text.split("\n") if any(map(str.isalnum, line))), "")


def _numbering(line: str) -> tuple[int, bool] | None:
    """The number of what may be a numbered heading, "2. Money"; whether a mark ends it."""
    match = _NUMBERING.match(line)
    if match is None or not _LETTER.search(line, match.end()):
        return None
    return int(match[1]), bool(match[2])


def _of_clause(clause: str) -> Fraction | None:
    """The number that a marked line or the content of a box gives, or None."""
    if label := _LABEL.match(clause):
        clause = clause[label.end() :].lstrip(" :*_`\t")
    first, *others = _parts(clause)
    value = _of_equation(first)
    if value is None:
        return _of_equation(clause)
    if _is_step(first):
        for other in others:
            result = _of_equation(other) if _is_step(other) else None
            if result is None:
                break
            value = result
    return value


def _parts(clause: str) -> list[str]:
    """The clause split where remarks begin, without what follows an opening bracket."""
    parts: list[str] = []
    start = 0
    for remark in _REMARK.finditer(clause):
        parts.append(clause[start : remark.start()])
        if remark[0] == "(":
            return parts
        start = remark.end()
    return [*parts, clause[start:]]


def _is_step(text: str) -> bool:
    """Whether the text is a sum and its result, such as "then 9 * 2 = 18"."""
    connective = _CONNECTIVE.match(text)
    assert connective is not None
    left, *results = _EQUALS.split(text[connective.end() :])
    number = _leading(left)
    return bool(results) and number is not None and bool(_OPERATION.search(left, number.end))


def _of_equation(text: str) -> Fraction | None:
    """The last side that is a number; "12 times 2 is 24" is an equation too."""
    sides = _EQUALS.split(text)
    if len(sides) == 1 and _leading(text) is not None:
        sides = _IS.split(text)
    for side in reversed(sides):
        number = _leading(side)
        if number is None or number.value is None or _OPERATION.search(side, number.end):
            continue  # a sum, or no number
        return number.value
    return None


def _leading(text: str) -> _Number | None:
    """The number at the beginning of a text; what may stand in front of an answer is allowed."""
    number = next(_numbers(text), None)
    lead = _LEAD.match(text)
    return number if number and number.start <= (lead.end() if lead else 0) else None


def _numbers(text: str) -> Iterator[_Number]:
    """Every number in normal text, in order."""
    end = 0
    for token in _TOKEN.finditer(text):
        if token.start() < end:  # part of the last number: an exponent, a denominator
            continue
        if _in_time(text, token.start("run"), token.end()):
            continue
        if date := _DATE.match(text, token.start("run")):
            end = date.end()
            continue
        negative = "-" in token["currency"] or (
            bool(token["sign"]) and text[token.start() - 1 : token.start()] not in (")", "]", "%")
        )
        for number in _in_run(text, token):
            end = number.end
            if negative and number.value is not None:
                number = number._replace(value=-number.value)  # noqa: PLW2901
            negative = False
            yield number


def _in_time(text: str, start: int, end: int) -> bool:
    """Whether digits are part of a time or a ratio such as 3:30."""
    return (text[start - 1 : start] == ":" and text[start - 2 : start - 1].isdigit()) or (
        text[end : end + 1] == ":" and text[end + 1 : end + 2].isdigit()
    )


def _in_run(text: str, token: re.Match[str]) -> list[_Number]:
    """The numbers in a run of digits and separators, the last one with what is attached to it."""
    offset = token.start("run")
    pieces = [
        _Piece(piece[1], piece[2], offset + piece.start(2), offset + piece.end())
        for piece in _PIECE.finditer(token["run"])
    ]
    numbers: list[_Number] = []
    at = 0
    while at < len(pieces):
        groups = _end_of_groups(pieces, at)
        decimals = _has_decimals(pieces, at, groups)
        if decimals is None:  # 1.2.3
            while at + 1 < len(pieces) and pieces[at + 1].separator == ".":
                at += 1
        else:
            start = token.start() if at == 0 else pieces[at].start
            last = groups + decimals
            value = _value(pieces[at : last + 1], decimals=decimals)
            numbers.append(_Number(start, pieces[last].end, value))
            at = last
        at += 1
    if not numbers or numbers[-1].end < token.end():
        return numbers
    *others, final = numbers
    attached = _attached(text, final)
    whole = others[-1] if others else None
    if (
        whole is not None
        and text[whole.end : final.start] == " "
        and whole.value is not None
        and whole.value.denominator == 1
        and attached.value is not None
        and 0 < attached.value < 1
        and text[final.end : attached.end].lstrip().startswith("/")
    ):  # a mixed number: 2 1/2
        return [*others[:-1], _Number(whole.start, attached.end, whole.value + attached.value)]
    return [*others, attached]


def _has_decimals(pieces: list[_Piece], at: int, groups: int) -> bool | None:
    """Whether decimals follow the groups from `at` to `groups`; None if this is not a number."""
    if at == 0 and pieces[0].separator == ".":  # .5
        return False
    grouped_by = pieces[groups].separator if groups > at else ""
    following = pieces[groups + 1].separator if groups + 1 < len(pieces) else ""
    beyond = pieces[groups + 2].separator if groups + 2 < len(pieces) else ""
    if following == ".":
        return None if "." in (beyond, grouped_by) else True
    in_list = "," in (beyond, pieces[at].separator)
    return following == "," and grouped_by != "," and not in_list


def _end_of_groups(pieces: list[_Piece], at: int) -> int:
    """The index of the last group of thousands (or lakhs) behind the piece at `at`, or `at`."""
    first = pieces[at].digits
    if len(first) > 3 or first.startswith("0") or at + 1 == len(pieces):
        return at
    separator = pieces[at + 1].separator

    def end_of(length: int) -> int:
        last = at
        while (
            last - at < _LONGEST
            and last + 1 < len(pieces)
            and pieces[last + 1].separator == separator
            and len(pieces[last + 1].digits) == length
        ):
            last += 1
        return last

    last = end_of(3)
    if separator == "." and last == at + 1:
        comma = last + 1 < len(pieces) and pieces[last + 1].separator == ","
        return last if comma else at  # 1.234 is a decimal, 1.234,56 is not
    if separator == "," and last == at and len(first) < 3:
        lakhs = end_of(2)
        thousands = lakhs + 1
        if (
            at < lakhs
            and thousands < len(pieces)
            and pieces[thousands].separator == ","
            and len(pieces[thousands].digits) == 3
        ):
            return thousands  # 1,00,000
    return last


def _value(pieces: list[_Piece], *, decimals: bool) -> Fraction | None:
    """The number that groups of digits are, the last piece being its decimals or not."""
    if sum(len(piece.digits) for piece in pieces) > _LONGEST:
        return None
    digits = [piece.digits for piece in pieces]
    if pieces[0].separator == "." and len(pieces) == 1:
        digits.insert(0, "0")
        decimals = True
    behind = digits.pop() if decimals else "0"
    return Fraction(f"{''.join(digits)}.{behind}")


def _attached(text: str, number: _Number) -> _Number:
    """The number with the exponent or denominator behind it."""
    value = number.value
    if power := _EXPONENT.match(text, number.end) or _SCIENTIFIC.match(text, number.end):
        scaled = None if value is None else value * Fraction(10) ** int(power[1])
        return _Number(number.start, power.end(), scaled)
    if power := _POWER.match(text, number.end):
        return _Number(number.start, power.end(), _raised(value, int(power[1])))
    if below := _DENOMINATOR.match(text, number.end):
        divisor = Fraction(0)
        if len(below[1]) <= _LONGEST:
            divisor = Fraction(below[1].replace(",", ""))
        quotient = value / divisor if value is not None and divisor else None
        return _Number(number.start, below.end(), quotient)
    return number


def _raised(value: Fraction | None, exponent: int) -> Fraction | None:
    if value is None or (value == 0 and exponent <= 0):
        return None
    bits = max(value.numerator.bit_length(), value.denominator.bit_length())
    return value**exponent if bits * abs(exponent) <= _MOST_BITS else None
