"""Rotary embeddings that depend on the length of what passes through.

Trusted: transformers' own states, losses and logits of each sequence alone, unpadded, by a copy of the model that has
seen no other. Models are tiny and random, in float64, with weights large enough that positions matter.
"""

import copy

import numpy as np
import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
)

from reptrace.memorization.questions import model_log_probabilities
from reptrace.models.hidden_states import extract, last_token_states
from reptrace.models.positions import context
from reptrace.tasks import evaluation

ORIGINAL, LONGEST = 16, 64
SHAPE = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0, "initializer_range": 0.3}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0, 9.0, 16.0, 30.0]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": ORIGINAL, **FACTORS}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}


def phi3():
    return Phi3ForCausalLM(Phi3Config(**SHAPE, max_position_embeddings=LONGEST,
                                      original_max_position_embeddings=ORIGINAL, rope_parameters=LONGROPE))


def phimoe():
    parameters = LONGROPE | {"short_mscale": 1.0, "long_mscale": 1.3}
    return PhimoeForCausalLM(PhimoeConfig(**SHAPE, max_position_embeddings=LONGEST, num_local_experts=2,
                                          original_max_position_embeddings=ORIGINAL, rope_parameters=parameters))


def dynamic():
    return LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=ORIGINAL, rope_parameters=DYNAMIC))


def one_kind_of_layers():
    config = Gemma3TextConfig(**SHAPE, head_dim=8, max_position_embeddings=ORIGINAL, sliding_window=8,
                              layer_types=["sliding_attention", "full_attention"],
                              rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                                               "full_attention": DYNAMIC})
    return Gemma3ForCausalLM(config)


MODELS = [phi3, phimoe, dynamic, one_kind_of_layers]


@pytest.fixture(params=MODELS, ids=lambda make: make.__name__)
def model(request):
    torch.manual_seed(0)
    return request.param().to(torch.float32 if request.param is phimoe else torch.float64).eval()


def close(found, expected, atol=1e-10):
    """Equal but for the rounding of other batches: 1e-12 of states up to 10 in float64, 1e-6 in float32."""
    dtype = found.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4 if dtype == torch.float32 else atol)


@pytest.fixture
def sequences():
    """Lengths on either side of the original context, and on its edges, out of order."""
    lengths = [5, 40, 16, 17, 3, 64, 15, 40, 18, 33, 16, 2]
    return [torch.randint(1, 97, (length,)).tolist() for length in lengths]


def alone(model, sequence):
    return copy.deepcopy(model)(input_ids=torch.tensor([sequence]), output_hidden_states=True, use_cache=False)


@pytest.mark.parametrize("batch_size", [1, 3, 16, "auto"])
def test_every_sequence_has_the_states_that_it_has_alone(model, sequences, batch_size):
    found = last_token_states(model, sequences, ["final"], batch_size)["final"]
    with torch.no_grad():
        expected = torch.stack([alone(model, sequence).hidden_states[-1][0, -1] for sequence in sequences])
        mixed = copy.deepcopy(model)(input_ids=torch.tensor([sequences[4] + [0] * 61]), output_hidden_states=True)
    close(found, expected)
    control = (mixed.hidden_states[-1][0, 2] - expected[4]).abs().max()
    assert control > 1e-3  # as long as the longest, the short one is another


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.gpu
@pytest.mark.parametrize("batch_size", [3, "auto"])
def test_a_gpu_keeps_the_lengths_apart_too(model, sequences, batch_size):
    expected = last_token_states(model, sequences, ["final"], batch_size)["final"]
    found = last_token_states(copy.deepcopy(model).cuda(), sequences, ["final"], batch_size)["final"]
    close(found, expected, atol=2e-5)  # rotary angles are float32 in any model, and a GPU rounds their sines otherwise


def test_the_order_of_the_sequences_does_not_matter(model, sequences):
    found = last_token_states(model, sequences)["final"]
    order = torch.randperm(len(sequences)).tolist()
    again = last_token_states(model, [sequences[k] for k in order])["final"]
    close(again, found[order])


@pytest.mark.parametrize("batch_size", [1, 4, 12])
def test_losses_are_those_of_each_sequence_alone(model, sequences, batch_size):
    found = evaluation.loss(model, sequences, batch_size)
    with torch.no_grad():
        own = [copy.deepcopy(model)(input_ids=torch.tensor([s]), labels=torch.tensor([s])).loss.item()
               for s in sequences]
    np.testing.assert_allclose(found["items"], own, rtol=2e-5)  # transformers takes the loss in float32


@pytest.mark.parametrize("batch_size", [1, 4, 12])
def test_answers_are_scored_as_each_would_be_alone(model, sequences, batch_size):
    prompts, answers = [s[:-1] for s in sequences], [s[-1:] for s in sequences]
    found = model_log_probabilities(model, prompts, answers, batch_size, progress=False)
    with torch.no_grad():
        # what scores an answer is the prompt's last logits: its last token itself is not read
        expected = [alone(model, prompt).logits[0, -1].log_softmax(-1)[answer[0]].item()
                    for prompt, answer in zip(prompts, answers, strict=True)]
    close(torch.tensor(found, dtype=model.dtype), torch.tensor(expected, dtype=model.dtype))


def test_the_model_is_left_as_it_was(model, sequences):
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    before = alone(model.train(), sequences[0]).logits
    last_token_states(model, sequences)
    if any("inv_freq" in name for name in buffers) and not isinstance(model, (Phi3ForCausalLM, PhimoeForCausalLM)):
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    found = model(input_ids=torch.tensor([sequences[0]]), use_cache=False).logits
    close(found, before)
    found.sum().backward()  # nothing of the measurement's inference mode is left in it


@pytest.mark.parametrize(("make", "reach"), [(phi3, LONGEST), (dynamic, 4 * ORIGINAL), (one_kind_of_layers, 64)])
def test_the_context_is_as_long_as_the_rotary_embedding_reaches(make, reach):
    model = make()
    assert context(model.config) == reach
    last_token_states(model, [[1] * reach, [1, 2]])
    with pytest.raises(ValueError, match=rf"sequence 0 has {reach + 1} tokens, the model's context is {reach}"):
        last_token_states(model, [[1] * (reach + 1), [1, 2]])


# What is not known beforehand


def depends_on_the_longest(module, args, kwargs):
    hidden = args[0] if args else kwargs["hidden_states"]
    scaled = hidden * (1 + hidden.shape[1] / 50)
    return ((scaled, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": scaled})


def depends_on_the_number(module, args, kwargs):
    hidden = args[0] if args else kwargs["hidden_states"]
    scaled = hidden * len(hidden)
    return ((scaled, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": scaled})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dependence", [depends_on_the_longest, depends_on_the_number])
def test_a_model_whose_states_depend_on_the_batch_is_measured_one_sequence_at_a_time(dependence, dtype, sequences,
                                                                                     capsys):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, max_position_embeddings=LONGEST)).to(dtype).eval()
    plain = extract(model, sequences, ("final",), 8)
    assert plain.token_budget == 8 * LONGEST and capsys.readouterr().err == ""  # an ordinary one is not suspected
    model.model.layers[1].register_forward_pre_hook(dependence, with_kwargs=True)
    found = extract(model, sequences, ("final",), 8)
    assert found.token_budget == LONGEST
    assert "depends on what else is in its batch" in capsys.readouterr().err
    with torch.no_grad():
        expected = torch.stack([model.model(input_ids=torch.tensor([s])).last_hidden_state[0, -1] for s in sequences])
    # each alone in both, but for a padding token's absence: the rounding of the dtype, of states near 1
    atol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(found.features["final"], expected.to(found.features["final"].dtype), rtol=0, atol=atol)
