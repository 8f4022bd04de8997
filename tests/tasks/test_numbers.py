from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enginehouse.tasks.numbers import final_number, last_number, marked_number, written

HALF = Fraction(1, 2)
FIVE_HALVES = Fraction(5, 2)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", 18),
        ("####18", 18),
        ("####\n18", 18),
        ("#### 18.", 18),
        ("#### +18", 18),
        ("#### ~18", 18),
        ("#### about 18", 18),
        ("1 + 1 = 2\n#### $1,450,000.00 in all", 1450000),
        ("**#### -3**", -3),
        ("#### **-3**", -3),
        ("#### -1/2", -HALF),
        ("#### $-5", -5),
        ("#### -$5", -5),
        ("#### US$18", 18),
        ("#### 12.50", Fraction(25, 2)),
        ("#### _7_", 7),
        ("#### 5%", 5),
        ("#### 18th", 18),
        ("#### 1\n#### 2", 2),
        ("#### 3 - so three", 3),
        ("#### 50 cm^2", 50),
        ("#### 60 miles/hour", 60),
        ("#### 18 eggs (12 + 6)", 18),
        ("#### 18 (16 + 2 = 18, and 3 are left)", 18),
        ("#### 18 eggs, since 16 - 3 = 13", 18),
    ],
)
def test_the_number_behind_the_last_marker(text, number):
    """Commas, currency, emphasis, units, trailing zeros, signs and remarks do not matter."""
    assert marked_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18\n\n- 3 eggs eaten\n- 4 eggs baked", 18),
        ("#### 18\n1. 3 eggs\n2. 4 eggs", 18),
        ("#### 18\n\n* 3 eggs\n+ 4 eggs", 18),
        ("#### 18\n#### 2. Check\nIt is right.", 18),
        ("#### 1. Eggs\n16 - 7 = 9\n#### 2. Money\n9 * 2\nThe answer is 18.", None),
        ("#### 1) Eggs\n#### 2) Money\nThe answer is 18.", None),
        ("#### 1 Eggs\n#### 2 Money\nThe answer is 18.", None),
        ("#### 1. Eggs\n#### 2. Money\n#### 18 dollars", 18),
        ("#### 1: Eggs\n#### 18", 18),
        ("#### 18. So she makes 18 dollars, 2 for each.", 18),
        ("#### Step 3: 4", None),
        ("#### Step 4\n\u00be of it", None),
        ("#### What is 3 times 4 worth?", None),
        ("#### eighteen", None),
        ("18", None),
        ("### 18", None),
        ("", None),
    ],
)
def test_lists_and_headings_are_no_answers(text, number):
    """What comes behind the marked line is not read; numbered headings mark nothing."""
    assert marked_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 12 eggs * $2 = $24", 24),
        ("#### 5 x 3 = 15", 15),
        ("#### 9 \\cdot 2 = 18", 18),
        ("#### 48 \u2013 30 = 18", 18),
        ("#### 18 = 9 * 2", 18),
        ("#### 2 + 3 = 5", 5),
        ("#### 20/4 = 5", 5),
        ("#### 3 * (4 + 2) = 18", 18),
        ("#### (12 + 6) * 1 = 18", 18),
        ("#### 3 * 6 = 9 * 2 = 18", 18),
        ("#### 0.1 + 0.2 = 0.3", Fraction(3, 10)),
        ("#### x = 18", 18),
        ("#### 9 * 2 \u2192 18", 18),
        ("#### 12 times 2 is 24", 24),
        ("#### 12 + 6 = 18, so 18 eggs", 18),
        ("#### 16-3-4=9; 9*2=18", 18),
        ("#### 16 \u2212 3 \u2212 4 = 9 eggs, then 9 \u00d7 $2 = $18 a day", 18),
        ("#### 16 - 7 = 9. 9 * 2 = 18. Done.", 18),
        ("#### 9 * 2 = 18, since 16 - 7 = 9", 18),
        ("#### 9 * 2 = 18 (16 - 7 = 9, 3 + 4 = 7)", 18),
        ("#### 18 dollars, 16 - 7 = 9", 18),
        ("#### Answer: 18", 18),
        ("#### The answer is **18**", 18),
        ("#### 2 + 3", None),
        ("#### 10-15", None),
        ("#### 10 minus 5", None),
    ],
)
def test_of_a_sum_the_result_counts(text, number):
    """On either side of the sign; a sum without a result and a range are no answers."""
    assert marked_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("\\boxed{70,\\!000}", 70000),
        ("70\\,000", 70000),
        ("70{,}000", 70000),
        ("\\boxed{\\frac{36}{2}}", 18),
        ("2\\frac{1}{2}", FIVE_HALVES),
        ("\\dfrac12", HALF),
        ("-\\frac{1}{2}", -HALF),
        ("\\boxed{18} It took 3 steps.", 18),
        ("$\\boxed{18 \\text{ eggs}}$", 18),
        ("\\boxed{\\text{Answer: } 18}", 18),
        ("\\(18\\)", 18),
        ("\\[\n18\n\\]", 18),
        ("$$\n18\n$$", 18),
        ("\\$18", 18),
        ("20\\%", 20),
        ("6.02 \\times 10^{23}", 602 * 10**21),
    ],
)
def test_latex(text, number):
    """Spaces, fractions, boxes, texts and powers, marked as well as alone."""
    assert marked_number(f"#### {text}") == number
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1.5e3", 1500),
        ("2.5E-3", Fraction(1, 400)),
        ("5e-05", Fraction(1, 20000)),
        ("1e+16", 10**16),
        ("6.02 \u00d7 10^23", 602 * 10**21),
        ("6.02\u00d710\u00b2\u00b3", 602 * 10**21),
        ("10^5", 100000),
        ("57 500", 57500),
        ("57\u202f500", 57500),
        ("57'500", 57500),
        ("57\u2019500.25", Fraction(230001, 4)),
        ("57_500", 57500),
        ("1.234.567", 1234567),
        ("1.234,56", Fraction(123456, 100)),
        ("1 234,56", Fraction(123456, 100)),
        ("1,00,000", 100000),
        ("1,500", 1500),
        ("1,5", Fraction(3, 2)),
        ("0,500", HALF),
        ("1.500", Fraction(3, 2)),
        (".5", HALF),
        ("\uff11\uff18", 18),
        ("\u0664\u0662", 42),
        ("1/2", HALF),
        ("36 / 2", 18),
        ("1/1,000", Fraction(1, 1000)),
        ("2 1/2", FIVE_HALVES),
        ("2\u00bd", FIVE_HALVES),
        ("2 \u00bd", FIVE_HALVES),
        ("18$", 18),
        ("3:30", None),
        ("5/10/2024", None),
        ("1.2.3", None),
        ("1/0", None),
        ("9" * 5000, None),
        ("2^" + "9" * 3, 2**999),
        ("99999999^999", None),
    ],
)
def test_ways_to_write_a_number(text, number):
    """The same everywhere: marked, in a box, alone, and at the end of a sentence."""
    assert marked_number(f"#### {text}") == number
    assert last_number(text) == number
    assert last_number(f"It is {text}.") == number
    if number is not None:
        assert final_number(f"It is \\boxed{{{text}}}, not 2.") == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So she has 16 - 3 = 13.", 13),
        ("It costs $1,234.50!", Fraction(2469, 2)),
        ("10-5", 5),
        ("pages 5\u201310", 10),
        ("is \u22125", -5),
        ("- 5 apples", 5),
        ("(5)-3", 3),
        ("\\boxed{42}", 42),
        ("Rs.500", 500),
        ("Rs500 or USD18", 18),
        ("XUSD18", None),
        ("...18", 18),
        ("2, 3, 4", 4),
        ("1,10,11", 11),
        ("It covers 50 cm^2 of it", 50),
        ("4 of A4, H2O and x_1", 4),
        ("no number", None),
        ("", None),
    ],
)
def test_the_last_number(text, number):
    """A hyphen between numbers or at a list's start is no minus; names hold no numbers."""
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18\n\\boxed{19} 20", 18),
        ("\\boxed{18} or 20", 18),
        ("\\boxed{17} no, \\boxed{18}, in 3 steps", 18),
        ("#### Step 1\n\\boxed{x = 18} or 20", 18),
        ("\\boxed{9 \\times 2 = 18} 20", 18),
        ("\\boxed{} 20", 20),
        ("17, no: 18", 18),
        ("**Answer:** 18 eggs (not 20)", 18),
        ("So the answer is $18 (9 eggs at $2 each).", 18),
        ("9 * 2 = 18. The final answer is 18 dollars for 9 eggs.", 18),
        ("Answer: 18 = 9 * 2", 18),
        ("The answer is 9 * 2 = **18**. I hope it is correct.", 18),
        ("The answer is -5 or so", -5),
        ("The answer is not 20 but 18.", 18),
        ("The answer is half of 36, which is 18.", 18),
        ("To answer this: she has 9 eggs, so 18", 18),
        ("To give the answer as a percentage: 32 of 96 are 33.3%, which rounds to 33%", 33),
        ("The answer is 20.\nNo, it is 18.", 18),
    ],
)
def test_marked_then_boxed_then_last(text, number):
    """The most explicit way of answering counts."""
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("\u7b54\u6848\u662f18\u3002", 18),
        ("\u6240\u4ee5\u5979\u6bcf\u5929\u8d5a1,500\u7f8e\u5143\u3002", 1500),
        ("\u6e29\u5ea6\u662f-5\u5ea6", -5),
        ("\u7b54\u3048\u306f\uff11\uff18\u500b\u3067\u3059\u3002", 18),
        ("\uc815\ub2f5\uc74018\uc785\ub2c8\ub2e4", 18),
        ("\u0e23\u0e32\u0e04\u0e3218\u0e1a\u0e32\u0e17", 18),
        ("\u51711.5e3\u7c73", 1500),
        ("Die Antwort lautet 18 Euro.", 18),
        ("La r\u00e9ponse est 57 500 \u20ac.", 57500),
        ("\u00e918", None),
    ],
)
def test_languages(text, number):
    """Where words are not separated by spaces, letters touch the number."""
    assert final_number(text) == number


@given(st.text())
def test_no_text_breaks_the_reading(text):
    """Whatever a model writes is a number or none."""
    for number in (marked_number("#### " + text), last_number(text), final_number(text)):
        assert number is None or isinstance(number, Fraction)


@given(st.integers(-(10**12), 10**12))
def test_every_whole_number_is_read_in_every_dress(number):
    """With thousands' commas, spaces or apostrophes, zeros and a unit, it stays the same."""
    for separator in (",", " ", "'", "\u202f"):
        grouped = f"{number:,}".replace(",", separator)
        assert marked_number(f"#### {grouped}.00 dollars") == number
        assert last_number(f"It is {grouped}.") == number


@given(st.fractions(-1000, 1000, max_denominator=1000))
def test_what_is_written_is_read_again(value):
    """Reports and journals hold the exact number."""
    assert last_number(written(value)) == value


def test_decimals_where_they_end():
    """a/b only where they never do."""
    values = (Fraction(-5, 2), Fraction(1, 400), Fraction(7), Fraction(1, 3))
    assert [written(value) for value in values] == ["-2.5", "0.0025", "7", "1/3"]
