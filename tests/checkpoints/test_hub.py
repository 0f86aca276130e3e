"""What the hub says of a repository, asked through the real client.

Trusted: the stand-in hub (held against the real clients in test_standin_hub.py), hashlib for checksums, transformers
for which files it opens, and huggingface_hub's own scan of a cache. Waits are those that the code meant to make: the
fixture `hub` lists them in `hub.waits` and cuts them short. Nothing is rounded here, so there is no tolerance.
"""

import errno
import hashlib
import json
import time

import httpx2
import huggingface_hub
import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from standin_hub import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from reptrace.checkpoints import hub as library
from reptrace.checkpoints.hub import (
    HubError,
    asked,
    branches,
    commit_of,
    files,
    files_of_all,
    folders,
    parted,
    upwards,
)
from reptrace.checkpoints.listing import Checkpoint
from reptrace.support.arguments import near
from reptrace.sweeps.twins import same_weights

PYTHIA, WEIGHTS = "EleutherAI/pythia-14m", "model.safetensors"


@pytest.fixture(autouse=True)
def forget():
    """A commit is remembered for the life of the process; a test starts without."""
    library._files.cache_clear()
    library._listed.cache_clear()


@pytest.fixture
def pythia(hub):
    """Three small revisions; only their sizes and hashes matter here."""
    for step in (0, 1000, 3000):
        hub.put(PYTHIA, f"step{step}", plain(f"weights of {step}"))
    return hub


def plain(weights="weights", **others):
    """Files of a repository whose weights are any text."""
    return {"config.json": b"{}", WEIGHTS: weights.encode()} | {name: text.encode() for name, text in others.items()}


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def refused(status, **headers):
    """What the client raises on an answer of this status."""
    request = httpx2.Request("GET", "http://127.0.0.1/api")
    return HfHubHTTPError("no", response=httpx2.Response(status, headers=headers, request=request))


# Branches and commits


def test_branches_come_with_the_commits_that_they_stand_for(pythia):
    assert branches(PYTHIA) == pythia.branches["models", PYTHIA]
    assert list(branches(PYTHIA)) == ["step0", "step1000", "step3000"]


def test_branches_of_a_cache_are_read_without_the_hub(pythia):
    for step in (0, 3000):
        snapshot_download(PYTHIA, revision=f"step{step}")
    asked_for = len(pythia.requests)
    put = pythia.branches["models", PYTHIA]
    assert branches(PYTHIA, constants.HF_HUB_CACHE) == {name: put[name] for name in ("step0", "step3000")}
    assert branches("me/other", constants.HF_HUB_CACHE) == {} and len(pythia.requests) == asked_for


def test_a_revision_is_resolved_to_its_commit_and_none_is_main(pythia):
    main = pythia.put(PYTHIA, "main", plain("last"))
    assert commit_of(PYTHIA, "step1000") == pythia.branches["models", PYTHIA]["step1000"]
    assert commit_of(PYTHIA) == commit_of(PYTHIA, "main") == main
    before = len(pythia.requests)
    assert commit_of(PYTHIA, main) == main and len(pythia.requests) == before


def test_a_branch_that_moves_is_seen_to_have_moved(pythia):
    before = commit_of(PYTHIA, "step1000")
    after = pythia.put(PYTHIA, "step1000", plain("other weights"))
    assert commit_of(PYTHIA, "step1000") == after != before


def test_a_commit_is_looked_up_in_the_users_cache_where_the_hub_is_out_of_reach(pythia, monkeypatch):
    snapshot_download(PYTHIA, revision="step1000")
    repository, = scan_cache_dir(constants.HF_HUB_CACHE).repos
    expected = repository.refs["step1000"].commit_hash
    with pythia.down():
        assert commit_of(PYTHIA, "step1000") == expected
        assert commit_of(PYTHIA, "step3000") == "step3000"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(pythia.requests)
    assert commit_of(PYTHIA, "step1000") == expected and len(pythia.requests) == before


# Files


@pytest.mark.parametrize(("family", "weights", "shards"), [
    ("gpt_neox", "safetensors", 1), ("olmo2", "safetensors", 2), ("gpt_neox", "bin", 1), ("llama", "bin", 3)])
def test_the_files_needed_are_all_that_transformers_opens(hub, family, weights, shards):
    content = tiny_model(family, 1, weights, shards) | tiny_tokenizer() | {
        "README.md": b"# A model", "optimizer.pt": b"0" * 100, "original/consolidated.00.pth": b"1" * 100,
        "tf_model.h5": b"2" * 100, "flax_model.msgpack": b"3" * 100, "generation_config.json": b"{}"}
    commit = hub.put("me/model", "main", content)
    before = len(hub.requests)
    needed = files("me/model", commit).needed
    indexes = [name for name in content if name.endswith(".index.json")]
    assert len(hub.requests) == before + 1 + 2 * len(indexes)  # an index is read: HEAD and GET
    AutoModelForCausalLM.from_pretrained("me/model")
    AutoTokenizer.from_pretrained("me/model")
    opened = {name for name in content if hub.fetched(name)}
    assert opened <= set(needed)
    large = {name for name in content if name.endswith(("safetensors", ".bin"))}
    assert {name for name in needed if not name.endswith((".json", ".txt"))} == large == opened & large
    assert {name: size for name, (size, _) in needed.items()} == {name: len(content[name]) for name in needed}
    assert {name: needed[name][1] for name in large} == {
        name: hashlib.sha256(content[name]).hexdigest() for name in large}


@pytest.mark.parametrize("beside", ["pytorch_model.bin", "model.fp16.safetensors", "model-00001-of-00001.safetensors"])
def test_of_weights_that_are_there_twice_those_that_transformers_opens_are_needed(hub, beside):
    content = tiny_model("gpt_neox", 1)
    commit = hub.put("me/model", "main", content | {beside: b"0" * 100})
    AutoModelForCausalLM.from_pretrained("me/model")
    assert hub.fetched(WEIGHTS) and not hub.fetched(beside)
    assert list(files("me/model", commit).needed) == ["config.json", WEIGHTS]
    assert files("me/model", commit).bytes == sum(map(len, content.values()))


@pytest.mark.parametrize(("content", "message"), [
    ({"config.json": b"{}", "README.md": b"#"}, r"'me/model' at {commit} .* no weights .*it has README.md, config"),
    ({"flax_model.msgpack": b"0"}, "it has flax_model.msgpack"), ({}, "it has no files"),
])
def test_a_repository_without_weights_says_what_it_has(hub, content, message):
    commit = hub.put("me/model", "main", content)
    with pytest.raises(HubError, match=message.format(commit=commit[:12])):
        files("me/model", commit)


def test_files_of_a_branch_are_those_of_the_commit_it_stands_for_now(hub):
    for weights in ("first", "second"):  # not remembered by the branch's name, which may come to mean another commit
        commit = hub.put("me/model", "step1", plain(weights))
        found = files("me/model", "step1")
        assert (found.commit, found.needed[WEIGHTS]) == (commit, (len(weights), sha(weights)))


def test_the_files_of_a_commit_are_asked_for_once(pythia):
    commit = commit_of(PYTHIA, "step0")
    before = len(pythia.requests)
    assert files(PYTHIA, commit) is files(PYTHIA, commit) and len(pythia.requests) == before + 1


def test_many_are_asked_for_at_once_and_an_error_stands_in_its_place(pythia):
    commits = branches(PYTHIA)
    pythia.fault("missing", PYTHIA, "step1000", file="")
    pairs = [(PYTHIA, commit) for commit in commits.values()]
    before = len(pythia.requests)
    found = files_of_all([*pairs, *pairs, ("me/none", "f" * 40)], progress=False)
    assert list(found) == [*pairs, ("me/none", "f" * 40)]
    kinds = [type(each) for each in found.values()]
    assert kinds == [library.Files, HubError, library.Files, HubError]
    assert [found[pair].needed[WEIGHTS][1] for pair in pairs[::2]] == [sha("weights of 0"), sha("weights of 3000")]
    # three revisions, the list of names near the missing one, and the repository that is not there
    assert len(pythia.requests) - before == 5


# Identical weights


def index(names):
    """As transformers writes it: which tensor lies in which file."""
    return json.dumps({"weight_map": {f"layers.{k}.weight": name for k, name in enumerate(names)}}).encode()


def point(step):
    return Checkpoint(PYTHIA, f"step{step}", step)


def test_identical_weights_are_told_from_equal_sizes_and_from_other_configurations(hub):
    contents = {0: plain("same"), 1: plain("same") | {"config.json": b'{"other": 1}'}, 2: plain("emas"),
                3: plain("more weights")}
    found = {point(step): files(PYTHIA, hub.put(PYTHIA, f"step{step}", each)) for step, each in contents.items()}
    assert same_weights(found) == {point(0): "step1", point(1): "step0"}
    assert found[point(0)].weights == found[point(1)].weights == {(WEIGHTS, sha("same"))}


def test_every_one_of_several_revisions_with_the_same_weights_names_the_others(hub):
    steps = (101000, 175000, 300000, 310000)
    found = {point(step): files(PYTHIA, hub.put(PYTHIA, f"step{step}", plain(f"{step > 300000}"))) for step in steps}
    assert same_weights(found) == {point(101000): "step175000, step300000", point(175000): "step101000, step300000",
                                   point(300000): "step101000, step175000"}


def test_one_shared_shard_of_three_is_reported_as_such(hub):
    def shards(*weights):
        names = [f"pytorch_model-{number:05d}-of-00003.bin" for number in (1, 2, 3)]
        return {"config.json": b"{}", "pytorch_model.bin.index.json": index(names),
                **dict(zip(names, (text.encode() for text in weights), strict=True))}

    content = {50000: shards("final", "b", "c"), 51000: shards("d", "e", "f"), 143000: shards("final", "h", "i")}
    found = {point(step): files(PYTHIA, hub.put(PYTHIA, f"step{step}", each)) for step, each in content.items()}
    assert same_weights(found) == {point(50000): "step143000 (1 of 3 files)", point(143000): "step50000 (1 of 3 files)"}


def test_the_same_bytes_under_another_name_are_another_file(hub):
    """A shard is the weights of certain layers: equal bytes elsewhere are no sign of a wrong branch."""
    names = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    found = {point(step): files(PYTHIA, hub.put(PYTHIA, f"step{step}", {
        first: b"a", second: b"b" * step, "model.safetensors.index.json": index(names)}))
        for step, (first, second) in enumerate((names, names[::-1]), 1)}
    assert same_weights(found) == {}


# Failures


def test_too_many_requests_are_waited_out_as_long_as_the_hub_says(pythia):
    pythia.fault("busy", PYTHIA, times=2, value=37)
    assert commit_of(PYTHIA, "step0") == pythia.branches["models", PYTHIA]["step0"]
    assert pythia.waits == [37, 37]


def test_a_whole_window_of_five_minutes_is_waited_out(pythia):
    pythia.fault("busy", PYTHIA, times=1, value=300)  # the hub counts requests by windows of 300 seconds
    assert len(branches(PYTHIA)) == 3 and pythia.waits == [300]


def test_the_hubs_own_header_of_its_rate_limit_is_heeded(hub):
    """As huggingface_hub documents it: `"api";r=0;t=55` is no request left and 55 seconds to the next window."""
    answers = iter([refused(429, ratelimit='"api";r=0;t=55'), None])

    def request():
        if error := next(answers):
            raise error
        return "answer"

    assert asked("me/model", request) == "answer"
    assert hub.waits == [55]


def test_an_absurd_wait_is_not_slept_through(hub):
    hub.put("me/model", "main", plain())
    hub.fault("busy", times=1, value=10**6)
    assert branches("me/model") and hub.waits == [library.LONGEST_WAIT]


def test_a_client_that_another_thread_is_closing_is_tried_again(pythia, monkeypatch):
    """Between two lines of `get_session` another thread may close the client: by huggingface_hub's own, without one."""
    sessions = [None, httpx2.Client()]
    sessions[1].close()
    get_session = huggingface_hub.get_session
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: sessions.pop() if sessions else get_session())
    assert len(branches(PYTHIA)) == 3 and len(pythia.requests) == 1 and pythia.waits == [1, 2]


@pytest.mark.parametrize("ask", [branches, lambda repository: files(repository, "step0")])
def test_a_hub_that_takes_a_request_and_never_answers_is_an_error(pythia, monkeypatch, ask):
    monkeypatch.setattr(library, "ANSWER", 0.1)
    pythia.fault("silent", PYTHIA, value=0.5)
    with pytest.raises(HubError, match=r"'EleutherAI/pythia-14m'.*: the connection to the hub failed \(ReadTimeout"):
        ask(PYTHIA)


def test_server_errors_are_tried_again_with_waits_that_grow(pythia):
    pythia.fault("error", PYTHIA, times=4)
    assert len(branches(PYTHIA)) == 3
    assert [request.status for request in pythia.requests] == [500] * 4 + [200]
    assert pythia.waits == [1, 2, 4, 8]


@pytest.mark.parametrize(("kind", "message"), [
    ("error", r"'EleutherAI/pythia-14m': code 500"), ("busy", r"'EleutherAI/pythia-14m': code 429"),
    ("drop", r"'EleutherAI/pythia-14m': the connection to the hub failed \(RemoteProtocolError"),
    ("cut", r"'EleutherAI/pythia-14m': the connection to the hub failed"),
])
def test_a_failure_that_does_not_end_is_an_error_that_names_the_repository(pythia, kind, message):
    pythia.fault(kind, PYTHIA)
    with pytest.raises(HubError, match=message):
        branches(PYTHIA)
    assert len(pythia.requests) == library.ATTEMPTS and len(pythia.waits) == library.ATTEMPTS - 1


def test_a_hub_that_is_down_is_given_up_at_once(pythia):
    start = time.monotonic()
    with pythia.down(), pytest.raises(HubError, match=r"'EleutherAI/pythia-14m': the connection to .* \(ConnectError"):
        branches(PYTHIA)
    # nobody answers on a port of this machine: milliseconds, not the seconds of five attempts
    assert time.monotonic() - start < 2 and not pythia.waits


def test_an_unknown_repository_is_asked_for_once(hub):
    with pytest.raises(HubError, match=r"'me/none': the hub knows no such repository, or not with this token"):
        branches("me/none")
    assert len(hub.requests) == 1 and not hub.waits


def test_a_branch_that_is_not_there_names_those_like_it(pythia):
    with pytest.raises(HubError, match=r"'EleutherAI/pythia-14m' has no revision 'step300'\. Did you mean .*step3000"):
        files(PYTHIA, "step300")
    with pytest.raises(HubError, match=r"has no revision 'zzz'\.$"):
        files(PYTHIA, "zzz")


def test_a_branch_that_is_listed_and_not_served_is_an_error(pythia):
    pythia.fault("missing", PYTHIA, "step3000")
    with pytest.raises(HubError, match=rf"'{PYTHIA}' has no revision '{branches(PYTHIA)['step3000']}'"):
        files(PYTHIA, branches(PYTHIA)["step3000"])


def test_a_file_that_is_not_there_is_not_taken_for_a_repository(pythia):
    with pytest.raises(HubError, match=r"'EleutherAI/pythia-14m' at revision 'step0': code 404\."):
        asked(PYTHIA, lambda: hf_hub_download(PYTHIA, "pytorch_model.bin", revision="step0"), "step0")


def test_a_gated_repository_says_how_to_get_in(hub):
    commit = hub.put("meta-llama/Llama-3.1-8B", "main", plain())
    hub.fault("gated")
    assert files("meta-llama/Llama-3.1-8B", commit)  # public on the hub, as are the branches
    with pytest.raises(HubError, match=r"'meta-llama/Llama-3.1-8B' at revision 'main' is gated: .*HF_TOKEN"):
        asked("meta-llama/Llama-3.1-8B", lambda: snapshot_download("meta-llama/Llama-3.1-8B"), "main")


def test_offline_nothing_is_asked_for(pythia, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="'EleutherAI/pythia-14m' was not looked up: HF_HUB_OFFLINE is set"):
        branches(PYTHIA)
    assert not library.reachable() and not pythia.requests


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_what_is_wrong_with_this_machine_is_not_blamed_on_the_connection(hub, number):
    def request():
        raise OSError(number, "of this machine", "a/file")

    with pytest.raises(OSError, match="of this machine: 'a/file'") as error:
        asked("me/model", request)
    assert error.value.errno == number and not isinstance(error.value, HubError) and not hub.waits


@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "reset by peer"), TimeoutError("timed out")])
def test_a_connection_that_the_system_breaks_is_a_lost_connection(error):
    def request():
        raise error

    with pytest.raises(HubError, match=f"the connection to the hub failed .{type(error).__name__}"):
        asked("me/model", request)


def test_a_client_that_another_thread_has_closed_is_a_short_failure(pythia):
    """huggingface_hub closes the client that all threads share when one of them cannot connect."""
    with httpx2.Client() as closed, httpx2.Client() as fresh:
        closed.close()
        clients = iter([closed, fresh])
        url = f"{pythia.endpoint}/api/models/{PYTHIA}/refs"
        assert asked(PYTHIA, lambda: next(clients).get(url).status_code) == 200 and pythia.waits == [1]


# Near names


def test_near_names_are_a_hint_or_nothing():
    assert near("pythia-1.4", ["pythia-1b", "pythia-1.4b", "olmo2-1b"]).startswith(" Did you mean pythia-1.4b")
    assert near("something else", ["pythia-1b", "olmo2-1b"]) == near("pythia", []) == ""


# Folders of one repository


def test_folders_are_those_with_a_configuration_and_their_commit_is_that_of_the_branch(hub):
    commit = hub.put("me/run", "main", plain() | {f"{place}/{name}": content for place in ("b/step-2", "step-1")
                                                  for name, content in plain().items()} | {"logs/x.txt": b""})
    assert folders("me/run") == {f"main:{place}": f"{commit}:{place}" for place in ("b/step-2", "step-1")}
    assert commit_of("me/run", "main:step-1") == f"{commit}:step-1" == commit_of("me/run", f"{commit}:step-1")
    assert commit_of("me/run", "main") == commit
    with pytest.raises(HubError, match="'me/run' has no revision 'mian'"):
        folders("me/run", "mian")


@pytest.mark.parametrize(("tokenizer", "needed"), [
    ("", ["tokenizer.json"]), ("a/", ["a/tokenizer.json"]), ("a/step-1/", ["a/step-1/tokenizer.json"]), ("b/", [])])
def test_a_folder_needs_its_own_files_and_a_tokenizer_from_it_or_above(hub, tokenizer, needed):
    put = {f"a/step-{step}/{name}": content for step in (1, 2) for name, content in plain(f"of {step}").items()}
    put |= {"a/step-1/optimizer.pt": b"0", "a/step-1/runs/config.json": b"{}", f"{tokenizer}tokenizer.json": b"{}"}
    commit = hub.put("me/run", "main", put)
    found = files("me/run", "main:a/step-1")
    assert sorted(found.needed) == sorted(["a/step-1/config.json", f"a/step-1/{WEIGHTS}", *needed])
    assert (found.commit, found.folder, found.revision) == (commit, "a/step-1", f"{commit}:a/step-1")
    assert found.bytes == sum(len(put[name]) for name in found.needed)
    assert found.weights == {(WEIGHTS, sha("of 1"))}


def test_a_folder_that_is_not_there_is_an_error_that_names_it(hub):
    hub.put("me/run", "main", {"step-1/config.json": b"{}"})
    for place in ("step-1", "step-2"):
        with pytest.raises(HubError, match=rf"'me/run' at [0-9a-f]{{12}}:{place} cannot be opened: it has no weights"):
            files("me/run", f"main:{place}")


@pytest.mark.parametrize(("revision", "parts"), [
    (None, ("main", "")), ("main", ("main", "")), ("refs/pr/1", ("refs/pr/1", "")), ("main:a/b", ("main", "a/b")),
    ("main:a/", ("main", "a"))])
def test_a_revision_is_told_from_the_folder_in_it_as_git_does(revision, parts):
    assert parted(revision) == parts


def test_upwards_from_a_folder_is_to_the_top():
    assert upwards("a/b/c") == ["a/b/c", "a/b", "a", ""] and upwards("") == [""]
