"""Corpora, probes and the tokenizer.

Trusted: a reading of the same sources by the plainest means: `ast.walk` with `ast.get_docstring` over a distribution's
files, documents written here by `json` and by hand, `packaging` over requirements.lock, and the tokenizer called on one
whole document at a time. Everything is exact, so there is no tolerance, except that a split's share is binomial.
"""

import ast
import json
import random
from importlib import metadata
from pathlib import Path

import packaging.requirements
import pytest
import scipy.stats

from reptrace import corpora
from reptrace.corpora import (
    END_OF_TEXT,
    PADDING,
    Corpus,
    default_packages,
    docstrings,
    hub,
    open_text,
    probe,
    text_file,
    train_tokenizer,
)

LOCK = Path(__file__).parents[1] / "requirements.lock"
WORDS = ["array", "shape", "returns", "value", "the", "of", "a", "model", "layer", "if", "given", "default", "is",
         "naïve", "café", "日本語", "🎉", "it's", "don't", "foo_bar(x,", "y=3)", ">>>", "print()"]


def texts(count, seed=0):
    """Different documents of 1 to 120 words, with the line breaks and rulers of docstrings."""
    draw = random.Random(seed)
    return [f"Document {k}.\n\n    {'-' * draw.randint(0, 60)}\n{' '.join(draw.choices(WORDS, k=draw.randint(1, 120)))}"
            for k in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts(300), 512)


@pytest.fixture
def corpus():
    return Corpus("here", texts(400, seed=1))


# Fingerprints


def test_equal_documents_have_equal_fingerprints(corpus):
    assert Corpus("other name", texts(400, seed=1)).fingerprint == corpus.fingerprint


@pytest.mark.parametrize("documents", [["b", "a", "cd"], ["a", "bc", "d"], ["a", "b", "c", "d"], ["abcd"], ["a", "b"],
                                       ["a", "b", "cd", ""], ["a", "b", "cD"], ["a", "b", "cd", "cd"]])
def test_order_boundaries_and_every_letter_change_the_fingerprint(documents):
    assert Corpus("x", documents).fingerprint != Corpus("x", ["a", "b", "cd"]).fingerprint


def test_a_probes_fingerprint_tells_its_sequences_apart(corpus, tokenizer):
    fingerprints = [probe(corpus, tokenizer, 50, **options).fingerprint for options in
                    ({}, {"seed": 1}, {"max_length": 64}, {"min_length": 40})]
    assert len({*fingerprints, probe(corpus, tokenizer, 49).fingerprint}) == 5
    assert probe(corpus, tokenizer, 50).fingerprint == fingerprints[0]


def test_a_text_without_documents_is_refused():
    with pytest.raises(ValueError, match="'empty' holds no documents"):
        Corpus("empty", [])


# Training part and probe part


def test_the_two_parts_share_no_document_and_lose_none(corpus):
    repeated = Corpus("here", corpus.documents + corpus.documents[:100])
    train, held_out = repeated.split()
    assert not set(train.documents) & set(held_out.documents)
    assert sorted(train.documents + held_out.documents) == sorted(corpus.documents)  # each once
    order = {document: k for k, document in enumerate(corpus.documents)}
    for part in (train, held_out):
        assert part.documents == sorted(part.documents, key=order.get)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.5])
def test_the_probe_part_has_the_share_asked_for(share):
    held_out = Corpus("x", texts(4000)).split(share)[1]
    # The side is decided by one byte of a hash, hence in 256ths, and is a coin toss a document: one in a million
    low, high = scipy.stats.binom.ppf([5e-7, 1 - 5e-7], 4000, [share, share + 1 / 256])
    assert low <= len(held_out.documents) <= high


def test_a_documents_side_depends_on_nothing_but_the_document(corpus):
    whole = set(corpus.split()[1].documents)
    shuffled = random.Random(3).sample(corpus.documents, 400)
    assert set(Corpus("other", shuffled).split()[1].documents) == whole
    assert set(Corpus("part", corpus.documents[:200]).split()[1].documents) == whole & set(corpus.documents[:200])


@pytest.mark.parametrize("share", [0, 1, -0.1, 15])
def test_a_share_that_is_none_is_refused(corpus, share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        corpus.split(share)


# Probes


@pytest.mark.parametrize(("max_length", "min_length"), [(512, 32), (64, 32), (40, 40), (16, 1)])
def test_sequences_are_documents_cut_at_the_longest_and_none_is_too_short(corpus, tokenizer, max_length, min_length):
    found = probe(corpus, tokenizer, 100, max_length, min_length)
    assert len(found.sequences) == 100 and found.tokens == sum(len(sequence) for sequence in found.sequences)
    assert {len(sequence) for sequence in found.sequences} <= set(range(min_length, max_length + 1))
    own = [tokenizer(document, add_special_tokens=False)["input_ids"][:max_length] for document in corpus.documents]
    assert {tuple(sequence) for sequence in found.sequences} <= {tuple(ids) for ids in own}
    assert len({tuple(sequence) for sequence in found.sequences}) > 90  # each document once; short cuts may coincide


def test_all_documents_that_are_long_enough_can_be_asked_for(corpus, tokenizer):
    own = [tokenizer(document, add_special_tokens=False)["input_ids"] for document in corpus.documents]
    enough = sorted(ids[:64] for ids in own if len(ids) >= 32)
    assert sorted(probe(corpus, tokenizer, len(enough), 64).sequences) == enough


def test_documents_whose_tokens_are_long_are_not_cut_short():
    rulers = ["=" * count for count in range(100, 400)]
    own = train_tokenizer(rulers, 400)
    corpus = Corpus("rulers", [ruler + " end" * 9 for ruler in rulers])
    expected = [own(document, add_special_tokens=False)["input_ids"][:8] for document in corpus.documents]
    assert max(len(own.decode(ids)) for ids in expected) > 8 * 32  # eight tokens do hold that many characters
    assert sorted(probe(corpus, own, 300, max_length=8, min_length=1).sequences) == sorted(expected)


def test_a_probe_is_the_same_in_every_call_whatever_the_order_of_the_documents(corpus, tokenizer):
    first = probe(corpus, tokenizer, 50)
    assert probe(corpus, tokenizer, 50) == first
    shuffled = Corpus("here", random.Random(3).sample(corpus.documents, 400) + corpus.documents[:50])
    assert probe(shuffled, tokenizer, 50) == first
    assert probe(corpus, tokenizer, 50, seed=1) != first


def test_a_smaller_probe_is_the_beginning_of_a_larger_one(corpus, tokenizer):
    assert probe(corpus, tokenizer, 20).sequences == probe(corpus, tokenizer, 100).sequences[:20]


def test_more_than_a_thousand_documents_are_gone_through(tokenizer):
    many = Corpus("many", texts(2500))
    assert len(probe(many, tokenizer, 2000, 64, 1).sequences) == 2000


def test_fewer_sequences_than_asked_for_is_an_error_that_says_how_many_there_are(corpus, tokenizer):
    lengths = [len(tokenizer(document, add_special_tokens=False)["input_ids"]) for document in corpus.documents]
    enough = sum(length >= 32 for length in lengths)
    assert probe(corpus, tokenizer, enough, 64)
    with pytest.raises(ValueError, match=f"{enough + 1} sequences .* 'here' has {enough} among 400 .*lower the min"):
        probe(corpus, tokenizer, enough + 1, 64)
    with pytest.raises(ValueError, match="has 0 among 400"):
        probe(corpus, tokenizer, 2, 10_000, 10_000)


@pytest.mark.parametrize("options", [{"sequences": 1}, {"sequences": 5, "min_length": 0},
                                     {"sequences": 5, "min_length": 65, "max_length": 64}])
def test_a_probe_that_cannot_be_is_refused(corpus, tokenizer, options):
    with pytest.raises(ValueError, match="sequences >= 2 and 1 <= min_length <= max_length"):
        probe(corpus, tokenizer, **options)


# Text files


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_a_plain_text_is_cut_at_blank_lines(file, line_break):
    content = "\n\nOne line.\nAnd another.\n\nSecond, naïve.\n \t\n\n\nThird\n".replace("\n", line_break)
    found = text_file(file("a.txt", content))
    assert found.documents == ["One line.\nAnd another.", "Second, naïve.", "Third"] and found.name == "a.txt"


@pytest.mark.parametrize("suffix", ["jsonl", "ndjson"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_jsonl_has_a_document_a_line_whatever_characters_it_holds(file, suffix, ascii_only):
    # The last four count as line breaks to str.splitlines, and JSON lets three of them stand unescaped in a string
    documents = ["one\ntwo\n\nthree", "naïve 🎉", "a\u2028b", "a\u2029b", "a\u0085b", "a\x1cb"]
    lines = [json.dumps({"text": document, "id": k}, ensure_ascii=ascii_only) for k, document in enumerate(documents)]
    assert text_file(file(f"a.{suffix}", "\n\n".join(lines) + "\n")).documents == documents


@pytest.mark.parametrize("line", ["{not json", '{"other": "text"}', "[1, 2]", '"text"', "3", '{"text": null}',
                                  '{"text": 5}', '{"text": ["a"]}'])
def test_a_line_that_is_no_document_is_an_error_that_names_it(file, line):
    path = file("a.jsonl", f'{{"text": "fine"}}\n\n{line}\n{{"text": "fine"}}\n')
    with pytest.raises(ValueError, match=r'a\.jsonl, line 3: expected a JSON object with a field "text"'):
        text_file(path)


@pytest.mark.parametrize(("name", "content"), [("a.txt", ""), ("a.txt", "\n \n\t\n"), ("a.jsonl", ""),
                                               ("a.jsonl", "\n\n"), ("a.jsonl", '{"text": " "}\n')])
def test_an_empty_text_is_an_error_that_says_so(file, name, content):
    with pytest.raises(ValueError, match=f"'{name}' holds no documents"):
        text_file(file(name, content))


def test_a_missing_file_is_an_error_that_says_what_a_text_may_be(tmp_path):
    for path in (tmp_path / "no.txt", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no text file .*\.jsonl.*docstrings.*hub:"):
            open_text(str(path))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_text_in_another_encoding_is_refused(file, name):
    with pytest.raises(ValueError, match=f"{name} is not UTF-8"):
        text_file(file(name, "naïve".encode("utf-16")))


def test_a_file_is_opened_by_its_name(file):
    path = file("a.txt", "one\n\ntwo")
    assert open_text(str(path)) == text_file(path)


def test_a_dataset_of_the_hub_library_gives_its_first_documents(file, tmp_path):
    file("train.jsonl", "".join(json.dumps({"text": text, "body": text.upper()}) + "\n" for text in "a bc"))
    assert hub(str(tmp_path), documents=3).documents == ["a", "b"]  # the blank one is passed over
    assert open_text(f"hub:{tmp_path}::train:body").documents == ["A", "B", "C"]


def test_a_hub_text_is_streamed_once_where_there_is_a_cache(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    first = hub(str(tmp_path / "data"), documents=2, cache=tmp_path / "cache")
    monkeypatch.setattr("datasets.load_dataset", lambda *a, **k: pytest.fail("streamed again"))
    assert hub(str(tmp_path / "data"), documents=2, cache=tmp_path / "cache") == first


# Docstrings


@pytest.fixture
def no_standard_library(monkeypatch):
    monkeypatch.setattr(corpora, "_standard_library", list)  # thousands of files


@pytest.fixture
def distribution(tmp_path, monkeypatch, no_standard_library):
    """A function that installs a distribution of the given files, by name, version and content."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)

    def install(name, version, files):
        for old in site.glob(f"{name}-*.dist-info"):
            old.rename(old.with_suffix(".gone"))
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))
        for path, source in files.items():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            (site / path).write_text(source)
        return site

    return install


def walked(paths, min_characters):
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) for path in paths for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, kinds)]
    return {text.strip() for text in found if text and len(text.strip()) >= min_characters}


@pytest.mark.parametrize("min_characters", [1, 200])
def test_docstrings_of_a_package_are_those_that_ast_walk_finds_each_once(no_standard_library, min_characters):
    found = docstrings(min_characters, packages=["tqdm"], workers=1).documents
    files = [file.locate() for file in metadata.files("tqdm") if file.suffix == ".py"]
    expected = walked(files, min_characters)
    assert len(expected) > 10
    assert set(found) == expected and len(found) == len(expected)


NESTED = '''
"""Module."""
def plain():
    """Function."""
    def inner():
        """Inner function."""
class A:
    """Class."""
    async def method(self):
        """Method."""
if True:
    def under_if(): "If."
elif True:
    def under_elif(): "Elif."
else:
    class UnderElse: "Else."
try:
    def under_try(): "Try."
except ValueError:
    def under_except(): "Except."
else:
    def under_try_else(): "Try else."
finally:
    def under_finally(): "Finally."
for x in ():
    def under_for(): "For."
else:
    def under_for_else(): "For else."
while False:
    def under_while(): "While."
with open(""):
    def under_with(): "With."
match 1:
    case 1:
        def under_match(): "Match."
def stub():
    x = "not a docstring"
text = """Not a docstring."""
'''


def test_docstrings_are_found_wherever_a_definition_may_stand(distribution):
    site = distribution("nested", "1.0", {"nested.py": NESTED})
    assert set(docstrings(1, packages=["nested"], workers=1).documents) == walked([site / "nested.py"], 1)


def test_docstrings_come_by_distribution_then_file_then_place_each_once_and_long_enough(distribution):
    distribution("bbb", "1.0", {"bbb/z.py": '"""From z."""',
                                "bbb/a.py": '"""From a."""\ndef f(): "In f."\nclass C: "C."'})
    distribution("aaa", "1.0", {"aaa.py": '"""From aaa."""\ndef f(): "In f."', "aaa.txt": '"""Not Python."""',
                                "gone.py": '"""x"""', "broken.py": 'def f(: "Broken, and passed over."'})
    found = docstrings(4, packages=["bbb", "aaa", "bbb"], workers=2)
    assert found.documents == ["From aaa.", "In f.", "From a.", "From z."]  # "C." is too short


def test_the_kept_result_equals_the_fresh_one_and_is_read_instead(distribution, tmp_path):
    site = distribution("aaa", "1.0", {"aaa.py": '"""From naïve aaa 🎉."""'})
    fresh = docstrings(1, packages=["aaa"], cache=tmp_path / "kept", workers=1)
    (site / "aaa.py").unlink()
    kept = docstrings(1, packages=["aaa"], cache=tmp_path / "kept", workers=1)
    assert kept == fresh and kept.fingerprint == fresh.fingerprint and kept.documents == ["From naïve aaa 🎉."]


def test_another_version_or_another_minimum_is_read_anew(distribution, tmp_path):
    distribution("aaa", "1.0", {"aaa.py": '"""Old one."""\ndef f(): "F."'})
    read = {"packages": ["aaa"], "cache": tmp_path / "kept", "workers": 1}
    assert docstrings(1, **read).documents == ["Old one.", "F."]
    assert docstrings(4, **read).documents == ["Old one."]
    distribution("aaa", "1.1", {"aaa.py": '"""New one."""'})
    assert docstrings(1, **read).documents == ["New one."]


def test_a_package_that_is_not_installed_is_named(no_standard_library):
    with pytest.raises(metadata.PackageNotFoundError, match="nothing-of-that-name"):
        docstrings(packages=["tqdm", "nothing-of-that-name"])


def test_packages_without_docstrings_are_an_error(distribution):
    distribution("aaa", "1.0", {"aaa.py": "x = 1"})
    with pytest.raises(ValueError, match="'docstrings' holds no documents"):
        docstrings(1, packages=["aaa"], workers=1)


def test_the_standard_library_is_read_without_its_tests_and_without_installed_packages():
    files = corpora._standard_library()
    by_path = {"/".join(path.parts[-2:]) for path in files}
    assert {"json/decoder.py", "asyncio/tasks.py"} <= by_path and ast.__file__ in map(str, files)
    assert not any(part in ("site-packages", "test") for path in files for part in path.parts)
    assert files == sorted(files)


def test_the_default_text_is_read_from_packages_that_the_lock_pins():
    lines = [line for line in LOCK.read_text().splitlines() if line.strip() and not line.startswith(("#", "-"))]
    pinned = {packaging.requirements.Requirement(line).name.lower() for line in lines}
    names = default_packages()
    assert set(names) <= pinned and {"torch", "numpy", "transformers"} <= set(names)
    assert len(names) == len(set(names))


# The tokenizer


@pytest.mark.parametrize("text", [
    "plain words", " leading and trailing ", "it 's , spaced . oddly !", "tabs\tand\n\n\n   indented\r\nlines",
    "naïve café 日本語 🎉 \u2028 \x00", "", "unseen: ßþ€", "=" * 500,
])
def test_decoding_gives_back_what_was_encoded(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_decoding_gives_back_any_text_at_all(tokenizer):
    draw = random.Random(0)
    for _ in range(200):
        # Any code point but the surrogates, which are no text
        text = "".join(chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)])) for _ in range(20))
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("vocabulary", [258, 400])
def test_the_vocabulary_has_the_size_asked_for(vocabulary):
    made = train_tokenizer(texts(100), vocabulary)
    assert len(made) == made.vocab_size == len(made.get_vocab()) == vocabulary
    assert sorted(made.get_vocab().values()) == list(range(vocabulary))


def test_end_of_text_and_padding_are_the_first_two_ids(tokenizer):
    assert (tokenizer.eos_token, tokenizer.pad_token) == (END_OF_TEXT, PADDING)
    assert {tokenizer.eos_token_id, tokenizer.pad_token_id} == {0, 1}


def test_more_merges_make_fewer_tokens(tokenizer):
    document = texts(1, seed=5)[0]
    byte_count = len(document.encode())
    assert len(train_tokenizer(texts(50), 258)(document)["input_ids"]) == byte_count  # no room for merges: bytes
    assert len(tokenizer(document)["input_ids"]) < byte_count / 2


def test_the_same_documents_make_the_same_tokenizer(tokenizer):
    assert train_tokenizer(texts(300), 512).get_vocab() == tokenizer.get_vocab()


def test_a_vocabulary_too_small_for_all_bytes_has_the_commonest_and_the_rest_is_end_of_text():
    documents = ["abcdef" * 10, "abcdef" * 10 + "z"]
    made = train_tokenizer(documents, 8)
    assert sorted(made.get_vocab()) == sorted([END_OF_TEXT, PADDING, *"abcdef"])
    assert made.decode(made("facade")["input_ids"]) == "facade"
    assert made("az?")["input_ids"] == [made.get_vocab()["a"], made.eos_token_id, made.eos_token_id]


def test_a_vocabulary_of_next_to_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 6 others, got 7"):
        train_tokenizer(["a"], 7)
