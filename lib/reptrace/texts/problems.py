"""Problems with one right answer each, of graded difficulty: sort or reverse a list of digits, add two numbers.

A problem is asked in three phrasings; a prompt ends where the answer's first digit stands, so that with one token a
digit (`corpora.train_tokenizer` with `digits`) a prompt and an answer tokenized apart are the tokens of both together.
Which part a problem belongs to, training or held out, its own hash decides, whatever the phrasing.

The tasks are small forms of reasoning-gym's number_sorting, spell_backward and chain_sum, which needs a dozen packages
for all its others. Its items are {"question", "answer", "metadata"}: here `prompt()`, `answer`, and {"task": task,
"difficulty": difficulty}; `right` is its score_answer(answer, entry) == 1.0, without credit for a part.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from reptrace.support import arguments
from reptrace.support.fingerprints import order_key
from reptrace.texts.corpora import Corpus

QUESTION = "question"  # the phrasing that models are asked in
PHRASINGS = {
    QUESTION: {"sort": "Question: sort {}. Answer: ", "reverse": "Question: reverse {}. Answer: ",
               "add": "Question: add {} and {}. Answer: "},
    "call": {"sort": "sort({}) = ", "reverse": "reverse({}) = ", "add": "add({}, {}) = "},
    "sentence": {"sort": "{} sorted is ", "reverse": "{} reversed is ", "add": "{} plus {} is "}}
LISTS, SUMS = range(2, 9), range(1, 4)  # digits of a list, and of each number of a sum
HELD_OUT = 0.15  # share of the problems
PROBLEMS, ASKED = 0.8, 0.35  # share of problems in a mixed text, and of questions among them

Grade = tuple[str, int]  # a task and a difficulty


@dataclass(frozen=True)
class Problem:
    """What is to be done with which digits.

    Parameters
    ----------
    task : "sort" (ascending), "reverse" or "add"
    given : the list's digits, "3072"; or two numbers of as many digits, "17 40", without leading zeros

    Raises
    ------
    ValueError
        Another task, or digits that it can't be.
    """

    task: str
    given: str

    def __post_init__(self):
        if self.task not in PHRASINGS[QUESTION]:
            raise ValueError(f"a task is one of {', '.join(PHRASINGS[QUESTION])}; got {self.task!r}.")
        numbers = self.given.split(" ")
        digits = all(each.isascii() and each.isdigit() for each in numbers)
        if self.task == "add":
            sound = len(numbers) == 2 and len({*map(len, numbers)}) == 1 and digits
            if not sound or any(each != str(int(each)) for each in numbers):
                raise ValueError(f"a sum is of two numbers of as many digits, as '17 40'; got {self.given!r}.")
        elif len(numbers) != 1 or not digits:
            raise ValueError(f"a list is of digits without spaces, as '3072'; got {self.given!r}.")

    @property
    def answer(self) -> str:
        """The only right one."""
        if self.task == "add":
            return str(sum(map(int, self.given.split(" "))))
        return self.given[::-1] if self.task == "reverse" else "".join(sorted(self.given))

    @property
    def difficulty(self) -> int:
        """Digits of the list, or of each number of the sum."""
        return len(self.given.split(" ")[0])

    @property
    def held_out(self) -> bool:
        """Whether it must not be trained on. Two numbers have the same place in either order."""
        return order_key("problem", f"{self.task} {' '.join(sorted(self.given.split(' ')))}")[0] < 256 * HELD_OUT

    def prompt(self, phrasing: str = QUESTION) -> str:
        """The problem in words, up to where its answer begins, a space included."""
        if phrasing not in PHRASINGS:
            raise ValueError(f"a phrasing is one of {', '.join(PHRASINGS)}; got {phrasing!r}.")
        return PHRASINGS[phrasing][self.task].format(*self.given.split(" "))

    def text(self, phrasing: str = QUESTION) -> str:
        """The problem with its answer, as a document."""
        return self.prompt(phrasing) + self.answer


def right(problem: Problem, answer: str, end: str = "") -> bool:
    """Whether what stands after the prompt is the right answer, digit by digit, and nothing else.

    Parameters
    ----------
    answer : all that was written; decoded with special tokens (skip_special_tokens=False), as a padding or end token
        amid the digits is not seen otherwise
    end : how the end token reads, which then must follow the answer at once and last; "": no end is demanded. The
        texts of `models.generation.write` are without it: there the answer must be right and have `ended`.
    """
    if not isinstance(answer, str):
        raise TypeError(f"an answer is a text, got {arguments.shown(answer)}.")
    return answer == problem.answer + end


def grades(lists: Iterable[int] = LISTS, sums: Iterable[int] = SUMS) -> list[Grade]:
    """Tasks with their difficulties: sort and reverse with lists of these lengths, add with numbers of these."""
    lists = tuple(lists)
    return [*((task, length) for task in ("sort", "reverse") for length in lists), *(("add", each) for each in sums)]


def draw(count: int, held_out: bool, seed: int = 0, among: Sequence[Grade] | None = None) -> list[Problem]:
    """Different problems of one part, as many of each grade; of a grade that has fewer all, and more of the others.

    Parameters
    ----------
    held_out : bool, which part
    among : grades, default all; see `grades`

    Raises
    ------
    ValueError
        There are not so many.
    """
    arguments.whole(count, "count")
    rng, found = random.Random(seed), []
    left = [_all(grade, held_out, rng) for grade in (grades() if among is None else among)]
    while left and len(found) < count:
        rng.shuffle(left)  # so that a part of the problems is a fair draw, too
        following = [(problems, next(problems, None)) for problems in left]
        left = [problems for problems, problem in following if problem]
        found += [problem for _, problem in following if problem]
    if len(found) < count:
        raise ValueError(f"{count} problems were asked for, these grades have {len(found)} "
                         f"{'held out' if held_out else 'to train on'}.")
    return found[:count]


def mixed(ordinary: Corpus, characters: int, seed: int = 0, among: Sequence[Grade] | None = None) -> Corpus:
    """A training text: problems with their answers, a document each, amid ordinary text.

    `PROBLEMS` of the characters are problems, of every grade as many, none of them held out; `ASKED` of these are
    questions, the other phrasings share the rest. Problems of small grades come again and again. The ordinary documents
    are taken as they are, each once, in random order.

    Raises
    ------
    ValueError
        The ordinary text is too short.
    """
    arguments.whole(characters, "characters")
    rng, spoken = random.Random(seed), 0
    others, problems, documents = list(ordinary.documents), _written(among or grades(), rng), []
    rng.shuffle(others)
    total = 0
    while total < characters:
        if spoken * PROBLEMS <= (total - spoken) * (1 - PROBLEMS):  # the ordinary text is behind
            if not others:
                raise ValueError(f"{characters} characters need more ordinary text than the {spoken} of "
                                 f"{ordinary.name!r}: ask for fewer, or give a longer one.")
            documents.append(others.pop())
            spoken += len(documents[-1])
        else:
            documents.append(next(problems))
        total += len(documents[-1])
    return Corpus(f"problems and {ordinary.name}", documents)


def _written(among: Sequence[Grade], rng: random.Random) -> Iterator[str]:
    """Documents of problems to train on, without end; a grade that is short of problems repeats them."""
    phrasings = list(PHRASINGS)
    weights = [ASKED, *[(1 - ASKED) / (len(phrasings) - 1)] * (len(phrasings) - 1)]
    while True:
        grade = rng.choice(among)
        problem = _numbered(grade, rng.randrange(_size(grade)))
        if not problem.held_out:
            yield problem.text(*rng.choices(phrasings, weights))


def _all(grade: Grade, held_out: bool, rng: random.Random) -> Iterator[Problem]:
    """The problems of a grade and a part, each once, in random order (Fisher and Yates; only what moved is kept)."""
    moved, size = {}, _size(grade)
    for k in range(size):
        place = rng.randrange(k, size)
        problem = _numbered(grade, moved.get(place, place))
        moved[place] = moved.pop(k, k)
        if problem.held_out == held_out:
            yield problem


def _size(grade: Grade) -> int:
    """How many problems a grade has."""
    task, difficulty = grade
    return _numbers(difficulty) ** 2 if task == "add" else 10**difficulty


def _numbers(digits: int) -> int:
    """How many numbers have so many digits; 0 has one."""
    return 10 if digits == 1 else 9 * 10 ** (digits - 1)


def _numbered(grade: Grade, number: int) -> Problem:
    """The problem of a grade that has this number, from 0."""
    task, difficulty = grade
    if task != "add":
        return Problem(task, f"{number:0{difficulty}}")
    least = 0 if difficulty == 1 else 10 ** (difficulty - 1)
    first, second = divmod(number, _numbers(difficulty))
    return Problem(task, f"{least + first} {least + second}")
