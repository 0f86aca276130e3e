"""Which number a solution ends with.

Trusted: answers known beforehand, the box that lm-eval's tasks find, and sympy's rational numbers.
"""

import time

import pytest
from lm_eval.tasks.hendrycks_math.utils import last_boxed_only_string, remove_boxed
from sympy import Rational

from reptrace.texts.final_answers import final_answer, number, right

RIGHT = [r"\boxed{27}", "so it is 27", r"first \boxed{12}, no: \boxed{27}", "12 ... 27", r"\boxed{027}",
         r"\boxed{27.0}",
         r"\boxed{27.}", r"$\boxed{27}$.", r"\boxed{$27$}", r"\boxed{27\text{ cm}}", r"\boxed{27 \text{ ways} }",
         r"\boxed{\frac{54}{2}}", r"\boxed{\dfrac{54}2}", r"\boxed{54/2}", r"\boxed{x = 27}", r"\boxed{\$27}",
         r"\boxed{27\%}", r"\boxed{27^\circ}", r"\boxed{27^{\circ}}", r"\boxed{27 degrees}",
         r"\boxed{\textbf{(B) } 27}",
         r"\boxed{\text{27}}", r"\boxed {27}", r"\fbox{27}", "**27**", "= 27 cm", "5-27",
         "27cm", r"\boxed{27} (see page 12)"]
WRONG = ["", "no idea", r"\boxed{}", r"\boxed{27 or 28}", r"\boxed{27, 28}", r"\boxed{27\pi}", r"\boxed{27x}",
         r"\boxed{2\sqrt{27}}", r"\boxed{27", r"\boxed{27} wait, \boxed{28", r"27 \boxed{26}", "27 and then 5", "-27",
         r"\boxed{-27}", r"\boxed{27/0}", r"\boxed{2 7}", r"\boxed{27.5}", r"\boxed{1\frac{27}{1}}",
         r"\boxed{twenty-seven}",
         "AMC27", "version 1.27", r"\boxed{27e0}", r"\boxed{\text{none}}", r"\boxed{27^2}", r"\boxed{27\cdot 1}"]


@pytest.mark.parametrize("text", RIGHT)
def test_the_right_number_is_found_however_it_is_written(text):
    assert right(final_answer(text), "27.0")


@pytest.mark.parametrize("text", WRONG)
def test_nothing_else_counts_as_right(text):
    assert not right(final_answer(text), "27")


@pytest.mark.parametrize("text", [text for text in RIGHT + WRONG if r"\boxed{" in text])
def test_the_box_is_the_one_that_lm_eval_finds(text):
    box = last_boxed_only_string(text)
    assert final_answer(text) == (None if box is None else remove_boxed(box).strip())


@pytest.mark.parametrize(("answer", "value"), [
    (r"\frac{1}{3}", Rational(1, 3)), ("0.25", Rational("0.25")), ("-3/4", Rational(-3, 4)),
    ("1,234.5", Rational("1234.5")),
    (r"-\frac12", Rational(-1, 2)), ("−7", Rational(-7)), (".5", Rational(1, 2)), ("1.5/2", Rational(3, 4))])
def test_numbers_are_exact(answer, value):
    assert (number(answer).numerator, number(answer).denominator) == (value.p, value.q)
    assert number("0.3333") != number("1/3")


def test_texts_of_a_million_letters_and_numbers_of_many_digits_end_soon():
    started = time.monotonic()
    for text in ("{" * 10**6, r"\boxed{" * 10**5, r"\boxed{" + "1" * 10**6 + "}", "9" * 10**6,
                 "1," * 10**6, "-" * 10**6,
                 r"\boxed{" + "{" * 10**6, "27 " * 10**5 + r"\boxed{26}", r"\boxed{\text{" + "a" * 10**6 + "}}"):
        assert not right(final_answer(text), "27")
    assert time.monotonic() - started < 10  # a search that goes back again and again would take hours


def test_a_problem_without_a_number_for_an_answer_is_refused():
    with pytest.raises(ValueError, match="must be a number, got 'twelve'"):
        right("12", "twelve")
