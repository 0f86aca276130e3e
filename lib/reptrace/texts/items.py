"""Multiple-choice items made from held-out documents, for models that know no science: one task asks for what the last
few tokens tell, the other for what stands far back.

`continuation`: which words follow this passage? The true ones, or those that follow a passage of another document.

`cloze`: which word ends this passage? The true one stands earlier in it, beyond an n-gram's reach; the three others end
passages of other documents and stand nowhere in this one. All four are alike in shape, in number of tokens and in what
the n-gram model of the training text gives them: it ranks the true word first, second, third and last equally often.

`cloze_near`: the same question with the passage's last few tokens alone, where the true word does not stand. A model
may know more of those than the n-grams do; only what it gains in `cloze`, item by item, comes from far back.

Chance is 1/4 in all. Every choice of an item has the same number of tokens, so their log-likelihoods compare as sums.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reptrace.records.store import write_atomically
from reptrace.support.fingerprints import fingerprint
from reptrace.texts.corpora import Corpus
from reptrace.texts.given import as_texts
from reptrace.texts.ngrams import NgramModel

CHOICES = 4
CONTINUATION = (3, 2)  # tokens, the longer first
REACH = 16  # tokens at least from where a cloze word stands earlier to the end of its passage
RARE = 200  # times at most that a cloze word stands in the training text
POOL = 100  # words that the three others are picked from
QUESTIONS = "questions"
METHOD = 1  # raised by hand when this module makes other items from the same text
LETTERS = re.compile(r"[^\W\d_]+")
WORD = re.compile(r"(?<=\S )[A-Za-z]{3,}(?!\w)")  # a space before it, one that a byte-level token begins with
WORDS = re.compile(r" [A-Za-z]+(?: [A-Za-z]+)*")


@dataclass(frozen=True)
class Item:
    """One question. Each choice follows the passage after a space; `answer` is the index of the true one, `document`
    the SHA-256 (shortened) of the text that the passage was cut from. Of a cloze, `near` is the end of the passage, and
    `distance` the number of tokens since the true word."""

    passage: str
    choices: list[str]
    answer: int
    document: str
    near: str | None = None
    distance: int | None = None


@dataclass(frozen=True)
class _Draft:
    """A passage and what truly follows it, with the token ids of both."""

    passage: str
    context: list[int]
    truth: str
    ids: list[int]
    document: str
    near: str | None


@dataclass(frozen=True)
class _Text:
    """A document with its token ids and the characters (start, end) that each stands for."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]

    def passage(self, first: int, length: int) -> str:
        """At most `length` tokens before token `first`, from the beginning of a word or of the text on."""
        begin, end = self.spans[max(0, first - length)][0], self.spans[first][0]
        piece = self.text[begin:end]
        return piece if begin == 0 else re.sub(r"^\S*\s+", "", piece)


def make(training: Corpus, held_out: Corpus, tokenizer, tokens, context: int, folder: str | Path, count: int = 2000,
         seed: int = 0) -> dict[str, Path]:
    """Files of the tasks, one item a line (JSON), made once for the same text, tokenizer and numbers.

    Parameters
    ----------
    training, held_out : Corpus
        See `Corpus.split`. Items come from the second part; the first says which words are rare.
    tokenizer : transformers tokenizer, byte-level
    tokens : array of int, shape (T,), or the path of a file of uint16
        The training text's token ids (`pretrain.Suite.tokens`).
    context : int
        Tokens that a passage and a choice take together at most; up to 2 * REACH of them leave no room for a cloze.
    folder : str or Path
        The files lie in a folder of it that is named by a fingerprint of all they depend on.
    count : int, default 2000
        Items of a task at most, each from another document.
    seed : int, default 0

    Returns
    -------
    dict of task -> Path; that of `cloze` serves `cloze_near` too, and is missing where the text yields no such item.
    `questions` is like `continuation`, of all documents and at other places, for statistics that need many.

    Raises
    ------
    ValueError
        The held-out text yields no item for `continuation`.
    """
    ids = np.fromfile(tokens, dtype=np.uint16) if isinstance(tokens, (str, Path)) else np.asarray(tokens)
    facts = [METHOD, training.fingerprint, held_out.fingerprint, _hash(tokenizer.backend_tokenizer.to_str()),
             fingerprint([ids.astype("<i8").tobytes()]), context, count, seed]
    home = Path(folder) / _hash(json.dumps(facts))
    files = {name: home / f"{name}.jsonl" for name in ("continuation", "cloze", QUESTIONS)}
    if not all(path.exists() for path in files.values()):
        documents = sorted(dict.fromkeys(held_out.documents), key=lambda document: _hash(f"items {seed} {document}"))
        ngrams, counts = NgramModel(ids, len(tokenizer)), words_of(training)
        made = {"continuation": continuation(documents, tokenizer, context, seed, count),
                "cloze": cloze(documents, tokenizer, context, ngrams, counts, seed) if context > 2 * REACH else [],
                QUESTIONS: continuation(documents, tokenizer, context, seed + 1, None)}
        for name, found in made.items():
            write_atomically(files[name], "".join(f"{json.dumps(asdict(item), sort_keys=True)}\n"
                                                  for item in found[: None if name == QUESTIONS else count]).encode())
    there = {name: path for name, path in files.items() if path.stat().st_size}
    if "continuation" not in there:
        raise ValueError(f"the held-out text {held_out.name!r} yields no item for the task 'continuation', whole words "
                         f"after {context // 2} tokens of passage: bring more text, or longer documents.")
    return there | ({"cloze_near": there["cloze"]} if "cloze" in there else {})


def words_of(corpus: Corpus) -> Counter[str]:
    """How often each run of letters stands in a text."""
    counts: Counter[str] = Counter()
    for document in corpus.documents:
        counts.update(LETTERS.findall(document))
    return counts


def continuation(documents: Sequence[str], tokenizer, context: int, seed: int = 0, count: int | None = None
                 ) -> list[Item]:
    """One item a document, up to `count`: half a context of passage, then whole words of two or three tokens together.
    """
    rng = np.random.default_rng(seed)
    drafts = _drafts(documents, tokenizer, context, lambda text: _continuation(text, context // 2, rng), count)
    alike, items = defaultdict(dict), []
    for draft in drafts:
        alike[len(draft.ids)][draft.truth] = None  # a dict, for its order
    words = {size: list(found) for size, found in alike.items()}
    for draft in drafts:
        drawn = rng.permutation(words[len(draft.ids)])[:CHOICES].tolist()
        others = [word for word in drawn if word != draft.truth][: CHOICES - 1]
        if len(others) == CHOICES - 1:
            items.append(_item(draft, others, rng))
    return items


def cloze(documents: Sequence[str], tokenizer, context: int, ngrams: NgramModel, counts: Counter[str],
          seed: int = 0) -> list[Item]:
    """One item a document in which a rare word stands twice, far enough apart and near enough for one context.

    Parameters
    ----------
    ngrams : NgramModel of the training text
    counts : how often each word stands in it, see `words_of`
    """
    rng = np.random.default_rng(seed)
    drafts = _drafts(documents, tokenizer, context, lambda text: _repeat(text, context, counts, rng))
    alike, pools = defaultdict(dict), []
    for draft in drafts:
        alike[_shape(draft)][draft.truth] = draft.ids
    for draft in drafts:
        passage, words = draft.passage.lower(), alike[_shape(draft)]
        others = sorted(word for word in words if word != draft.truth and word.lower() not in passage)
        pools.append({word: words[word] for word in rng.permutation(others)[:POOL].tolist()})
    scores = iter(ngrams.score([(draft.context, ids) for draft, pool in zip(drafts, pools, strict=True)
                                for ids in (draft.ids, *pool.values())]))
    kept = []
    for draft, pool in zip(drafts, pools, strict=True):
        own, others = next(scores), {word: next(scores) for word in pool}
        above = sorted((word for word in others if others[word] > own), key=others.get)
        below = sorted((word for word in others if others[word] <= own), key=others.get, reverse=True)
        if min(len(above), len(below)) >= CHOICES - 1:  # any rank can be dealt, so the rank says nothing of the word
            kept.append((draft, above, below))
    ranks = rng.permutation(np.arange(len(kept)) % CHOICES).tolist()
    return [_item(draft, [*above[:rank], *below[: CHOICES - 1 - rank]], rng,
                  distance(draft.passage, draft.truth, tokenizer))
            for (draft, above, below), rank in zip(kept, ranks, strict=True)]


def distance(passage: str, word: str, tokenizer) -> int | None:
    """Tokens from the end of the word, where it stands last in the passage, to the end of that; None: nowhere."""
    found = [match.end() for match in LETTERS.finditer(passage) if match.group() == word]
    if not found:
        return None
    spans = tokenizer(passage, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return sum(start >= found[-1] for start, _ in spans)


def _drafts(documents: Sequence[str], tokenizer, context: int, draw: Callable[[_Text], tuple | None],
            count: int | None = None) -> list[_Draft]:
    """What `draw` finds in each document (passage, true words, end of the passage), where it fits into a context."""
    documents = as_texts(documents, "documents")
    drafts: list[_Draft] = []
    for start in tqdm(range(0, len(documents), 512), desc="making items", unit="batch", leave=False):
        batch = documents[start : start + 512]
        encoded = tokenizer(batch, add_special_tokens=False, return_offsets_mapping=True)
        texts = map(_Text, batch, encoded["input_ids"], encoded["offset_mapping"])
        drawn = [(text.text, *found) for text in texts if (found := draw(text))]
        known, ids = (tokenizer(strings, add_special_tokens=False)["input_ids"] if strings else [] for strings in (
            [passage for _, passage, *_ in drawn], [f" {truth}" for _, _, truth, _ in drawn]))
        drafts += [_Draft(passage, before, truth, after, _hash(text), near)
                   for (text, passage, truth, near), before, after in zip(drawn, known, ids, strict=True)
                   if before and len(before) + len(after) <= context]
        if count is not None and len(drafts) >= count:
            break
    return drafts[:count]


def _continuation(text: _Text, length: int, rng) -> tuple[str, str, None] | None:
    """A passage that ends with a letter or digit, and the whole words after it, at a random place of the document."""
    places = range(length, len(text.ids) - max(CONTINUATION))
    for first in rng.permutation(places).tolist() if places else []:
        start = text.spans[first][0]
        if not text.text[start - 1].isalnum():
            continue
        for tokens in CONTINUATION:
            end = text.spans[first + tokens - 1][1]
            if WORDS.fullmatch(text.text, start, end) and text.text[end] == " ":
                return text.passage(first, length), text.text[start + 1 : end], None
    return None


def _repeat(text: _Text, context: int, counts: Counter[str], rng) -> tuple[str, str, str] | None:
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
            return passage, word, text.passage(first, REACH)
    return None


def _shape(draft: _Draft) -> tuple[int, str]:
    """Number of tokens, and how the word is capitalized."""
    word = draft.truth
    cases = {"lower": word.islower(), "upper": word.isupper(), "title": word.istitle()}
    return len(draft.ids), next((name for name, holds in cases.items() if holds), "mixed")


def _item(draft: _Draft, others: Sequence[str], rng, distance: int | None = None) -> Item:
    answer = int(rng.integers(CHOICES))
    choices = list(map(str, others))
    return Item(draft.passage, [*choices[:answer], draft.truth, *choices[answer:]], answer, draft.document, draft.near,
                distance)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
