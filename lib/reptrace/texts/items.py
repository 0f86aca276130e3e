"""Multiple-choice items made from held-out documents, for models that know no science: one task asks for what the last
few tokens tell, the others for what stands far back.

`continuation`: which words follow this passage? The true ones, or those that follow a passage of another document.

`cloze`: which word ends this passage? `copy`: how does the identifier go on that this passage ends with? The true word,
or the true rest, stands earlier in the passage, beyond an n-gram's reach; see `repeats`.

`cloze_near`, `copy_near`: the same questions with the passage's last few tokens alone, where the truth does not stand.
A model may know more of those than the n-grams do; only what it gains with the whole passage, item by item, comes from
far back.

Chance is 1/4 in all. Every choice of an item has the same number of tokens, so their log-likelihoods compare as sums.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from reptrace.records.store import write_atomically
from reptrace.support.fingerprints import fingerprint
from reptrace.texts.corpora import Corpus
from reptrace.texts.drafts import CHOICES, Cut, Item, Text, drafts, hashed
from reptrace.texts.ngrams import NgramModel
from reptrace.texts.repeats import LETTERS, REACH, cloze, copy

CONTINUATION = (3, 2)  # tokens, the longer first
QUESTIONS = "questions"
# Task -> the same questions without what stands far back. The easier one first: it is the one that suites are asked.
NEAR = {"copy": "copy_near", "cloze": "cloze_near"}
METHOD = 2  # raised by hand when this module makes other items from the same text
RUN = re.compile(r"\w+")  # of letters, digits and underscores
WORDS = re.compile(r" [A-Za-z]+(?: [A-Za-z]+)*")


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
        Tokens that a passage and a choice take together at most; up to 2 * REACH leave no room for what is far back.
    folder : str or Path
        The files lie in a folder of it that is named by a fingerprint of all they depend on.
    count : int, default 2000
        Items of a task at most, each from another document.
    seed : int, default 0

    Returns
    -------
    dict of task -> Path; those of `cloze` and `copy` serve their tasks in `NEAR`, too, and are missing where the text
    yields no such item.
    `questions` is like `continuation`, of all documents and at other places, for statistics that need many.

    Raises
    ------
    ValueError
        The held-out text yields no item for `continuation`.
    """
    ids = np.fromfile(tokens, dtype=np.uint16) if isinstance(tokens, (str, Path)) else np.asarray(tokens)
    facts = [METHOD, training.fingerprint, held_out.fingerprint, hashed(tokenizer.backend_tokenizer.to_str()),
             fingerprint([ids.astype("<i8").tobytes()]), context, count, seed]
    home = Path(folder) / hashed(json.dumps(facts))
    files = {name: home / f"{name}.jsonl" for name in ("continuation", *NEAR, QUESTIONS)}
    if not all(path.exists() for path in files.values()):
        documents = sorted(dict.fromkeys(held_out.documents), key=lambda document: hashed(f"items {seed} {document}"))
        made = {"continuation": continuation(documents, tokenizer, context, seed, count),
                **(_far_back(training, documents, tokenizer, ids, context, seed) if context > 2 * REACH else {}),
                QUESTIONS: continuation(documents, tokenizer, context, seed + 1, None)}
        for name, path in files.items():
            kept = made.get(name, [])[: None if name == QUESTIONS else count]
            write_atomically(path, "".join(f"{json.dumps(asdict(item), sort_keys=True)}\n" for item in kept).encode())
    there = {name: path for name, path in files.items() if path.stat().st_size}
    if "continuation" not in there:
        raise ValueError(f"the held-out text {held_out.name!r} yields no item for the task 'continuation', whole words "
                         f"after {context // 2} tokens of passage: bring more text, or longer documents.")
    return there | {near: there[far] for far, near in NEAR.items() if far in there}


def _far_back(training: Corpus, documents: Sequence[str], tokenizer, ids: np.ndarray, context: int, seed: int
              ) -> dict[str, list[Item]]:
    """The tasks that `NEAR` names."""
    ngrams, runs = NgramModel(ids, len(tokenizer)), runs_of(training)
    return {"cloze": cloze(documents, tokenizer, context, ngrams, words_of(runs), seed),
            "copy": copy(documents, tokenizer, context, ngrams, runs, seed)}


def runs_of(corpus: Corpus) -> Counter[str]:
    """How often each run of letters, digits and underscores stands in a text."""
    counts: Counter[str] = Counter()
    for document in corpus.documents:
        counts.update(RUN.findall(document))
    return counts


def words_of(runs: Mapping[str, int]) -> Counter[str]:
    """How often each run of letters stands in a text, from `runs_of` it."""
    counts: Counter[str] = Counter()
    for run, times in runs.items():
        for word in LETTERS.findall(run):
            counts[word] += times
    return counts


def continuation(documents: Sequence[str], tokenizer, context: int, seed: int = 0, count: int | None = None
                 ) -> list[Item]:
    """One item a document, up to `count`: half a context of passage, then whole words of two or three tokens together.
    """
    rng = np.random.default_rng(seed)
    found = drafts(documents, tokenizer, context, lambda text: _continuation(text, context // 2, rng), count)
    alike, items = defaultdict(dict), []
    for draft in found:
        alike[len(draft.ids)][draft.cut.truth] = None  # a dict, for its order
    words = {size: list(its) for size, its in alike.items()}
    for draft in found:
        drawn = rng.permutation(words[len(draft.ids)])[:CHOICES].tolist()
        others = [word for word in drawn if word != draft.cut.truth][: CHOICES - 1]
        if len(others) == CHOICES - 1:
            items.append(draft.item(others, rng))
    return items


def _continuation(text: Text, length: int, rng) -> Iterator[Cut]:
    """A passage that ends with a letter or digit, and the whole words after it, at a random place of the document."""
    places = range(length, len(text.ids) - max(CONTINUATION))
    for first in rng.permutation(places).tolist() if places else []:
        start = text.spans[first][0]
        if not text.text[start - 1].isalnum():
            continue
        for tokens in CONTINUATION:
            end = text.spans[first + tokens - 1][1]
            if WORDS.fullmatch(text.text, start, end) and text.text[end] == " ":
                yield Cut(text.passage(first, length), text.text[start + 1 : end])
                return
