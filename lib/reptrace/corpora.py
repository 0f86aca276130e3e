"""Text sources and probes: text -> token sequences, each with a fingerprint that says exactly which.

`docstrings` needs no network: it reads what the project's own requirements installed, real English and code, tens of
megabytes, the same documents in the same order wherever Python and the same packages are installed alike. Files and hub
datasets give the same `Corpus`.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from reptrace.hub import ANSWER, asked
from reptrace.processes import end_with_parent
from reptrace.records import write_atomically

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"
PACKAGES = Path(__file__).with_name("docstrings.txt")


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order; `fingerprint` is a SHA-256 over all of them, shortened to 16 hex digits."""

    name: str
    documents: list[str]

    def __post_init__(self):
        if not self.documents:
            raise ValueError(f"the text {self.name!r} holds no documents: it is empty, or blank.")

    @cached_property
    def fingerprint(self) -> str:
        return _fingerprint(document.encode("utf-8", "surrogatepass") for document in self.documents)

    def split(self, held_out: float = 0.15) -> tuple[Corpus, Corpus]:
        """Training part and held-out probe part, which share no document: a document's own hash decides its side."""
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is a share between 0 and 1, got {held_out}.")
        parts: tuple[list[str], list[str]] = ([], [])
        for document in dict.fromkeys(self.documents):
            parts[_order_key("split", document)[0] < 256 * held_out].append(document)
        return Corpus(f"{self.name}/train", parts[0]), Corpus(f"{self.name}/probe", parts[1])


@dataclass(frozen=True)
class Probe:
    """Token sequences to measure a model on: M lists of ids, and what identifies them in a record.

    `documents` holds the SHA-256 of the document that each sequence was cut from, where they are known.
    """

    name: str
    sequences: list[list[int]]
    max_length: int
    min_length: int
    seed: int = 0
    documents: list[str] = field(default_factory=list, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        return _fingerprint(json.dumps(sequence).encode() for sequence in self.sequences)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.sequences))

    def pin(self, folder: Path) -> Path:
        """Write, once, which documents these are: a Parquet file by fingerprint, columns document (SHA-256), tokens."""
        path = Path(folder) / f"{self.fingerprint}.parquet"
        if not path.exists():
            table = pd.DataFrame({"document": self.documents, "tokens": list(map(len, self.sequences))})
            write_atomically(path, table.assign(probe=self.name, seed=self.seed).to_parquet(index=False))
        return path


def probe(corpus: Corpus, tokenizer, sequences: int, max_length: int = 512, min_length: int = 32,
          seed: int = 0) -> Probe:
    """The first `sequences` documents, in an order set by their hash and the seed, cut at max_length tokens.

    Parameters
    ----------
    corpus : Corpus
    tokenizer : transformers tokenizer; called without special tokens.
    sequences : int
        M. RankMe is biased down when M is not well above the model's width; the paper takes 15,000.
    max_length, min_length : int, default 512 and 32, as in the paper's OLMo script
        Documents of fewer than min_length tokens are passed over.

    Raises
    ------
    ValueError
        Fewer sequences than asked for are long enough: says how many there are.
    """
    if sequences < 2 or not 1 <= min_length <= max_length:
        raise ValueError("a probe needs sequences >= 2 and 1 <= min_length <= max_length, got "
                         f"sequences={sequences}, min_length={min_length}, max_length={max_length}.")
    order = sorted(dict.fromkeys(corpus.documents), key=lambda document: _order_key(f"probe {seed}", document))
    kept: list[tuple[list[int], str]] = []
    longest = max(map(len, tokenizer.get_vocab()))
    for start in range(0, len(order), 1024):
        # Characters beyond the longest token's each cannot matter, and cutting them keeps long files cheap.
        texts = [document[: longest * max_length] for document in order[start : start + 1024]]
        encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=max_length)["input_ids"]
        documents = zip(encoded, order[start : start + 1024], strict=True)
        kept += [(ids, document) for ids, document in documents if len(ids) >= min_length]
        if len(kept) >= sequences:
            chosen, sources = zip(*kept[:sequences], strict=True)
            hashes = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() for text in sources]
            return Probe(corpus.name, list(chosen), max_length, min_length, seed, hashes)
    raise ValueError(f"{sequences} sequences of at least {min_length} tokens were asked for, {corpus.name!r} has "
                     f"{len(kept)} among {len(order)} different documents: ask for fewer, lower the minimum length "
                     "(min_length, --min-length), or bring more text.")


def open_text(source: str, documents: int = 50_000, cache: Path | None = None) -> Corpus:
    """A corpus by name: "docstrings"; a .txt or .jsonl file; or "hub:REPOSITORY[:CONFIG[:SPLIT[:FIELD]]]"."""
    if source == "docstrings":
        return docstrings(cache=cache)
    if source.startswith("hub:"):
        return hub(*source.split(":")[1:], documents=documents, cache=cache)
    return text_file(source)


def text_file(path: str | Path) -> Corpus:
    """Documents of a plain text file (separated by blank lines) or of JSONL (field "text", one document a line)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no text file {str(path)!r}. A text is a .txt or .jsonl file, "
                                '"docstrings", or "hub:REPOSITORY:CONFIG".')
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 text ({error}): convert it first.") from error
    if path.suffix in (".jsonl", ".ndjson"):
        lines = enumerate(text.split("\n"), 1)  # not splitlines: JSON strings may hold U+2028 and its like
        documents = [_json_text(line, path, number) for number, line in lines if line.strip()]
    else:
        documents = re.split(r"\n\s*\n", text)
    return Corpus(path.name, [document.strip() for document in documents if document.strip()])


def hub(repository: str, config: str | None = None, split: str = "train", field: str = "text",
        documents: int = 50_000, cache: Path | None = None) -> Corpus:
    """The first documents of a hub dataset, or of a folder of data files, streamed.

    FineWeb: `hub("HuggingFaceFW/fineweb", "sample-10BT")`.

    The dataset is read at the commit that its main branch stands for now; the corpus's name says which. With a `cache`
    folder it is streamed once; delete its file to fetch a newer state of the dataset.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi

    name = ":".join(filter(None, (repository, config, split)))
    kept = cache and Path(cache) / f"hub-{_fingerprint([f'pinned {name}:{field}:{documents}'.encode()])}.json"
    if kept and kept.exists():
        return Corpus(**json.loads(kept.read_text()))
    commit = None if Path(repository).is_dir() else asked(repository, lambda: HfApi().dataset_info(
        repository, timeout=ANSWER)).sha
    rows = load_dataset(repository, config, split=split, streaming=True, revision=commit).take(documents)
    texts = [row[field] for row in tqdm(rows, desc=repository, total=documents, unit="doc", leave=False)]
    corpus = Corpus(f"{name}@{commit[:12]}" if commit else name, [text for text in texts if text.strip()])
    if kept:
        write_atomically(kept, json.dumps({"name": corpus.name, "documents": corpus.documents}).encode())
    return corpus


def docstrings(min_characters: int = 200, packages: Sequence[str] | None = None, cache: Path | None = None,
               workers: int = 2) -> Corpus:
    """Docstrings of installed packages, and of the standard library, each once.

    Parameters
    ----------
    min_characters : int, default 200
        Shorter docstrings are left out.
    packages : list of str, optional
        Distribution names, default those in docstrings.txt beside this module; one that is not installed is an error.
    cache : Path, optional
        Folder that keeps the result; read again while packages, versions and Python stay the same.
    workers : int, default 2
        Processes that parse side by side.

    Order: distributions by name, then "python" for the standard library; files by path; then as they stand in the file.
    """
    names = sorted(set(packages if packages is not None else default_packages()))
    versions = {name: metadata.version(name) for name in names} | {"python": sys.version.split()[0]}
    key = _fingerprint([json.dumps([versions, min_characters, inspect.getsource(_docstrings_of)]).encode()])
    kept = cache and Path(cache) / f"docstrings-{key}.json"
    if kept and kept.exists():
        return Corpus("docstrings", json.loads(kept.read_text()))
    files = [path for name in names for path in _files_of(name)] + _standard_library()
    documents: dict[str, None] = {}
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        found = pool.map(_docstrings_of, files, chunksize=64)
        for texts in tqdm(found, total=len(files), desc="reading docstrings", unit="file", leave=False):
            documents.update((text, None) for text in texts if len(text) >= min_characters)
    corpus = Corpus("docstrings", list(documents))
    if kept:
        write_atomically(kept, json.dumps(corpus.documents).encode())
    return corpus


def default_packages() -> list[str]:
    """Distribution names of the default text."""
    return [line for line in PACKAGES.read_text().splitlines() if line and not line.startswith("#")]


def train_tokenizer(documents: Sequence[str], vocabulary: int):
    """Byte-level BPE of `vocabulary` entries (`tokenizers`), as a transformers tokenizer with end-of-text and pad.

    Too few entries for all 256 bytes (below 258, at least 8) give one for each of the commonest bytes, and no pairs;
    the other bytes then become the end-of-text token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < 8:
        raise ValueError(f"a vocabulary needs 2 special tokens and at least 6 others, got {vocabulary}.")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    few = vocabulary < len(alphabet) + 2
    tokenizer = Tokenizer(models.BPE(unk_token=END_OF_TEXT) if few else models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END_OF_TEXT, PADDING], show_progress=False,
                                  **({"limit_alphabet": vocabulary - 2} if few else {"initial_alphabet": alphabet}))
    tokenizer.train_from_iterator(documents, trainer, length=len(documents))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT,
                                   unk_token=END_OF_TEXT, pad_token=PADDING)


def _docstrings_of(path: Path) -> list[str]:
    """Docstrings of a module, its classes and functions, in order; nothing from a file that does not parse."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return []
    found, pending = [], [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                found.append(text.strip())
        # Definitions stand in statements only, so expressions, most of the tree, are never visited.
        fields = ("body", "handlers", "orelse", "finalbody", "cases")
        pending += reversed([child for field in fields for child in getattr(node, field, [])])
    return found


def _files_of(distribution: str) -> Iterator[Path]:
    files = metadata.files(distribution) or []
    return (Path(file.locate()) for file in sorted(files, key=str) if file.suffix == ".py" and file.locate().is_file())


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    return sorted(path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts))


def _json_text(line: str, path: Path, number: int) -> str:
    try:
        text = json.loads(line)["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ValueError(f'{path.name}, line {number}: expected a JSON object with a field "text", got {line[:60]!r}.')
    return text


def _order_key(purpose: str, document: str) -> bytes:
    return hashlib.sha256(f"{purpose}\0{document}".encode("utf-8", "surrogatepass")).digest()


def _fingerprint(pieces) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()[:16]
