"""Items that ask for what stands far back: `cloze` for a rare word, `copy` for the rest of a rare identifier.

The true choice stands in the passage, beyond an n-gram's reach; the others stand in passages of other documents. All
four are alike in shape, in number of tokens and in what the n-gram model of the training text gives them: it ranks the
true one first, second, third and last equally often.

`copy` gives the beginning of the identifier and asks for the rest: a model of two layers can find where that beginning
stood before, and what followed it there (induction: Elhage et al. 2021, Olsson et al. 2022). `cloze` gives nothing of
its word, so a model must tell which word is due.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np

from reptrace.texts.drafts import CHOICES, Cut, Draft, Item, Text, drafts, token_ids
from reptrace.texts.ngrams import NgramModel

REACH = 16  # tokens at least from where the truth stands earlier to the end of the passage
RARE = 200  # times at most that what is asked for stands in the training text
POOL = 100  # that the three others are picked from
PLACES = 4  # of a document at most, that are tried for `copy`
LETTERS = re.compile(r"[^\W\d_]+")
WORD = re.compile(r"(?<=\S )[A-Za-z]{3,}(?!\w)")  # a space before it, one that a byte-level token begins with
NAME = re.compile(r"\b[A-Za-z_][A-Za-z0-9_]*\b")
KINDS = (("a", re.compile("[a-z]+")), ("A", re.compile("[A-Z]+")), ("0", re.compile("[0-9]+")))


def cloze(documents: Sequence[str], tokenizer, context: int, ngrams: NgramModel, counts: Mapping[str, int],
          seed: int = 0) -> list[Item]:
    """One item a document in which a rare word stands twice, far enough apart and near enough for one context.

    Parameters
    ----------
    ngrams : NgramModel of the training text
    counts : how often each run of letters stands in it, see `items.words_of`
    """
    rng = np.random.default_rng(seed)
    found = drafts(documents, tokenizer, context, lambda text: _word_again(text, context, counts, rng))
    alike: dict[tuple, dict[str, list[int]]] = defaultdict(dict)
    for draft in found:
        alike[_capitals(draft)][draft.cut.truth] = draft.ids
    pools = []
    for draft in found:
        passage, words = draft.cut.passage.lower(), alike[_capitals(draft)]
        others = sorted(word for word in words if word != draft.cut.truth and word.lower() not in passage)
        pools.append({word: words[word] for word in rng.permutation(others)[:POOL].tolist()})
    return _balanced(found, pools, ngrams, rng)


def copy(documents: Sequence[str], tokenizer, context: int, ngrams: NgramModel, counts: Mapping[str, int],
         seed: int = 0) -> list[Item]:
    """One item a document in which a rare identifier of several tokens stands twice, as far apart as in `cloze`.

    The passage ends with its first tokens, up to the first that holds a letter. None of the false choices stands in the
    passage after these.

    Parameters
    ----------
    ngrams : NgramModel of the training text
    counts : how often each run of letters, digits and underscores stands in it, see `items.runs_of`
    """
    rng = np.random.default_rng(seed)
    found = drafts(documents, tokenizer, context, lambda text: _name_again(text, context, counts, rng), space="")
    alike: dict[tuple, dict[str, None]] = defaultdict(dict)
    for draft in found:
        alike[_signs(draft)][draft.cut.truth] = None
    known = {key: sorted(rests) for key, rests in alike.items()}
    pools = []
    for draft in found:
        cut, passage = draft.cut, draft.cut.passage.lower()
        some = rng.permutation(known[_signs(draft)])[: POOL + 1].tolist()
        others = [rest for rest in some if rest != cut.truth and f"{cut.head}{rest}".strip().lower() not in passage]
        pools.append(_after(draft, others, tokenizer))
    return _balanced(found, pools, ngrams, rng)


def _after(draft: Draft, others: Sequence[str], tokenizer) -> dict[str, list[int]]:
    """Token ids of those that stay apart from the head, and as many as the true ones."""
    [head], whole = (token_ids(tokenizer, texts) for texts in (
        [draft.cut.head], [draft.cut.head + rest for rest in others]))
    return {rest: ids[len(head) :] for rest, ids in zip(others, whole, strict=True)
            if ids[: len(head)] == head and len(ids) == len(head) + len(draft.ids)}


def _balanced(found: Sequence[Draft], pools: Sequence[Mapping[str, list[int]]], ngrams: NgramModel, rng) -> list[Item]:
    """Items of the drafts whose truth can be given any rank among the n-grams, the first such of each document.

    `pools`: of each draft, other choices and their token ids.
    """
    scores = iter(ngrams.score([(draft.context, ids) for draft, pool in zip(found, pools, strict=True)
                                for ids in (draft.ids, *pool.values())]))
    kept: dict[str, tuple] = {}
    for draft, pool in zip(found, pools, strict=True):
        own, others = next(scores), {word: next(scores) for word in pool}
        above = sorted((word for word in others if others[word] > own), key=others.get)
        below = sorted((word for word in others if others[word] <= own), key=others.get, reverse=True)
        if min(len(above), len(below)) >= CHOICES - 1:  # so the rank that it gets says nothing of the word
            kept.setdefault(draft.document, (draft, above, below))
    ranks = rng.permutation(np.arange(len(kept)) % CHOICES).tolist()
    return [draft.item([*above[:rank], *below[: CHOICES - 1 - rank]], rng)
            for (draft, above, below), rank in zip(kept.values(), ranks, strict=True)]


def _word_again(text: Text, context: int, counts: Mapping[str, int], rng) -> Iterator[Cut]:
    """A passage, the word after it, which stands in the passage, and the passage's last REACH tokens, without it."""
    times = Counter(LETTERS.findall(text.text))
    places = [match for match in WORD.finditer(text.text)
              if times[match.group()] > 1 and counts[match.group()] <= RARE]
    starts = {start: k for k, (start, _) in enumerate(text.spans)} if places else {}
    for k in rng.permutation(len(places)).tolist():
        word, first = places[k].group(), starts.get(places[k].start() - 1)
        if first is None or first < REACH:
            continue
        size = sum(start < places[k].end() for start, _ in text.spans[first : first + context])
        passage, end = text.passage(first, context - size), text.spans[first][0]
        earlier = [match.end() for match in LETTERS.finditer(text.text, end - len(passage), end)
                   if match.group() == word]
        if earlier and earlier[-1] <= text.spans[first - REACH][0]:
            since = sum(start >= earlier[-1] for start, _ in text.spans[max(0, first - context) : first])
            yield Cut(passage, word, text.passage(first, REACH), since)
            return


def _name_again(text: Text, context: int, counts: Mapping[str, int], rng) -> Iterator[Cut]:
    """Passages that end with the first tokens of an identifier, whose own tokens stand in them, `PLACES` at most."""
    names = _names(text, counts)
    places = [(name, k) for name, its in names.items() for k in range(1, len(its))]
    found = (_within(text, context, *places[k], names) for k in rng.permutation(len(places)).tolist())
    return islice(filter(None, found), PLACES)


def _names(text: Text, counts: Mapping[str, int]) -> dict[str, list[tuple[int, int]]]:
    """The rare identifiers of a text -> the tokens (first, one after the last) of each place; a space may be before it.
    """
    found = [match for match in NAME.finditer(text.text) if counts[match.group()] <= RARE]
    starts = {start: k for k, (start, _) in enumerate(text.spans)}
    ends = {end: k + 1 for k, (_, end) in enumerate(text.spans)}
    names = defaultdict(list)
    for match in found:
        start = match.start()
        first = starts.get(start - 1) if text.text[start - 1 : start] == " " else starts.get(start)
        last = ends.get(match.end())
        if first is not None and last is not None:
            names[match.group()].append((first, last))
    return names


def _within(text: Text, context: int, name: str, place: int, names: Mapping[str, list[tuple[int, int]]]) -> Cut | None:
    """A cut behind the first token with a letter, if the same tokens stand in the passage and not in its end."""
    first, last = names[name][place]
    cut = next((k + 1 for k in range(first, last) if LETTERS.search(text.text, *text.spans[k])), last)
    if not REACH <= cut < last:
        return None
    passage, near, end = text.passage(cut, context - (last - cut)), text.passage(cut, REACH), text.spans[cut][0]
    again = [stop for start, stop in names[name][:place] if text.spans[start][0] >= end - len(passage)
             and text.ids[start:stop] == text.ids[first:last]]
    head = text.text[text.spans[first][0] : end]
    if not again or again[-1] > cut - REACH or name in text.text[text.spans[cut - REACH][0] : end] \
            or not near.endswith(head):
        return None
    return Cut(passage, text.text[end : text.spans[last - 1][1]], near, cut - again[-1], head)


def _capitals(draft: Draft) -> tuple[int, str]:
    """Number of tokens, and how the word is capitalized."""
    word = draft.cut.truth
    cases = {"lower": word.islower(), "upper": word.isupper(), "title": word.istitle()}
    return len(draft.ids), next((name for name, holds in cases.items() if holds), "mixed")


def _signs(draft: Draft) -> tuple[int, str]:
    """Number of tokens, and the kinds of letters, digits and underscores in their order, each run of a kind once."""
    shape = draft.cut.truth
    for sign, kind in KINDS:
        shape = kind.sub(sign, shape)
    return len(draft.ids), shape
