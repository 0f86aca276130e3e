"""Problems, their answers and their parts. Trusted: numpy's sort, Python's own arithmetic, all problems of a grade
listed by hand, and what a tokenizer makes of a whole text."""

import re
from collections import Counter
from itertools import product

import numpy as np
import pytest

from reptrace.texts.corpora import Corpus, train_tokenizer
from reptrace.texts.problems import ASKED, HELD_OUT, PHRASINGS, PROBLEMS, Problem, draw, grades, mixed, right

END = "<|endoftext|>"
ORDINARY = Corpus("prose", [f"Chapter {k}, in which it rains on day {k * 7} and nothing else happens. " * 4
                            for k in range(300)])
ANSWER = {"sort": lambda given: "".join(map(str, np.sort([int(digit) for digit in given]))),
          "reverse": lambda given: "".join(given[-k - 1] for k in range(len(given))),
          "add": lambda given: str(int(given.split()[0]) + int(given.split()[1]))}


def test_answers_are_those_of_numpy_and_of_arithmetic():
    for problem in draw(400, held_out=False) + draw(200, held_out=True):
        assert problem.answer == ANSWER[problem.task](problem.given)
    assert [Problem("sort", "3072").answer, Problem("reverse", "0012").answer, Problem("add", "17 40").answer] \
        == ["0237", "2100", "57"]


def test_prompts_say_the_problem_in_several_ways_and_end_where_the_answer_begins():
    problem = Problem("add", "17 40")
    assert [problem.text(phrasing) for phrasing in PHRASINGS] == [
        "Question: add 17 and 40. Answer: 57", "add(17, 40) = 57", "17 plus 40 is 57"]
    assert problem.prompt() == "Question: add 17 and 40. Answer: "


def test_small_grades_hold_every_problem_once_in_one_of_the_parts():
    for grade, all_of_it in ((("sort", 3), {("sort", "".join(each)) for each in product("0123456789", repeat=3)}),
                             (("add", 1), {("add", f"{a} {b}") for a in range(10) for b in range(10)})):
        parts = []
        for held_out in (False, True):
            with pytest.raises(ValueError, match=r"these grades have (\d+)") as error:
                draw(2000, held_out, among=[grade])
            count = int(re.search(r"have (\d+)", str(error.value))[1])
            problems = draw(count, held_out, seed=3, among=[grade])
            parts.append({(each.task, each.given) for each in problems})
            assert len(parts[-1]) == count
        assert parts[0] | parts[1] == all_of_it and not parts[0] & parts[1]


def test_no_problem_is_in_both_parts_whatever_its_phrasing():
    train, held_out = draw(6000, False, seed=1), draw(1500, True, seed=2)
    assert not {*train} & {*held_out} and len({*train}) == 6000 and len({*held_out}) == 1500
    sums = {each.given for each in train if each.task == "add"}  # nor with its numbers in the other order
    assert not sums & {" ".join(each.given.split()[::-1]) for each in held_out if each.task == "add"}
    texts = mixed(ORDINARY, 60_000, seed=5).documents
    asked = {each.text(phrasing) for each in held_out for phrasing in PHRASINGS}
    assert not asked & {*texts}


def test_the_held_out_share_is_what_was_set():
    some = [Problem("reverse", f"{number:06}") for number in range(4000)]
    share = np.mean([each.held_out for each in some])
    assert abs(share - HELD_OUT) < 0.004 + 4 * (HELD_OUT * (1 - HELD_OUT) / 4000) ** 0.5  # a byte's step; four errors


def test_a_draw_has_as_many_of_each_grade_and_is_the_same_again():
    among = grades(lists=range(4, 8), sums=[2, 3])
    problems = draw(500, False, seed=4, among=among)
    assert {*Counter((each.task, each.difficulty) for each in problems).values()} == {50}
    assert problems == draw(500, False, seed=4, among=among) and problems != draw(500, False, seed=5, among=among)
    assert problems[:100] == draw(100, False, seed=4, among=among)
    few = Counter((each.task, each.difficulty) for each in draw(1000, True))
    assert few["sort", 2] < 30 < few["sort", 8]  # of a hundred a sixth is held out: the others make up for it


@pytest.mark.parametrize("answer", [
    "", " ", " 0237", "0237 ", "0237\n", "237", "00237", "0 2 3 7", "0237 0237", "3072 0237", "3072, no: 0237",
    "02370237", "0237" + "7" * 100_000, "0237.", "'0237'", "０２３７", "0237<|padding|>", f"0237{END}{END}",
    f"02{END}37", f"0237{END} ", f"{END}0237", f"3072{END}0237{END}"])
def test_nothing_but_the_right_answer_is_right(answer):
    problem = Problem("sort", "3072")
    assert not right(problem, answer) and not right(problem, answer, END)


def test_the_end_is_demanded_where_that_is_asked():
    problem = Problem("sort", "3072")
    assert right(problem, "0237") and not right(problem, "0237", END)
    assert right(problem, f"0237{END}", END) and not right(problem, f"0237{END}")
    with pytest.raises(TypeError, match="an answer is a text, got int 237"):
        right(problem, 237)


def test_a_mixed_text_has_the_shares_that_were_set():
    corpus = mixed(ORDINARY, 300_000, seed=1, among=grades(lists=range(2, 8)))
    there = {*ORDINARY.documents}
    spoken = [document for document in corpus.documents if document in there]
    written = [document for document in corpus.documents if document not in there]
    total = sum(map(len, corpus.documents))
    assert len(spoken) == len({*spoken}) and 300_000 <= total < 300_000 + 400  # up to one document more
    assert sum(map(len, written)) / total == pytest.approx(PROBLEMS, abs=0.005)  # an ordinary document: 0.2 %
    asked = np.mean([document.startswith("Question: ") for document in written])
    assert abs(asked - ASKED) < 4 * (ASKED * (1 - ASKED) / len(written)) ** 0.5  # four standard errors
    lengths = Counter(len(re.search(r"\d+", document)[0]) for document in written if "sort" in document)
    assert {*lengths} == set(range(2, 8)) and max(lengths.values()) < 1.2 * min(lengths.values())  # even, by chance
    assert corpus.fingerprint == mixed(ORDINARY, 300_000, seed=1, among=grades(lists=range(2, 8))).fingerprint


def test_a_prompt_and_an_answer_tokenized_apart_are_the_whole_text_a_digit_a_token():
    documents = mixed(ORDINARY, 60_000).documents
    tokenizer = train_tokenizer(documents, 400, digits=True)
    plain = train_tokenizer(documents, 400)
    assert any(len(re.findall(r"\d", each)) > 1 for each in plain.get_vocab())  # else nothing is tested
    for problem, phrasing in product(draw(40, True), PHRASINGS):
        [prompt, answer, whole] = tokenizer([problem.prompt(phrasing), problem.answer, problem.text(phrasing)],
                                            add_special_tokens=False)["input_ids"]
        assert prompt + answer == whole and len(answer) == len(problem.answer)
        assert tokenizer.decode(whole) == problem.text(phrasing)


@pytest.mark.parametrize(("made", "message"), [
    (lambda: Problem("count", "12"), "one of sort, reverse, add; got 'count'"),
    (lambda: Problem("sort", "1 2"), "digits without spaces, as '3072'; got '1 2'"),
    (lambda: Problem("sort", ""), "got ''"),
    (lambda: Problem("reverse", "１2"), "a list is of digits"),
    (lambda: Problem("add", "17 4"), "two numbers of as many digits, as '17 40'; got '17 4'"),
    (lambda: Problem("add", "07 40"), "got '07 40'"),
    (lambda: Problem("sort", "12").prompt("verse"), "one of question, call, sentence; got 'verse'"),
    (lambda: draw(0, True), "count must be 1 or more, got 0"),
    (lambda: mixed(Corpus("short", ["It rains."]), 1000), "1000 characters need more ordinary text than the 9 of")])
def test_what_is_none_is_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()
