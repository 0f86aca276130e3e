"""Speed of the infinity-gram model against the authors' engine, on 10 million tokens of the default training text.

    python studies/bench_infgram.py [--tokens FILE]

FILE holds uint16 token ids, 0 after each document; default: the default suite's, tokenized first where that was not
done (minutes). The same contexts are asked in the same run, and the answers must be equal. `make bench` calls `rows`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from reptrace.memorization.infgram import build_infgram, open_infgram

ROOT = Path(__file__).parents[1]
TOKENS, CONTEXT, SEPARATOR, VOCABULARY = 10_000_000, 30, 0, 2048
QUERIES, ENGINE_QUERIES = 100_000, 2_000  # the engine is asked a part of them
REPEATS = 3
FACTS = {"separator": SEPARATOR, "vocabulary": VOCABULARY, "corpus": "bench", "tokenizer": "bench"}


def rows(tokens: Path) -> list[dict]:
    """Rows for the table of `make bench`: index, then queries from held-out text and from the indexed text itself."""
    ids = np.fromfile(tokens, np.uint16)
    indexed, held_out = _indexed(ids), ids[TOKENS:]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--tokens", tokens, "--build", Path(folder) / "ours"]
        seconds, peak = map(float, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
        ours = open_infgram(Path(folder) / "ours", tokenizer="bench")
        engine, engine_seconds = _engine(indexed, Path(folder) / "theirs")
        load = os.getloadavg()[0]
        index = {"what": f"infinity-gram index of {len(indexed):,} tokens", "against": "30 s allowed",
                 "seconds": round(seconds, 3), "against_seconds": 30.0, "ratio": round(30 / seconds, 2), "required": 1,
                 "repeats": 1, "note": f"peak memory {peak:.0f} MB of 1000 allowed; the infini-gram package: "
                                       f"{engine_seconds:.1f} s; load {load:.1f}"}
        return [index, *(_queries(ours, engine, text, name) for text, name in
                         ((held_out, "held-out text"), (indexed, "the indexed text")))]


def _queries(ours, engine, text: np.ndarray, name: str) -> dict:
    rng = np.random.default_rng(0)
    windows = text[rng.integers(0, len(text) - CONTEXT, QUERIES)[:, None] + np.arange(CONTEXT + 1)]
    contexts, tokens = windows[:, :-1], windows[:, -1]
    asked = [(context.tolist(), int(token)) for context, token in zip(contexts, tokens, strict=True)]
    # The engine has another word for an end than the text: a context ends with one, and it is not asked for one.
    asked = [pair for pair in asked if pair[1] != SEPARATOR][:ENGINE_QUERIES]
    taken, theirs = [], []
    for _ in range(REPEATS):
        started = time.perf_counter()
        ours.next_token(contexts, tokens)
        taken.append(time.perf_counter() - started)
        started = time.perf_counter()
        answers = [engine.infgram_prob(prompt_ids=context, cont_id=token) for context, token in asked]
        theirs.append((time.perf_counter() - started) * QUERIES / len(asked))
    found = ours.next_token([context for context, _ in asked], [token for _, token in asked])
    equal = all((length, count, token_count) == (answer["suffix_len"], answer["prompt_cnt"], answer["cont_cnt"])
                for length, count, token_count, answer
                in zip(found.length, found.count, found.token_count, answers, strict=True))
    seconds, against = statistics.median(taken), statistics.median(theirs)
    return {"what": f"{QUERIES:,} next-token probabilities, contexts of {CONTEXT} from {name}",
            "against": "infini-gram engine", "seconds": round(seconds, 3), "against_seconds": round(against, 3),
            "ratio": round(against / seconds, 1), "required": 10, "repeats": REPEATS,
            "note": f"{QUERIES / seconds:,.0f} queries a second (50,000 required), the engine "
                    f"{QUERIES / against:,.0f}; {len(asked)} answers {'all equal' if equal else 'DIFFER'}; mean suffix "
                    f"{found.length.mean():.1f} tokens; load {os.getloadavg()[0]:.1f}"}


def _engine(ids: np.ndarray, folder: Path):
    """The `infini-gram` package's engine over the same documents, and the seconds that its index took."""
    from infini_gram.engine import InfiniGramEngine

    folder.mkdir()
    ends = np.flatnonzero(ids == SEPARATOR)
    # It keeps a separator before each document, ours stands after: shifted by one, the rest is the same.
    stream = np.concatenate([[np.uint16(0xFFFF)], np.where(ids == SEPARATOR, np.uint16(0xFFFF), ids)[: ends[-1]]])
    stream.astype(np.uint16).tofile(folder / "tokenized.0")
    (2 * np.concatenate([[0], ends[:-1] + 1])).astype(np.uint64).tofile(folder / "offset.0")
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "infini_gram.indexing", "--data_dir", folder, "--save_dir", folder, "--cpus",
                    "1", "--mem", "4", "--ulimit", "4096"], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    return InfiniGramEngine(index_dir=str(folder), eos_token_id=SEPARATOR, vocab_size=65535), seconds


def _build(tokens: Path, folder: Path) -> None:
    """In a process of its own: seconds and peak memory (MB) on standard output."""
    started = time.perf_counter()
    build_infgram(_indexed(np.fromfile(tokens, np.uint16)), folder, **FACTS, progress=False)
    seconds = time.perf_counter() - started
    with open("/proc/self/status") as file:  # unlike ru_maxrss it does not start at the parent's
        print(seconds, next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1000)


def _indexed(ids: np.ndarray) -> np.ndarray:
    """Whole documents of TOKENS tokens and ends at most."""
    return ids[: np.flatnonzero(ids[:TOKENS] == SEPARATOR)[-1] + 1]


def default_tokens() -> Path:
    """File of the default suite's training tokens; made where it is not there."""
    import yaml

    from reptrace.report.profiles import Profile

    profile = Profile.of(yaml.safe_load((ROOT / "notebooks" / "params" / "tiny.yaml").read_text()))
    return profile.suite.tokens(VOCABULARY)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        _build(arguments.tokens, arguments.build)
    else:
        with pd.option_context("display.max_colwidth", None, "display.width", 240):
            for row in rows(arguments.tokens or default_tokens()):
                print(pd.Series(row).to_string(), "\n")
