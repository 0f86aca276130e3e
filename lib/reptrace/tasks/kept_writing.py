"""Text that a model writes in hours, kept in parts of minutes: whatever ends the process, the next call goes on.

Each part is a record: some prompts, some samples of each. Several processes may share a store; each takes a part that
nobody else has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd
from tqdm import tqdm

from reptrace.models.generation import write
from reptrace.records.store import Store
from reptrace.support import arguments
from reptrace.support.fingerprints import fingerprint, order_key
from reptrace.texts.given import as_texts

METHOD = 1  # raised by hand when the same inputs give other texts, or what is kept of them is another


@dataclass(frozen=True)
class Writing:
    """How text is written; all of it but `batch_size` decides what is written.

    Parameters
    ----------
    tokens : int, at most, of a text
    samples : int, default 1, of each prompt
    temperature, top_p : float, see `generation.write`; default 0, the likeliest token each time
    seed : int, default 0
    together : int, default 64
        Texts in a part. A part that is cut off is written anew.
    batch_size : int, default 64, sequences
    """

    tokens: int
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    together: int = 64
    batch_size: int = 64

    def __post_init__(self):
        for name, least in (("tokens", 1), ("samples", 1), ("seed", 0), ("together", 1), ("batch_size", 1)):
            arguments.whole(getattr(self, name), name, least)

    @property
    def identity(self) -> dict:
        return {name: value for name, value in asdict(self).items() if name != "batch_size"}

    def parts(self, prompts: Sequence[str]) -> Iterator[tuple[range, range]]:
        """Numbers of the prompts, and of their samples, of each part."""
        wide = max(1, self.together // self.samples)
        for start in range(0, len(prompts), wide):
            for first in range(0, self.samples, self.together):
                yield (range(start, min(start + wide, len(prompts))),
                       range(first, min(first + self.together, self.samples)))


def written(model: Callable, tokenizer, prompts: Sequence[str], writing: Writing, store: Store, who: Mapping,
            kept: Callable[[str], str | None] | None = None, progress: bool = False) -> pd.DataFrame:
    """What a model writes after each prompt; what the store has of it is not written again.

    Parameters
    ----------
    model : callable without arguments that gives the transformers causal LM, called only if something is missing
    tokenizer : its own
    prompts : texts, different ones or not
    who : what identifies the model's weights, for the records
    kept : what is to be kept of a text, by its name too; default the text

    Returns
    -------
    pandas.DataFrame, a row a sample: prompt (number), sample, text (what is kept of it), tokens (count), ended
    """
    prompts = as_texts(prompts, "prompts")
    parts = dict(enumerate(writing.parts(prompts)))
    identities = [_identity(prompts, part, writing, who, kept) for part in parts.values()]
    with tqdm(total=len(parts), desc="writing", unit="part", disable=not progress) as bar:
        while parts:
            for number in list(parts):
                if not store.done(identities[number]):
                    claim = store.claim(identities[number])
                    if claim is None:  # another process writes it
                        continue
                    try:
                        if not store.done(identities[number]):
                            rows = _rows(model(), tokenizer, prompts, parts[number], writing, kept)
                            store.write(identities[number], rows)
                    finally:
                        claim.release()
                del parts[number]
                bar.update()
            if parts:
                time.sleep(1)
    table = store.table(identities).sort_values(["prompt", "sample"], ignore_index=True)
    return table[["prompt", "sample", "text", "tokens", "ended"]]


def _identity(prompts: Sequence[str], part: tuple[range, range], writing: Writing, who: Mapping,
              kept: Callable | None) -> dict:
    rows, samples = part
    # where the rows stand decides nothing but their numbers in the table
    return {**who, **writing.identity, "writing_method": METHOD, "kept": kept.__name__ if kept else "text",
            "prompts": fingerprint(prompts[row].encode("utf-8", "surrogatepass") for row in rows),
            "first_prompt": rows[0], "first_sample": samples[0], "part_samples": len(samples)}


def _rows(model, tokenizer, prompts: Sequence[str], part: tuple[range, range], writing: Writing,
          kept: Callable | None) -> list[dict]:
    rows, samples = part
    asked = [prompts[row] for row in rows]
    # Every part draws numbers of its own: with one seed, the samples of all problems would share theirs.
    drawn = int.from_bytes(order_key(f"writing {writing.seed} {samples[0]}", "\0".join(asked))[:6])
    done = write(model, tokenizer, asked, writing.tokens, len(samples), writing.temperature, writing.top_p,
                 seed=drawn, batch_size=writing.batch_size)
    found = []
    for place, row in enumerate(rows):
        for sample, ids, ended in zip(samples, done.tokens[place], done.ended[place].tolist(), strict=True):
            text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            found.append({"prompt": row, "sample": sample, "text": kept(text) if kept else text, "tokens": len(ids),
                          "ended": ended})
    return found
