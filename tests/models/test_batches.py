"""Batches by length, token budgets and what is said where memory runs out.

Trusted: a plain loop over rows for padding, and torch's own MemTracker, which sums up the tensors alive after every
operation, for the memory a token takes. Free memory is set by hand, on devices that need not exist.
"""

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXModel, LlamaConfig, LlamaModel, Olmo2Config, Olmo2Model

from reptrace.models import batches
from reptrace.models.batches import AUTO, TooLittleMemoryError, is_out_of_memory, largest, padded, token_budget

WIDTH, TOKENS = 64, 4 * 64
CLASSES = {"GPTNeoX": (GPTNeoXModel, GPTNeoXConfig, 256), "Llama": (LlamaModel, LlamaConfig, 176),
           "Olmo2": (Olmo2Model, Olmo2Config, 176)}
CPU, GPU, OTHER_GPU = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)


def decoder(name="GPTNeoX", dtype=torch.float32):
    model, config, inner = CLASSES[name]
    return model(config(vocab_size=50, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=inner, max_position_embeddings=512, bos_token_id=1, eos_token_id=2,
                        pad_token_id=0)).to(dtype).eval()


def free(monkeypatch, **sizes):
    """Devices by type and number -> bytes said to be free."""
    monkeypatch.setattr(batches, "free_bytes", lambda device: sizes.get(str(device).replace(":", "")))


# Batches


def test_padding_keeps_every_token_in_its_place_and_knows_the_last(rng):
    sequences = [rng.integers(0, 99, length) for length in (7, 1, 7, 3)]
    ids, last = padded(sequences)
    assert ids.dtype == last.dtype == torch.int64 and ids.shape == (4, 7)
    for row, sequence in enumerate(sequences):
        assert ids[row].tolist() == [*sequence, *[0] * (7 - len(sequence))]
        assert ids[row, last[row]] == sequence[-1] and last[row] == len(sequence) - 1


def test_longest_sequences_come_first_and_equal_ones_stay_in_order():
    assert batches.by_length([2, 5, 2, 9, 5]) == [3, 1, 4, 0, 2]


# Token budgets


@pytest.mark.parametrize(("batch_size", "longest", "budget"), [
    (AUTO, 64, 4096), (16, 64, 1024), (1, 64, 64), (1000, 64, 4096)])
def test_a_cpu_batch_is_never_larger_than_its_cache_likes(batch_size, longest, budget):
    assert token_budget(decoder(), longest, batch_size, [CPU]) == budget  # 2**18 / WIDTH = 4096


def test_a_gpu_batch_of_a_given_size_is_that_many_of_the_longest():
    assert token_budget(decoder(), 100, 1000, [GPU]) == 100_000


@pytest.mark.parametrize(("tokens_free", "budget"), [(1500, 1024), (2000, 1024), (2600, 2048), (10**9, 32_768), (0, 1)])
def test_auto_on_a_gpu_is_the_power_of_two_that_fits_into_four_fifths_of_the_free_memory(tokens_free, budget,
                                                                                         monkeypatch):
    model = decoder()
    free(monkeypatch, cuda0=tokens_free * batches.bytes_a_token(model))
    assert token_budget(model, 64, AUTO, [GPU]) == budget


def test_auto_on_several_gpus_goes_by_the_fullest(monkeypatch):
    model = decoder()
    free(monkeypatch, cuda0=10**12, cuda1=1500 * batches.bytes_a_token(model))
    assert token_budget(model, 64, AUTO, [GPU, OTHER_GPU]) == 1024


def test_auto_where_the_memory_is_not_known_is_sixteen_sequences():
    assert token_budget(decoder(), 64, AUTO, [torch.device("mps")]) == 16 * 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CLASSES)
def test_the_memory_estimated_for_a_token_is_above_what_it_takes_but_not_by_much(name, dtype):
    from torch.distributed._tools.mem_tracker import MemTracker

    model = decoder(name, dtype)
    with torch.inference_mode(), MemTracker() as tracker:
        model(torch.ones(4, TOKENS // 4, dtype=torch.long), use_cache=False)
    peak = tracker.get_tracker_snapshot("peak")[CPU]
    activations = sum(size for kind, size in peak.items() if "ACT" in str(kind)) / TOKENS
    assert activations <= batches.bytes_a_token(model) <= 2.1 * activations


def test_free_memory_of_the_cpu_is_known_on_linux_and_none_elsewhere():
    psutil = pytest.importorskip("psutil")
    found = batches.free_bytes(CPU)
    # other processes take and give some between the two readings
    assert found is None or found == pytest.approx(psutil.virtual_memory().available, rel=0.2)
    assert batches.free_bytes(torch.device("mps")) is None


# Out of memory


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as found:
        torch.empty(10**15)  # the CPU allocator's own words
    assert is_out_of_memory(found.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as found:
        torch.ones(2, 3) @ torch.ones(2, 3)
    assert not is_out_of_memory(found.value)
    assert not is_out_of_memory(ValueError("can't allocate memory"))


@pytest.mark.parametrize(("capacity", "found"), [(0, 0), (1, 1), (3, 2), (5, 5), (11, 5)])
def test_the_largest_batch_is_found_by_halves(capacity, found):
    assert largest(list(range(11)), lambda rows: len(rows) <= capacity) == found


def test_a_model_larger_than_the_free_memory_is_an_error_before_it_is_loaded(monkeypatch):
    free(monkeypatch, cuda0=10**9)
    with pytest.raises(TooLittleMemoryError, match=r"it needs 2\.0 GB, cuda:0 has 1\.0 GB free.*device=\"auto\""):
        batches.check_memory(2 * 10**9, GPU, "it")
    batches.check_memory(10**9, GPU, "it")
    batches.check_memory(10**18, torch.device("mps"), "it")  # not known: no objection


@pytest.mark.parametrize("wrong", [0, -1, 2.5, "all", "16"])
def test_a_batch_size_is_a_positive_whole_number_or_auto(wrong):
    batches.check_batch_size(AUTO)
    batches.check_batch_size(3)
    with pytest.raises(ValueError, match='batch_size must be a positive whole number or "auto"'):
        batches.check_batch_size(wrong)
