"""Token ids: which tokenizer they come from, whether they can be its own, and contexts laid out for a search."""

from __future__ import annotations

import hashlib
import json
from itertools import chain

import numpy as np


class OtherTokenizerError(ValueError):
    """Token ids of another tokenizer than the one at hand; the message says how that shows."""


def tokenizer_fingerprint(tokenizer) -> str:
    """16 hex digits of a SHA-256 over what decides which ids a text gets: vocabulary, merges, and what precedes them.

    Truncation, padding, and special tokens put around a text do not count. A string is taken for a fingerprint already.
    """
    if isinstance(tokenizer, str):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        deciding = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    else:
        whole = json.loads(backend.to_str())
        deciding = {key: whole[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def reading_fingerprint(tokenizer) -> str:
    """16 hex digits of what decides how a task's prompts are read: `tokenizer_fingerprint`, and the special tokens,
    chat template and tokens put around a text that it does not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    around = json.loads(backend.to_str()).get("post_processor") if backend else None
    facts = [tokenizer_fingerprint(tokenizer), around, getattr(tokenizer, "chat_template", None),
             sorted((name, str(token)) for name, token in getattr(tokenizer, "special_tokens_map", {}).items()),
             [getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id",
                                                           "add_bos_token", "add_eos_token")]]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


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
