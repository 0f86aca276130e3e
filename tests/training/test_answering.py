"""What is told of drawn answers, against counts and sums by hand; a vocabulary of digits in which letters merge."""

import numpy as np
import pytest

from reptrace.models.generation import Written
from reptrace.texts.problems import Problem
from reptrace.training.answering import Answers, kl, preferences, rightly

PROBLEMS = [Problem("sort", "21"), Problem("reverse", "12"), Problem("add", "1 2")]  # 12, 21, 3
TEXTS = [["12", "12", "21", "12"], ["12", "1", "12", ""], ["3", "4", "3", "3"]]
ENDED = np.array([[True, False, True, True], [True, True, True, True], [True, True, False, True]])


def tokenizer(text, add_special_tokens=True):
    """A token a character; one for a space and a letter after it."""
    def ids(each):
        return [ord(letter) for letter in each.replace(" x", "_")]
    return {"input_ids": ids(text) if isinstance(text, str) else list(map(ids, text))}


@pytest.fixture
def said():
    made = Written([[tokenizer(text)["input_ids"] for text in texts] for texts in TEXTS], TEXTS, ENDED, {})
    drawn = -np.arange(1.0, 13.0).reshape(3, 4)
    return Answers(made, rightly(made, PROBLEMS), np.log([0.5, 0.25, 0.75]), drawn)


def test_an_answer_is_right_that_is_the_right_one_and_ended(said):
    assert said.right.tolist() == [[True, False, False, True], [False] * 4, [True, False, False, True]]


def test_counts_by_hand(said):
    assert said.accuracy == pytest.approx(0.5)
    assert said.flat_groups == pytest.approx(1 / 3)  # the second problem alone
    # 12 ended, 12 cut off, 21; 12, 1, nothing; 3 ended, 4, 3 cut off
    assert said.distinct == pytest.approx(3 / 4)
    tokens = sum(len(text) for texts in TEXTS for text in texts) + ENDED.sum()
    assert said.entropy == pytest.approx(78 / tokens)


def test_kl_is_the_mean_of_problems_with_their_standard_error(said):
    reference = said.drawn - np.array([[1.0], [2.0], [6.0]])
    assert kl(said, reference) == pytest.approx((3.0, np.std([1, 2, 6], ddof=1) / 3**0.5))


def test_pairs_are_of_right_and_wrong_answers_that_ended_and_read_as_they_were_drawn(said):
    assert preferences(said, PROBLEMS, tokenizer) == [
        {"prompt": PROBLEMS[0].prompt(), "chosen": "12", "rejected": "21"},
        {"prompt": PROBLEMS[2].prompt(), "chosen": "3", "rejected": "4"}]
    said.written.texts[2][1] = "x"  # merges with the space that ends the question
    said.written.tokens[2][1] = [ord("x")]
    assert [pair["rejected"] for pair in preferences(said, PROBLEMS, tokenizer)] == ["21"]
