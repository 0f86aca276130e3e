"""Passages cut from documents, each with what truly follows it, and the questions that are made of such drafts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from reptrace.texts.given import as_texts

CHOICES = 4
LONGEST = 8192  # characters of a document that are looked at: a source file may have a million


@dataclass(frozen=True)
class Item:
    """One question. Each choice follows the passage after a space, but in `copy` directly; `answer` is the index of the
    true one, `document` the SHA-256 (shortened) of the text that the passage was cut from. Where the true one stands in
    the passage, `near` is the end of that, without it, and `distance` the number of tokens since."""

    passage: str
    choices: list[str]
    answer: int
    document: str
    near: str | None = None
    distance: int | None = None


@dataclass(frozen=True)
class Text:
    """A document with its token ids and the characters (start, end) that each stands for."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]

    def passage(self, first: int, length: int) -> str:
        """At most `length` tokens before token `first`, from the beginning of a word or of the text on."""
        begin, end = self.spans[max(0, first - length)][0], self.spans[first][0]
        piece = self.text[begin:end]
        return piece if begin == 0 else re.sub(r"^\S*\s+", "", piece)


@dataclass(frozen=True)
class Cut:
    """A passage of a document and what truly follows it; `near` and `distance` as of an item.

    `head`: the beginning of the word that is asked for, if the passage ends with it.
    """

    passage: str
    truth: str
    near: str | None = None
    distance: int | None = None
    head: str = ""


@dataclass(frozen=True)
class Draft:
    """A cut with the token ids of its passage and of its truth."""

    cut: Cut
    context: list[int]
    ids: list[int]
    document: str

    def item(self, others: Sequence[str], rng) -> Item:
        """The question, with the true choice at a random place among the others."""
        answer, choices, cut = int(rng.integers(CHOICES)), list(map(str, others)), self.cut
        return Item(cut.passage, [*choices[:answer], cut.truth, *choices[answer:]], answer, self.document, cut.near,
                    cut.distance)


def drafts(documents: Sequence[str], tokenizer, context: int, draw: Callable[[Text], Iterable[Cut]],
           count: int | None = None, space: str = " ") -> list[Draft]:
    """What `draw` cuts from each document, where it fits into a context, `count` at most.

    `space` stands between a passage and its truth. What would change the passage's own tokens is left out.
    """
    documents = as_texts(documents, "documents")
    found: list[Draft] = []
    for start in tqdm(range(0, len(documents), 512), desc="making items", unit="batch", leave=False):
        batch = documents[start : start + 512]
        heads = [document[:LONGEST] for document in batch]
        encoded = tokenizer(heads, add_special_tokens=False, return_offsets_mapping=True)
        texts = map(Text, heads, encoded["input_ids"], encoded["offset_mapping"])
        cuts = [(document, cut) for document, text in zip(batch, texts, strict=True) for cut in draw(text)]
        before, whole = (token_ids(tokenizer, texts) for texts in (
            [cut.passage for _, cut in cuts], [f"{cut.passage}{space}{cut.truth}" for _, cut in cuts]))
        found += [Draft(cut, known, ids[len(known) :], hashed(document))
                  for (document, cut), known, ids in zip(cuts, before, whole, strict=True)
                  if known and ids[: len(known)] == known and len(ids) <= context]
        if count is not None and len(found) >= count:
            break
    return found[:count]


def token_ids(tokenizer, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def hashed(text: str) -> str:
    """SHA-256, shortened to 16 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
