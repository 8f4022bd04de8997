import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.core.errors import DataError
from enginehouse.tasks.instruction_checkers import CHECKERS, build_checker
from enginehouse.tasks.instruction_checkers.splitting import count_words, sentences, words

SHARED_IFEVAL = (
    Path(__file__).resolve().parents[3] / "shared" / "data" / "ifeval" / "input_data.jsonl"
)

REQUEST = "Name three rivers."


def follows(instruction, response, arguments):
    """The verdict of one checker on one response."""
    return build_checker(instruction, arguments, where="test").follows(response)


# instruction, its arguments, what follows it, what does not
CASES = [
    (
        "keywords:existence",
        {"keywords": ["river", "Sea"]},
        ["a RIVER meets the sea", "rivers and seaside: parts of words count"],
        ["a river", "a sea"],
    ),
    ("keywords:existence", {"keywords": ["a.c"]}, ["abc: keywords are patterns"], ["ac"]),
    (
        "keywords:frequency",
        {"keyword": " cat ", "frequency": 2, "relation": "at least"},
        ["Cat, cat", "concatenate the cat"],
        ["cat"],
    ),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "less than"},
        ["dog", "cat"],
        ["cat cat"],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["cat", "dog"]},
        ["cats and dogma: only whole words count"],
        ["a Cat", "hot-dog", "dog."],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "E", "let_frequency": 3, "let_relation": "at least"},
        ["Eel e", "eee"],
        ["eel"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 2, "let_relation": "less than"},
        ["# one", "none"],
        ["## two"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter.", "12345"],
        ["This is a perfectly ordinary sentence about the weather."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["One. Two? Three!", "Dr. Who came. He saw. He left."],
        ["One. Two.", "Dr. Who came. He saw Mr. Smith."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["One", "One."],
        ["One. Two.", "Wow!!!"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one\n***\ntwo", "***\none *** two\n***", "a\n\nb***c"],
        ["one", "one\n\ntwo", "one *** *** two", "one ****** two", "a***b***c"],
    ),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, ["one", "***one"], ["a***b"]),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "at least"},
        ["one two three four", "it's well-known"],
        ["one two three", "- * ! ?"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "less than"},
        ["one two three"],
        ["one two three four", "it's well-known"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        ["a\n\nthen b", 'a\n\n  "THEN, b', "a\n\n'Then's b", "a\nb\n\nThen.c", "a\n\nThen b\n\n"],
        ["a\n\nb", "Then", "a\nThen b", "a\n\n*Then* b", "a\n\nThen b\n\nc", "a\n\nThen-b"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        [],
        ["a\n\n\n\nthen b", "\n\na\n\nthen b"],  # blank ones shift the position
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] at [place]", "[] []", "[a [b] c] [d]"],
        ["[name]", "[a\nb] [c]", "(name) (place)"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. More", "p. s. anywhere", "P.\nS. more"],
        ["PS: more", "P.P.S more", "P.S more"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["P.P.S more", "p. p. s more", "P.P.S."],
        ["P.S. more", "PPS"],
    ),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, ["a note: b"], ["a note"]),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n  * b", "Intro\n*a\n-b", "* a\n**bold**\n* b", "---\n* a"],
        ["* a", "* a\n* b\n- c", "+ a\n+ b", "1. a\n2. b"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "Well: My answer is maybe. Or so."],
        ["my answer is yes.", "My answer is yes", "Yes.", "My answer is yes!"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** and **b**", "***a***", "*a**b*"],
        ["*a*", "**a**", "*a\nb* c *", "* * and **  **", "_a_ _b_"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": " Section ", "num_sections": 2},
        ["Section 1\na\nSection 2\nb", "Section1 Section1", "Section 7 Section 9 Section 11"],
        ["Section 1", "section 1 section 2", "Section A Section B", "SECTION 1 SECTION 2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, 2]}', "```json\n[]\n```", "```\n12\n```", " null ", "```JSON{}```", "NaN"],
        ["{'a': 1}", "", "Here: {}", "``` json\n{}\n```", '{"a": 1', "[" * 100_000],
    ),
    (
        "detectable_format:title",
        {},
        ["<<Joy>>\ntext", "text <<a>> <<>>", "<<<Joy>>>"],
        ["<Joy>", "<<>>", "<<  >>", "<<a\nb>>", "Joy"],
    ),
    (
        "combination:two_responses",
        {},
        ["a\n******\nb", "******a******b******", "a******A"],
        ["a", "a***b", "a******a ", "a******b******c", "a************b", "******"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": f" {REQUEST}\n"},
        [f"\n{REQUEST} Nile", REQUEST.upper()],
        [f'"{REQUEST}" Nile', "Nile", f"Sure! {REQUEST}"],
    ),
    (
        "startend:end_checker",
        {"end_phrase": " Peace!"},
        ["Now peace!", 'He said "Now PEACE!"\n'],
        ["Peace! Now.", "Peace", "Peace!*", "Peace!'"],
    ),
    (
        "startend:quotation",
        {},
        ['"a"', ' "a" and "b"\n', '""'],
        ['"', "“a”", "'a'", '"a".', 'a"'],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["I saw NASA", "DON'T", "CANNOT", "A/B C-D", "U.S.A. and UK", "NASA's USA"],
        ["Nasa USA", "WELL-KNOWN", "A/B", "word"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 1, "capital_relation": "less than"},
        ["no capitals", "One Word", "1 2"],
        ["I do", "C3 is"],
    ),
    (
        "change_case:english_capital",
        {},
        ["THIS IS A PERFECTLY ORDINARY SENTENCE ABOUT THE WEATHER."],
        [
            "This is a perfectly ordinary sentence about the weather.",
            "DAS IST EIN GANZ GEWÖHNLICHER DEUTSCHER SATZ ÜBER DAS WETTER.",
            "123",
        ],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["this is a perfectly ordinary sentence about the weather. 1, 2, 3!"],
        [
            "this is a perfectly ordinary sentence about the Weather.",
            "ceci est une phrase tout à fait ordinaire en français.",
            "123",
        ],
    ),
    ("punctuation:no_comma", {}, ["a; b", "a\uff0cb\u3001c"], ["a, b"]),
]


@pytest.mark.parametrize(("instruction", "arguments", "followed", "broken"), CASES)
def test_verdicts(instruction, arguments, followed, broken):
    """Each checker follows the original's semantics, its quirks included."""
    checker = build_checker(instruction, arguments, where="test")
    assert [text for text in followed if not checker.follows(text)] == []
    assert [text for text in broken if checker.follows(text)] == []


def test_every_checker_has_cases():
    """The 25 instructions of IFEval are all here, and all are tested."""
    assert len(CHECKERS) == 25
    assert {case[0] for case in CASES} == set(CHECKERS)


def test_language_detection_is_reproducible():
    """A text on the edge between languages gets the same verdict every time."""
    edge = "no se ok hotel taxi radio"
    verdicts = set()
    for _ in range(5):
        from enginehouse.tasks.instruction_checkers.language import is_in

        is_in.cache_clear()
        verdicts.add(tuple(is_in(edge, code) for code in ("es", "en", "it", "pt", "fr")))
    assert len(verdicts) == 1


def test_language_detection_leaves_the_library_alone():
    """Seeding happens on our own detector: the library's default stays unseeded."""
    from langdetect import DetectorFactory

    assert follows("language:response_language", "Guten Tag, wie geht es?", {"language": "de"})
    assert DetectorFactory.seed is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Hello", ["Hello"]),
        ("(Hi there.) Bye.", ["(Hi there.)", "Bye."]),
        ('He said "No." Then he left.', ['He said "No."', "Then he left."]),
        ("Wow!!!", ["Wow!!", "!"]),
        ("Wait . . . what?", ["Wait .", ".", ".", "what?"]),
        ("Mr. Li met Dr. Ode at 3.14 p.m. today.", ["Mr. Li met Dr. Ode at 3.14 p.m. today."]),
        ("No stop\nnor here\n\nor here", ["No stop\nnor here\n\nor here"]),
    ],
)
def test_sentences(text, expected):
    """Sentences are NLTK's, also where its Punkt is odd."""
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("DON'T GO", ["DO", "N'T", "GO"]),
        ("IT'S. IT'S", ["IT", "'S", ".", "IT", "'S"]),
        ("Can't we? GONNA", ["Ca", "n't", "we", "GON", "NA"]),
        ("A,B 1,000 C:D", ["A", "B", "1,000", "C", "D"]),
        ('"WELL-KNOWN" (X)', ["WELL-KNOWN", "X"]),
        ("\u201cA\u201d B\u2014C D--E", ["A", "B\u2014C", "D", "E"]),
    ],
)
def test_words(text, expected):
    """Words fall apart where NLTK's tokenizer takes them apart."""
    assert words(text) == expected


def test_count_words():
    """A word is a run of letters, digits and underscores."""
    assert count_words("It's a well-known_fact, 3.14!") == 7


@pytest.mark.parametrize(
    ("instruction", "arguments", "complaint"),
    [
        ("keywords:existense", {}, "did you mean 'keywords:existence'"),
        ("keywords:existence", {}, "keywords"),
        ("keywords:existence", {"keywords": None}, "keywords"),
        ("keywords:existence", {"keywords": []}, "length"),
        ("keywords:existence", {"keywords": "cat"}, "array"),
        ("keywords:existence", {"keywords": ["c++++"]}, "regular expression"),
        ("keywords:frequency", {"keyword": "a", "frequency": 1, "relation": "most"}, "most"),
        ("keywords:letter_frequency", {"letter": "ab"}, "letter"),
        ("language:response_language", {"language": "english"}, "english"),
        ("length_constraints:number_words", {"num_words": "9", "relation": "at least"}, "int"),
        ("length_constraints:number_words", {"num_words": -1, "relation": "at least"}, ">= 0"),
        (
            "length_constraints:nth_paragraph_first_word",
            {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"},
            "exceeds",
        ),
        ("punctuation:no_comma", {"num_words": 3}, "num_words"),
    ],
)
def test_wrong_arguments(instruction, arguments, complaint):
    """An instruction that cannot be checked is refused by name; nothing is drawn at random."""
    with pytest.raises(DataError) as caught:
        build_checker(instruction, arguments, where="prompt 7")
    assert "prompt 7" in str(caught.value)
    assert instruction in str(caught.value)
    assert complaint in str(caught.value)


def test_null_arguments_are_dropped():
    """The hub's form of the data gives every argument to every instruction, most of them null."""
    assert follows("punctuation:no_comma", "a b", {"num_words": None, "keywords": None})


def test_every_instruction_of_ifeval_builds():
    """All instructions of the real 541 prompts are known, and their arguments fit."""
    if not SHARED_IFEVAL.exists():
        pytest.skip("the IFEval prompts are not in ../shared/data")
    rows = [json.loads(line) for line in SHARED_IFEVAL.read_text("utf-8").splitlines()]
    built = [
        build_checker(name, arguments, where=str(row["key"]))
        for row in rows
        for name, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    ]
    assert len(rows) == 541
    assert len(built) == 834
    assert {type(checker) for checker in built} == set(CHECKERS.values())


def test_speed():
    """Checking is cheap: 1,000 verdicts of every checker without language detection in a moment."""
    response = "Here is *one* [placeholder]. It isn't long, but it's REAL!\n\n" * 5
    cheap = [
        build_checker(name, arguments, where="test")
        for name, arguments, _, _ in CASES
        if not name.startswith(("language:", "change_case:english"))
    ]
    for checker in cheap:
        checker.follows(response)
    begin = time.process_time()
    for _ in range(1000 // len(cheap)):
        for checker in cheap:
            checker.follows(response)
    assert time.process_time() - begin < 2.0


ORIGINALS = [
    (
        "detectable_format:number_bullet_lists",
        "num_bullets",
        lambda text: (
            len(re.findall(r"^\s*\*[^*].*$", text, re.MULTILINE))
            + len(re.findall(r"^\s*-.*$", text, re.MULTILINE))
        ),
    ),
    (
        "detectable_content:number_placeholders",
        "num_placeholders",
        lambda text: len(re.findall(r"\[.*?\]", text)),
    ),
]


@pytest.mark.parametrize(("name", "argument", "original"), ORIGINALS)
@given(text=st.text("*-* \n\t\x0b\u2028a[]", max_size=40))
def test_counts_are_the_originals(name, argument, original, text):
    """In linear time, and with all quirks of the original's patterns."""
    count = original(text)
    assert follows(name, text, {argument: count})
    if name.endswith("placeholders"):
        assert not follows(name, text, {argument: count + 1})


@given(text=st.text("<>a \n", max_size=40))
def test_titles_are_the_originals(text):
    """The longest one in each line."""
    titles = re.findall(r"<<[^\n]+>>", text)
    wanted = any(title.lstrip("<").rstrip(">").strip() for title in titles)
    assert follows("detectable_format:title", text, {}) is wanted
