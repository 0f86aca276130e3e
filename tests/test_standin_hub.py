"""The stand-in hub, held against the real client libraries.

Trusted: huggingface_hub, transformers and datasets as installed. The stand-in is good if they accept it as the hub and
give back what was put in; how they answer each fault is recorded here too, for the code that builds on them.
"""

import sys
import time
from pathlib import Path

import httpx2
import pytest
import torch
from huggingface_hub import HfApi, HfFileSystem, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.sha import git_hash
from limits import check_resets, run
from standin_hub import StandinHub, fineweb, tiny_model, tiny_state, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

PYTHIA, WEIGHTS = "EleutherAI/pythia-1b", "model.safetensors"
FINEWEB = "HuggingFaceFW/fineweb"


@pytest.fixture
def pythia(hub):
    """The hub with three steps of a Pythia, each of other weights."""
    for step in (0, 1000, 3000):
        hub.put(PYTHIA, f"step{step}", tiny_model("gpt_neox", step) | tiny_tokenizer(pad=False))
    return hub


def commit(revision):
    return {branch.name: branch.target_commit for branch in HfApi().list_repo_refs(PYTHIA).branches}[revision]


def same(model, state):
    found = model.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


# Reading


def test_refs_list_the_branches_with_their_commits(pythia):
    refs = HfApi().list_repo_refs(PYTHIA)
    assert [branch.name for branch in refs.branches] == ["step0", "step1000", "step3000"]
    assert all(constants.REGEX_COMMIT_OID.fullmatch(branch.target_commit) for branch in refs.branches)
    assert len({branch.target_commit for branch in refs.branches}) == 3


def test_an_info_states_sizes_and_the_hashes_that_git_and_the_client_compute(pythia):
    files = tiny_model("gpt_neox", 1000) | tiny_tokenizer(pad=False)
    info = HfApi().model_info(PYTHIA, revision="step1000", files_metadata=True)
    assert (info.id, info.sha, info.gated) == (PYTHIA, commit("step1000"), False)
    assert {sibling.rfilename: sibling.size for sibling in info.siblings} == {
        name: len(content) for name, content in files.items()}
    small = {sibling.rfilename: sibling.blob_id for sibling in info.siblings if not sibling.lfs}
    assert small == {name: git_hash(content) for name, content in files.items() if name != WEIGHTS}
    bare = HfApi().model_info(PYTHIA, revision="step1000")
    assert [sibling.size for sibling in bare.siblings] == [None] * len(files)


@pytest.mark.parametrize("revision", ["step1000", "its commit"])
def test_a_snapshot_holds_the_files_and_the_client_finds_their_checksums_right(pythia, revision):
    revision = commit("step1000") if revision == "its commit" else revision
    folder = snapshot_download(PYTHIA, revision=revision)
    files = tiny_model("gpt_neox", 1000) | tiny_tokenizer(pad=False)
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == files
    checked = HfApi().verify_repo_checksums(PYTHIA, revision=revision)
    assert (checked.checked_count, checked.mismatches, checked.missing_paths) == (len(files), [], [])


def test_a_commit_stays_when_its_branch_moves_on(pythia):
    before = commit("step0")
    pythia.put(PYTHIA, "step0", {"config.json": b"{}"})
    assert commit("step0") != before
    assert hf_hub_download(PYTHIA, WEIGHTS, revision=before)


def test_trees_and_paths_are_listed_as_the_file_system_needs_them(hub):
    hub.put(PYTHIA, "main", {"config.json": b"{}", "a/b/c.bin": b"123", "a/d.txt": b"4"})
    assert sorted(entry.path for entry in HfApi().list_repo_tree(PYTHIA)) == ["a", "config.json"]
    whole = {entry.path: entry for entry in HfApi().list_repo_tree(PYTHIA, recursive=True, expand=True)}
    assert sorted(whole) == ["a", "a/b", "a/b/c.bin", "a/d.txt", "config.json"]
    assert whole["a/b/c.bin"].lfs.size == 3 and whole["a/b/c.bin"].last_commit.oid == commit("main")
    assert [entry.path for entry in HfApi().list_repo_tree(PYTHIA, "a")] == ["a/b", "a/d.txt"]
    entry, = HfApi().get_paths_info(PYTHIA, "a/d.txt")
    assert (entry.path, entry.size, entry.blob_id) == ("a/d.txt", 1, git_hash(b"4"))
    assert HfFileSystem().glob(f"{PYTHIA}/a/**/*.bin") == [f"{PYTHIA}/a/b/c.bin"]
    assert HfFileSystem().cat_file(f"{PYTHIA}/a/b/c.bin", start=1, end=3) == b"23"
    with pytest.raises(EntryNotFoundError):
        list(HfApi().list_repo_tree(PYTHIA, "additional_chat_templates"))


@pytest.mark.parametrize("family", ["gpt_neox", "olmo2", "llama"])
@pytest.mark.parametrize(("weights", "shards"), [("safetensors", 1), ("bin", 1), ("safetensors", 2), ("bin", 2)])
def test_models_open_with_the_weights_of_their_branch(hub, family, weights, shards):
    for step in (1, 2):
        hub.put("me/model", f"step{step}", tiny_model(family, step, weights, shards))
    for step in (1, 2):
        model, report = AutoModelForCausalLM.from_pretrained("me/model", revision=f"step{step}",
                                                             output_loading_info=True)
        assert model.config.model_type == family and not any(report.values())
        assert same(model, tiny_state(family, step)) and not same(model, tiny_state(family, 3 - step))


@pytest.mark.parametrize("pad", [True, False])
def test_a_tokenizer_opens_with_or_without_a_pad_token(hub, pad):
    hub.put("me/model", "step1", tiny_tokenizer(pad))
    tokenizer = AutoTokenizer.from_pretrained("me/model", revision="step1")
    assert (tokenizer.pad_token is not None) is pad
    assert tokenizer.decode(tokenizer("the lazy dog")["input_ids"]) == "the lazy dog"


def test_weights_that_two_branches_share_are_downloaded_once(pythia):
    pythia.put(PYTHIA, "main", tiny_model("gpt_neox", 3000))
    for revision in ("step3000", "main"):
        model = AutoModelForCausalLM.from_pretrained(PYTHIA, revision=revision)
        assert same(model, tiny_state("gpt_neox", 3000))
    assert len(pythia.fetched(WEIGHTS)) == 1


def test_datasets_streams_the_rows_of_a_configuration(hub):
    from datasets import load_dataset

    documents = [f"document number {number}" for number in range(25)]
    hub.put(FINEWEB, "main", fineweb(documents, shards=2, row_group=4), kind="datasets")
    rows = list(load_dataset(FINEWEB, "sample-10BT", split="train", streaming=True))
    assert [row["text"] for row in rows] == documents
    assert list(rows[0]) == ["text", "id", "dump", "url", "date", "file_path", "language", "language_score",
                             "token_count"]
    assert (type(rows[0]["language_score"]), rows[0]["token_count"]) == (float, 3)


def test_a_child_process_sees_the_hub_too(pythia):
    code = f"from huggingface_hub import HfApi; print(HfApi().model_info({PYTHIA!r}, revision='step0').sha)"
    child = run([sys.executable, "-c", code], check=True)
    assert child.stdout.strip() == commit("step0")


# Faults


def test_a_download_cut_off_is_resumed_where_it_stopped(pythia):
    pythia.fault("cut", PYTHIA, "step3000", WEIGHTS, times=2)
    path = hf_hub_download(PYTHIA, WEIGHTS, revision="step3000")
    content = tiny_model("gpt_neox", 3000)[WEIGHTS]
    first, second, third = pythia.fetched(WEIGHTS)
    assert (first.status, first.range, first.sent) == (200, None, len(content) // 2)
    assert second.status == third.status == 206
    # In whole pieces of DOWNLOAD_CHUNK_SIZE: what came of the last one is thrown away.
    assert second.range == f"bytes={first.sent // 2**12 * 2**12}-"
    assert Path(path).read_bytes() == content
    assert pythia.waits == [1, 1]


def test_a_download_that_gets_no_further_is_given_up_and_the_next_one_starts_over(pythia):
    pythia.fault("cut", file=WEIGHTS, times=1)
    pythia.fault("cut", file=WEIGHTS, times=5, value=0)
    with pytest.raises(httpx2.RemoteProtocolError, match="peer closed connection"):
        hf_hub_download(PYTHIA, WEIGHTS, revision="step0")
    assert len(pythia.fetched(WEIGHTS)) == 6
    assert hf_hub_download(PYTHIA, WEIGHTS, revision="step0")
    assert pythia.fetched(WEIGHTS)[-1].range is None


def test_a_slow_file_comes_at_its_rate(pythia):
    size, start = len(tiny_model("gpt_neox", 0)[WEIGHTS]), time.monotonic()
    pythia.fault("slow", PYTHIA, "step0", WEIGHTS, value=4 * size)
    hf_hub_download(PYTHIA, WEIGHTS, revision="step0")
    assert time.monotonic() - start >= 0.25


def test_a_connection_dropped_without_an_answer_is_an_error_unless_in_a_download(pythia):
    pythia.fault("drop", PYTHIA, file=WEIGHTS, method="GET", times=1)
    assert hf_hub_download(PYTHIA, WEIGHTS, revision="step0")
    pythia.fault("drop", PYTHIA, file="", times=1)
    with pytest.raises(httpx2.RemoteProtocolError, match="Server disconnected without sending a response"):
        HfApi().list_repo_refs(PYTHIA)


def test_too_many_requests_are_waited_out_in_downloads_but_not_in_infos(pythia):
    pythia.fault("busy", PYTHIA, "step0", WEIGHTS, method="GET", times=2, value=7)
    assert hf_hub_download(PYTHIA, WEIGHTS, revision="step0")
    assert [request.status for request in pythia.fetched(WEIGHTS)] == [429, 429, 200]
    assert pythia.waits == [8, 8]  # Retry-After and a second
    pythia.fault("busy", PYTHIA, file="", times=2, value=7)
    with pytest.raises(HfHubHTTPError, match="429 Too Many Requests"):
        HfApi().list_repo_refs(PYTHIA)
    with pytest.raises(LocalEntryNotFoundError, match="429 Too Many Requests"):
        snapshot_download(PYTHIA, revision="step1000")


def test_a_server_error_ends_a_download_and_is_tried_again_before_it(pythia):
    pythia.fault("error", PYTHIA, "step0", WEIGHTS, method="HEAD", times=1)
    pythia.fault("error", PYTHIA, "step0", WEIGHTS, method="GET", times=1)
    with pytest.raises(HfHubHTTPError, match="500 Internal Server Error"):
        hf_hub_download(PYTHIA, WEIGHTS, revision="step0")
    assert [(request.method, request.status) for request in pythia.requests] == [
        ("HEAD", 500), ("HEAD", 302), ("GET", 500)]
    assert hf_hub_download(PYTHIA, WEIGHTS, revision="step0")


def test_a_server_that_always_fails_is_given_up(pythia):
    pythia.fault("error", PYTHIA, value=503)
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(PYTHIA, WEIGHTS, revision="step0")
    assert pythia.waits == [1, 2, 4, 8, 8]


def test_a_wrong_checksum_is_not_noticed_until_it_is_looked_at(pythia):
    pythia.fault("corrupt", PYTHIA, "step0", WEIGHTS)
    path = hf_hub_download(PYTHIA, WEIGHTS, revision="step0")
    right, content = tiny_model("gpt_neox", 0)[WEIGHTS], Path(path).read_bytes()
    assert content != right and len(content) == len(right)
    mismatch, = HfApi().verify_repo_checksums(PYTHIA, revision="step0").mismatches
    assert (mismatch["path"], mismatch["algorithm"]) == (WEIGHTS, "sha256")


def test_what_is_not_there_is_refused_by_name(pythia):
    with pytest.raises(RevisionNotFoundError):
        snapshot_download(PYTHIA, revision="step7")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(PYTHIA, "pytorch_model.bin", revision="step0")
    for token in (None, "hf_token"):
        with pytest.raises(RepositoryNotFoundError):
            HfApi(token=token).model_info("EleutherAI/pythia-2b")
    pythia.fault("missing", PYTHIA, "step3000")
    assert commit("step3000")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(PYTHIA, WEIGHTS, revision="step3000")
    assert hf_hub_download(PYTHIA, WEIGHTS, revision="step1000")


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("hf_token", 403)])
def test_a_gated_repository_shows_its_info_and_keeps_its_files(pythia, token, status):
    pythia.fault("gated", PYTHIA)
    assert HfApi(token=token).model_info(PYTHIA, revision="step0").gated == "auto"
    with pytest.raises(GatedRepoError) as error:
        snapshot_download(PYTHIA, revision="step0", token=token)
    assert error.value.response.status_code == status


def test_a_hub_that_is_down_refuses_and_comes_back(pythia):
    path = hf_hub_download(PYTHIA, WEIGHTS, revision="step0")
    with pythia.down():
        assert hf_hub_download(PYTHIA, WEIGHTS, revision="step0") == path
        with pytest.raises(LocalEntryNotFoundError):
            hf_hub_download(PYTHIA, WEIGHTS, revision="step1000")
        with pytest.raises(httpx2.ConnectError, match="refused"):
            HfApi().list_repo_refs(PYTHIA)
    assert hf_hub_download(PYTHIA, WEIGHTS, revision="step1000")


def test_a_snapshot_asked_for_while_the_hub_is_down_may_lack_files_without_a_word(pythia):
    hf_hub_download(PYTHIA, WEIGHTS, revision="step0")
    with pythia.down():
        folder = snapshot_download(PYTHIA, revision="step0")
    assert [path.name for path in Path(folder).iterdir()] == [WEIGHTS]


def test_streaming_goes_on_after_short_failures(hub):
    from datasets import load_dataset

    documents = [f"document number {number}" for number in range(30)]
    hub.put(FINEWEB, "main", fineweb(documents, row_group=5), kind="datasets")
    for kind in ("cut", "error", "busy"):
        hub.fault(kind, FINEWEB, file="sample/*", times=1)
    rows = load_dataset(FINEWEB, "sample-10BT", split="train", streaming=True)
    assert [row["text"] for row in rows] == documents
    assert not any(fault.times for fault in hub.faults)


def test_a_client_that_resets_before_it_is_accepted_does_not_hold_up_the_hub():
    hub = StandinHub()
    for server in hub.servers:
        server.server_activate()
        check_resets(server)
        server.server_close()


def test_an_unknown_fault_is_refused(hub):
    with pytest.raises(ValueError, match=r"slow, silent, cut, .*got 'flood'"):
        hub.fault("flood")


# The fixture


def test_a_test_starts_with_an_empty_hub_and_an_empty_cache(hub):
    assert not hub.requests and not hub.faults
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download(PYTHIA, WEIGHTS, revision="step0")


def test_without_the_fixture_nothing_is_asked_for():
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().list_repo_refs(PYTHIA)
