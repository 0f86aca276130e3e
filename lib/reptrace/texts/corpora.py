"""Text sources: names -> documents in a fixed order, with a fingerprint that says exactly which.

`docstrings`, `code`, `readmes` and `catalogues` need no network: they read what the project's own requirements
installed, real English, code and other languages, the same documents in the same order wherever Python and the same packages are installed alike. Files
(`text_files`), folders of them and hub datasets give the same `Corpus`; `probes` makes token sequences of it.
"""

from __future__ import annotations

import gzip
import inspect
import json
import lzma
import os
import sys
import sysconfig
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import metadata
from itertools import chain
from pathlib import Path

import pyarrow
from tqdm import tqdm

from reptrace.checkpoints.hub import ANSWER, asked
from reptrace.records.store import write_atomically
from reptrace.support import arguments
from reptrace.support.arguments import near_folders
from reptrace.support.fingerprints import fingerprint, order_key
from reptrace.texts import catalogues as catalogue_files
from reptrace.texts import data_folders, docstring_files, readme_sections, text_files
from reptrace.texts.given import as_texts, check_characters
from reptrace.texts.probes import Probe as Probe
from reptrace.texts.probes import probe as probe

END_OF_TEXT, PADDING = "<|endoftext|>", "<|padding|>"
PACKAGES = Path(__file__).with_name("docstrings.txt")
PYTHON = sys.version_info[:2]
USUAL_PYTHON = (3, 11)  # the tracked tables were made with it
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, lzma.LZMAError)  # what unpacking raises


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order; `fingerprint` is a SHA-256 over all of them, shortened to 16 hex digits.

    `passed_over` counts the rows of the source that held no text; it is not part of the fingerprint.
    """

    name: str
    documents: list[str]
    passed_over: int = 0

    def __post_init__(self):
        object.__setattr__(self, "documents", as_texts(self.documents, "documents"))
        if not self.documents:
            rows = f" ({self.passed_over} rows have no text)" if self.passed_over else ""
            raise ValueError(f"the text {self.name!r} holds no documents{rows}: it is empty, or blank.")

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(document.encode("utf-8", "surrogatepass") for document in self.documents)

    def split(self, held_out: float = 0.15) -> tuple[Corpus, Corpus]:
        """Training part and held-out probe part, which share no document: a document's own hash decides its side."""
        if not 0 < held_out < 1:
            raise ValueError(f"held_out is a share between 0 and 1, got {held_out}.")
        parts: tuple[list[str], list[str]] = ([], [])
        for document in dict.fromkeys(self.documents):
            parts[order_key("split", document)[0] < 256 * held_out].append(document)
        return Corpus(f"{self.name}/train", parts[0]), Corpus(f"{self.name}/probe", parts[1])


@dataclass(frozen=True)
class ProbeSpec:
    """Which sequences of which text make a probe, whatever tokenizer comes.

    Parameters
    ----------
    text : str or Path, see `open_text`
    sequences, max_length, min_length, seed : see `probe`
    field : str, default "text"; which field of a file's or dataset's rows holds the text
    """

    text: str | Path
    sequences: int = 15_000
    max_length: int = 512
    min_length: int = 32
    seed: int = 0
    field: str = text_files.FIELD

    def corpus(self, cache: Path | None = None) -> Corpus:
        return open_text(self.text, 4 * self.sequences, cache, self.field)

    def probe(self, corpus: Corpus, tokenizer) -> Probe:
        return probe(corpus, tokenizer, self.sequences, self.max_length, self.min_length, self.seed)


def open_text(source: str | Path, documents: int = 50_000, cache: Path | None = None,
              field: str = text_files.FIELD) -> Corpus:
    """A corpus by name: "docstrings", "code", "readmes" or "catalogues"; a file, see `text_files.read`;
    "hub:REPOSITORY[:CONFIG[:SPLIT[:FIELD]]]"; or "hub:FOLDER[:[CONFIG]:[SPLIT][:FIELD]]".

    `field` says which field of a row holds the text, of files and of a hub dataset that names none itself.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError('a text is named by "docstrings", "code", "readmes", "catalogues", a file, or '
                        f"\"hub:REPOSITORY:CONFIG\"; got {arguments.shown(source)}. Of texts in memory: Corpus(name, texts).")
    if source == "docstrings":
        return docstrings(cache=cache)
    if source == "code":
        return code()
    if source == "readmes":
        return readmes()
    if source == "catalogues":
        return catalogues()
    if str(source).startswith("hub:"):
        parts = str(source).split(":")[1:]
        if not parts[0] or len(parts) > 4:
            raise ValueError(f"expected hub:REPOSITORY[:CONFIG[:SPLIT[:FIELD]]], got {str(source)!r}.")
        repository, config, split, own = [*parts, "", "", ""][:4]
        return hub(repository, config or None, split or None, own or field, documents, cache)
    return text_file(source, field)


def text_file(path: str | Path, field: str = text_files.FIELD) -> Corpus:
    """Documents of a file, by its suffix: see `text_files.read`."""
    return Corpus(Path(path).name, *text_files.read(path, field))


def hub(repository: str, config: str | None = None, split: str | None = None, field: str = text_files.FIELD,
        documents: int = 50_000, cache: Path | None = None) -> Corpus:
    """The first documents of a hub dataset, streamed (split "train" unless another is named); or of a local folder.

    FineWeb: `hub("HuggingFaceFW/fineweb", "sample-10BT")`.

    The dataset is read at the commit that its main branch stands for now; the corpus's name says which. With a `cache`
    folder it is streamed once; delete its file to fetch a newer state of the dataset. A folder is read anew each time,
    see `data_folders.read`; the name says which of its files, and has a hash of the documents.

    Rows without text (null or blank) are passed over and counted; a row without the field, or with something else in
    it, is a ValueError that names it.
    """
    from huggingface_hub import HfApi

    folder = _data_folder(repository)
    if folder:
        return _of_folder(repository, folder, config, split, field, documents)
    split = split or "train"
    name = ":".join(filter(None, (repository, config, split)))
    kept = Path(cache) / f"hub-{fingerprint([f'pinned {name}:{field}:{documents}'.encode()])}.json" if cache else None
    if kept and kept.exists():
        return _kept(kept)
    commit = asked(repository, lambda: HfApi().dataset_info(repository, timeout=ANSWER)).sha
    found = _streamed(repository, config, split, commit, documents, text_files.Rows(name, field))
    corpus = Corpus(f"{name}@{commit[:12]}", *found)
    if kept:
        write_atomically(kept, json.dumps(asdict(corpus)).encode())
    return corpus


def report_passed_over(corpus: Corpus) -> None:
    """Say on standard error how many rows held no text, if any."""
    if corpus.passed_over:
        tqdm.write(f"{corpus.name}: {corpus.passed_over} rows without text were passed over, "
                   f"{len(corpus.documents)} were read", file=sys.stderr)


def docstrings(min_characters: int = 200, packages: Sequence[str] | None = None, cache: Path | None = None,
               workers: int = 2) -> Corpus:
    """Docstrings of installed packages, and of the standard library, each once.

    Parameters
    ----------
    min_characters : int, default 200
        Shorter docstrings are left out.
    packages : list of str, or one, optional
        Distribution names, default those in docstrings.txt beside this module; one that is not installed is an error.
    cache : Path, optional
        Folder that keeps the result; read again while Python and the installed files stay the same, by the versions and
        the hashes that pip recorded of them.
    workers : int, default 2
        Processes that parse side by side.

    Order: distributions by name, then "python" for the standard library; files by path; then as they stand in the file.

    Another Python's standard library makes another text: its name says which, unless it is that of 3.11, the usual one.
    """
    names = _chosen(packages)
    records = {name: metadata.distribution(name).read_text("RECORD") for name in names}
    kept = None
    if cache and None not in records.values():
        facts = [{name: metadata.version(name) for name in names}, sys.version.split()[0], records, min_characters,
                 inspect.getsource(docstring_files), inspect.getsource(_distinct)]
        kept = Path(cache) / f"docstrings-{fingerprint([json.dumps(facts).encode()])}.json"
    if kept and kept.exists():
        return _kept(kept)
    files = [path for name in names for path in _files_of(name)] + _standard_library()
    bar = tqdm(docstring_files.read(files, workers), total=len(files), desc="reading docstrings", unit="file",
               leave=False)
    corpus = Corpus(docstrings_name(), *_distinct(bar, min_characters))
    if kept:
        write_atomically(kept, json.dumps(asdict(corpus)).encode())
    return corpus


def code(min_characters: int = 200, packages: Sequence[str] | None = None) -> Corpus:
    """Source files of installed packages, and of the standard library, each content once: some 300 MB by default.

    Packages, order and the rule for what is too short are those of `docstrings`, whose texts stand in these files too.
    Files that are not UTF-8 are passed over and counted. Kept nowhere: reading a copy takes half as long, which
    saves seconds for 300 MB.
    """
    files = [path for name in _chosen(packages) for path in _files_of(name)] + _standard_library()
    bar = tqdm(files, desc="reading code", unit="file", leave=False)
    texts = [_source(path) for path in bar]
    documents, broken = _distinct([[text] for text in texts if text is not None], min_characters)
    return Corpus(docstrings_name().replace("docstrings", "code"), documents, broken + texts.count(None))


def _source(path: Path) -> str | None:
    """Text of a source file with plain line ends; None where it is not UTF-8."""
    try:
        return path.read_text("utf-8-sig")  # any line end is read as "\n"
    except UnicodeDecodeError:
        return None


def readmes(min_characters: int = 200, packages: Sequence[str] | None = None) -> Corpus:
    """Sections of the long descriptions of installed packages, each once: 1.2 MB of English prose in Markdown and reST.

    Packages, order and the rule for what is too short are those of `docstrings`; the standard library has none. Python
    has no part in them, so any version of it reads the same text. A document is a section, see `readme_sections`: some
    150 whole pages would be too few for a probe, and a few of them are changelogs as long as forty others.

    Markup stands as its authors wrote it, badges and HTML too (some 7 % of the characters): models are trained on such
    pages, and any rule for what is prose would be one more choice that shapes the result.
    """
    pages = (metadata.metadata(name).get("Description", "") for name in _chosen(packages))
    return Corpus("readmes", *_distinct(map(readme_sections.sections, pages), min_characters))


def catalogues(min_characters: int = 200, packages: Sequence[str] | None = None) -> Corpus:
    """Translated messages of installed packages, each document once: 0.5 MB in some sixty languages, none English.

    Packages and order are those of `docstrings`; files by path. Messages that follow each other in a file make a
    document, see `catalogues.documents`. French, Catalan, Portuguese, Galician, Albanian and Spanish are the commonest.
    """
    files = [path for name in _chosen(packages) for path in _files_of(name, ".mo")]
    return Corpus("catalogues", *_distinct((catalogue_files.documents(path, min_characters) for path in files),
                                           min_characters))


def _chosen(packages: Sequence[str] | None) -> list[str]:
    """Distribution names in their order, each once: those given, or those of the default text."""
    wanted = default_packages() if packages is None else arguments.names(packages, "names of distributions")
    return sorted(set(wanted))


def docstrings_name() -> str:
    """What the docstrings read by this Python are called, in records too: only those of 3.11 are plain `docstrings`."""
    return "docstrings" if PYTHON == USUAL_PYTHON else "docstrings (Python {}.{})".format(*PYTHON)


def default_packages() -> list[str]:
    """Distribution names of the default text."""
    return [line for line in PACKAGES.read_text().splitlines() if line and not line.startswith("#")]


def train_tokenizer(documents: Sequence[str], vocabulary: int, digits: bool = False):
    """Byte-level BPE of `vocabulary` entries (`tokenizers`), as a transformers tokenizer with end-of-text and pad.

    With `digits`, each digit is a token of its own, whatever stands beside it: a model can then do sums by columns.
    Too few entries for all 256 bytes (below 258, at least 8) give one for each of the commonest bytes, and no pairs;
    the other bytes then become the end-of-text token.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    documents = as_texts(documents, "documents")
    if vocabulary < 8:
        raise ValueError(f"a vocabulary needs 2 special tokens and at least 6 others, got {vocabulary}.")
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    few = vocabulary < len(alphabet) + 2
    tokenizer = Tokenizer(models.BPE(unk_token=END_OF_TEXT) if few else models.BPE())
    tokenizer.pre_tokenizer = bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if digits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END_OF_TEXT, PADDING], show_progress=False,
                                  **({"limit_alphabet": vocabulary - 2} if few else {"initial_alphabet": alphabet}))
    tokenizer.train_from_iterator(documents, trainer, length=len(documents))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT,
                                   unk_token=END_OF_TEXT, pad_token=PADDING)


def _kept(path: Path) -> Corpus:
    """A corpus that was read before."""
    try:
        return Corpus(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"what was kept of a text in {str(path)!r} is damaged ({error}): delete that file, and the "
                         "text is read anew.") from error


def _data_folder(repository: str) -> Path | None:
    """The folder that is meant in place of a repository, if it is one."""
    path = Path(os.path.expanduser(repository))
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(f"{repository!r} is a file: pass its path as it is, without hub:.")
    if repository.startswith((".", "/", "~")) or repository.count("/") > 1:
        raise FileNotFoundError(f"there is no folder {repository!r}, and a repository of the hub is named OWNER/NAME."
                                f"{near_folders(path)}")
    return None


def _of_folder(name: str, folder: Path, config: str | None, split: str | None, field: str, documents: int) -> Corpus:
    found, files = data_folders.read(folder, field, documents, config, split)
    listed = ", ".join(files) if len(files) < 4 else f"{len(files)} files, {files[0]} to {files[-1]}"
    corpus = Corpus(f"{name} ({listed})", *found)
    return replace(corpus, name=f"{name}@{corpus.fingerprint[:12]} ({listed})")


def _streamed(repository: str, config: str | None, split: str, commit: str | None, documents: int,
              rows: text_files.Rows) -> text_files.Documents:
    """The first documents of a dataset, which may be a folder."""
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        data = load_dataset(repository, config, split=split, streaming=True, revision=commit).take(documents)
        bar = tqdm(data, desc=repository, total=documents, unit="doc", leave=False)
        return rows.documents((number, rows.value(number, row)) for number, row in enumerate(bar, 1))
    except (DatasetsError, pyarrow.ArrowException, UnicodeDecodeError, *DAMAGED) as error:
        raise ValueError(f"the datasets library cannot read {rows.name}: {error!r}") from error


def _distinct(found: Iterable[Sequence[str]], min_characters: int) -> text_files.Documents:
    """Each text once, those that are long enough, and how many were none (half of a surrogate pair in a literal)."""
    documents: dict[str, None] = {}
    broken = 0
    for text in chain.from_iterable(found):
        if len(text) >= min_characters:
            try:
                check_characters(text, "a docstring")
                documents[text] = None
            except ValueError:
                broken += 1
    return text_files.Documents(list(documents), broken)


def _files_of(distribution: str, suffix: str = ".py") -> Iterator[Path]:
    files = metadata.files(distribution) or []
    return (Path(file.locate()) for file in sorted(files, key=str)
            if file.suffix == suffix and file.locate().is_file())


def _standard_library() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    return sorted(path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts))
