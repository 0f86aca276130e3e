"""Token ids: which tokenizer they come from, whether they can be its own, and contexts laid out for a search."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from reptrace.support import arguments
from reptrace.support.fingerprints import files_fingerprint

# How a tokenizer in Python was made, by name, as far as that changes no token's id: paths, lengths, sides, and what is
# put around a text.
LAYOUT = re.compile(r"(^name_or_path|_file|^model_max_length|_side|^chat_template|_token|^clean_up_.*|_tokens"
                    r"|^tokenizer_class|^processor_class|^backend|^is_local|^files_loaded|^local_files_only)$")


TEXTS = " Texts are tokenized first: measure(model, texts), or probe(corpus, tokenizer, M).sequences."


class OtherTokenizerError(ValueError):
    """Token ids of another tokenizer than the one at hand; the message says how that shows."""


def tokenizer_fingerprint(tokenizer) -> str:
    """16 hex digits of a SHA-256 over what decides which ids a text gets: vocabulary, merges, and what precedes them.

    Truncation, padding, and special tokens put around a text do not count. A string is taken for a fingerprint already.
    """
    if isinstance(tokenizer, str):
        return tokenizer
    return _fingerprint(tokenizer, _backend(tokenizer))


def _backend(tokenizer) -> dict | None:
    """All that a fast tokenizer is made of, which takes a second to write where the vocabulary is large; else None."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else json.loads(backend.to_str())


def _fingerprint(tokenizer, backend: dict | None) -> str:
    if backend is None:
        deciding = _of_a_slow_one(tokenizer)
    else:
        deciding = {key: backend[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    if getattr(tokenizer, "split_special_tokens", False):  # those written in a text are read as any other words
        deciding["special"] = "split"
    return hashlib.sha256(json.dumps(deciding, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _of_a_slow_one(tokenizer) -> dict:
    """What decides in a tokenizer in Python, as far as it is known: its vocabulary, the files that it writes (merges,
    a SentencePiece model), its added tokens, and how it was made."""
    with TemporaryDirectory() as folder:
        try:
            written = sorted(path for path in tokenizer.save_vocabulary(folder) if path)
            files = files_fingerprint((Path(path).name, Path(path)) for path in written)
        except (NotImplementedError, AttributeError):  # one of characters or bytes has none
            files = ""
    made = {name: value for name, value in getattr(tokenizer, "init_kwargs", {}).items()
            if not LAYOUT.search(name) and isinstance(value, (str, int, float, bool, dict, list))}
    return {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab(), "files": files, "made": made,
            "added": sorted((number, repr(token)) for number, token in
                            getattr(tokenizer, "added_tokens_decoder", {}).items())}


def reading_fingerprint(tokenizer) -> str:
    """16 hex digits of what decides how a task's prompts are read: `tokenizer_fingerprint`, and the special tokens,
    chat template and tokens put around a text that it does not count."""
    backend = _backend(tokenizer)
    around = backend.get("post_processor") if backend else None
    facts = [_fingerprint(tokenizer, backend), around, getattr(tokenizer, "chat_template", None),
             sorted((name, str(token)) for name, token in getattr(tokenizer, "special_tokens_map", {}).items()),
             [getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id",
                                                           "add_bos_token", "add_eos_token")]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def checked_sequences(given, vocabulary: int, reach: int | None, least: int = 1) -> list[np.ndarray]:
    """Token sequences as arrays, once they are known to be some that a model can read.

    Parameters
    ----------
    given : iterable of sequences of token ids, without padding
    vocabulary : int, the model's
    reach : int or None, tokens that a sequence may have; None: any number
    least : int, default 1, tokens that a sequence must have

    Raises
    ------
    TypeError
        Something else than sequences of whole numbers: texts, a mapping, a `Probe`, a tokenizer's output.
    ValueError
        No sequences; one that is too short or too long; OtherTokenizerError where an id is outside of the vocabulary.
    """
    if isinstance(given, (str, bytes, bytearray, Mapping, set, frozenset)) or not isinstance(given, Iterable):
        raise TypeError(f"sequences must be a list of lists of token ids, got {arguments.shown(given)}.{_hint(given)}")
    given = list(given)
    if not given:
        raise ValueError("there are no sequences to measure.")
    found = []
    for row, sequence in enumerate(given):
        try:
            array = np.asarray(sequence)
        except ValueError as error:  # numpy's of lists of unlike lengths
            raise TypeError(f"sequence {row} is not a list of token ids but {sequence!r:.60}.") from error
        found.append(array)
        if array.ndim == 0:
            raise TypeError(f"sequence {row} is not a list of token ids but {sequence!r:.60}.{TEXTS}")
        if len(array) == 0:
            raise ValueError(f"sequence {row} is empty: it has no last token.")
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(f"sequence {row} is not a list of token ids, which are whole numbers along one axis, but "
                            f"{array.ndim} axes of {array.dtype}.")
        if len(array) < least:
            raise ValueError(f"sequence {row} has {len(array)} tokens, {least} are needed: the first is given, not "
                             "predicted.")
        if reach and len(array) > reach:
            raise ValueError(f"sequence {row} has {len(array)} tokens, the model's context is {reach}: "
                             f"cut at max_length={reach} or less.")
        wrong = array.max() if array.max() >= vocabulary else array.min()
        if not 0 <= wrong < vocabulary:
            raise OtherTokenizerError(f"sequence {row} holds token id {wrong}, the model's vocabulary has "
                                      f"{vocabulary}: is it another model's tokenizer?")
    return found


def _hint(given) -> str:
    if hasattr(given, "sequences"):
        return " Pass probe.sequences."
    if isinstance(given, Mapping) and "input_ids" in given:
        return ' Pass its "input_ids", made without padding.'
    return TEXTS if isinstance(given, str) else ""


def checked_ids(tokens, vocabulary: int) -> np.ndarray:
    """Token ids as an array of one axis; OtherTokenizerError if one is outside of the vocabulary."""
    tokens = np.asarray(tokens) if len(tokens) else np.zeros(0, np.int64)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu":
        raise TypeError(f"token ids are whole numbers along one axis, got {tokens.ndim} axes of {tokens.dtype}.")
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary:
        outside = tokens.min() if tokens.min() < 0 else tokens.max()
        raise OtherTokenizerError(f"token id {outside} is outside of the vocabulary of {vocabulary}: these ids come "
                                  "from another tokenizer.")
    return tokens


def aligned(contexts, vocabulary: int, separator: int, block: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Contexts flush right in one matrix, and how many of their last tokens count: those after the last separator.

    Parameters
    ----------
    contexts : integer array (queries, tokens), or sequence of token-id sequences, at least one
    vocabulary, separator : int
    block : int, default 1
        The matrix is filled with 0 on the left to a multiple of this width.

    Returns
    -------
    ids : (queries, width) uint16, or uint32 if `vocabulary` is above 65,536
    lengths : (queries,) int64
    """
    if isinstance(contexts, np.ndarray) and contexts.ndim == 2:
        lengths, flat = np.full(len(contexts), contexts.shape[1]), contexts.reshape(-1)
    else:
        lengths = np.fromiter(map(len, contexts), np.int64, len(contexts))
        flat = np.fromiter(chain.from_iterable(contexts), np.int64, lengths.sum())
    width = -(-lengths.max() // block) * block
    ids = np.zeros((len(lengths), width), id_type(vocabulary))
    ids[np.arange(width) >= width - lengths[:, None]] = checked_ids(flat, vocabulary)
    if width:
        ended = ids[:, ::-1] == separator
        lengths = np.where(ended.any(1), np.minimum(lengths, ended.argmax(1)), lengths)
    return ids, lengths


def id_type(vocabulary: int) -> type:
    """The narrowest type that holds every id."""
    return np.uint16 if vocabulary <= 2**16 else np.uint32
