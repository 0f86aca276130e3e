"""Models whose states hang on what else is in the batch, or on what they have read before.

Rotary embeddings as some models' own code has them, of classes that the library does not know. Trusted: transformers'
states and losses of each sequence alone, unpadded, by a copy of the model that has seen no other. Models are tiny and
random, in float64, with weights large enough that positions matter.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from reptrace.memorization.questions import model_log_probabilities
from reptrace.models import independence
from reptrace.models.hidden_states import extract, last_token_states
from reptrace.models.independence import LEAST, RemembersError
from reptrace.tasks import evaluation

ORIGINAL, LONGEST, HEAD = 16, 64, 8
RNG = np.random.default_rng(0)
SEQUENCES = [RNG.integers(1, 97, int(n)).tolist() for n in RNG.integers(9, LONGEST + 1, 40)]
WITH_ONE_TOKEN = [[5], *SEQUENCES]


def angles(x, positions, frequencies):
    turned = (frequencies[None, :, None] @ positions[:, None, :].double()).transpose(1, 2)
    both = torch.cat((turned, turned), -1)
    return both.cos().to(x.dtype), both.sin().to(x.dtype)


def frequencies(base=10_000.0, factors=1.0):
    return 1 / (factors * base ** (torch.arange(0, HEAD, 2).double() / HEAD))


class ByBatch(nn.Module):
    """Phi-3's own code: factors by the longest sequence of the batch."""

    def forward(self, x, position_ids):
        factors = torch.tensor([4.0, 9.0, 16.0, 30.0]) if int(position_ids.max()) >= ORIGINAL else 1.0
        return angles(x, position_ids, frequencies(factors=factors))


class Remembering(nn.Module):
    """Dynamic NTK as InternLM2's own code has it: frequencies by the longest sequence that it ever met."""

    def __init__(self):
        super().__init__()
        self.longest = ORIGINAL

    def forward(self, x, position_ids):
        self.longest = max(self.longest, int(position_ids.max()) + 1)
        base = 10_000.0 * (4 * self.longest / ORIGINAL - 3) ** (HEAD / (HEAD - 2))
        return angles(x, position_ids, frequencies(base))


def model(rotary=None):
    torch.manual_seed(0)
    found = LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                         intermediate_size=48, max_position_embeddings=LONGEST, pad_token_id=0,
                                         initializer_range=0.3)).double().eval()
    if rotary:
        found.model.rotary_emb = rotary
    return found


@torch.no_grad()
def alone(found, sequences):
    outputs = [copy.deepcopy(found)(torch.tensor([s]), labels=torch.tensor([s]), output_hidden_states=True)
               for s in sequences]
    nats = [float(output.loss) * (len(s) - 1) for s, output in zip(sequences, outputs, strict=True)]
    return torch.stack([output.hidden_states[-1][0, -1] for output in outputs]), nats


def answers(found, sequences):
    """ln P of all but the first token of each."""
    return model_log_probabilities(found, [s[:1] for s in sequences], [s[1:] for s in sequences], 8, progress=False)


@pytest.mark.parametrize("batch_size", ["auto", 1, 16])
@pytest.mark.parametrize("sequences", [SEQUENCES, WITH_ONE_TOKEN], ids=["9 to 64", "one of one token"])
def test_where_a_state_depends_on_the_batch_each_sequence_passes_alone(sequences, batch_size, capsys):
    found = model(ByBatch())
    extracted = extract(found, sequences, batch_size=batch_size)
    # float64 in other shapes differs by 1e-12; a batch's factors by more than 1e-2
    torch.testing.assert_close(extracted.features["final"], alone(found, sequences)[0], rtol=0, atol=1e-9)
    assert extracted.token_budget == max(map(len, sequences))
    assert "depends on what else is in its batch: each passes alone" in capsys.readouterr().err


def test_the_loss_and_answers_scores_are_those_of_each_sequence_alone(capsys):
    found = model(ByBatch())
    nats = alone(found, SEQUENCES)[1]
    row = evaluation.loss(found, SEQUENCES, 8)
    # transformers takes its loss in float32; a batch's factors change it by more than 1e-2
    np.testing.assert_allclose(row["items"], np.array(nats) / [len(s) - 1 for s in SEQUENCES], rtol=2e-6)
    np.testing.assert_allclose(answers(found, SEQUENCES), -np.array(nats), rtol=2e-6)
    assert capsys.readouterr().err.count("each passes alone") == 2


@pytest.mark.parametrize("measure", [
    last_token_states, lambda found, given: evaluation.loss(found, given, 8), answers],
    ids=["states", "loss", "answers"])
def test_a_model_that_remembers_the_longest_length_is_refused(measure):
    with pytest.raises(RemembersError, match=r"LlamaFor|LlamaModel") as error:
        measure(model(Remembering()), SEQUENCES)
    assert "depends on what was read before it" in str(error.value) and "--max-length" in str(error.value)


def test_within_its_original_context_a_model_that_remembers_is_measured():
    found, short = model(Remembering()), [s[:ORIGINAL] for s in SEQUENCES]
    torch.testing.assert_close(last_token_states(found, short)["final"], alone(found, short)[0], rtol=0, atol=1e-9)


def test_a_model_that_depends_on_nothing_else_passes_in_batches(capsys):
    found = model()
    extracted = extract(found, SEQUENCES, batch_size=16)
    torch.testing.assert_close(extracted.features["final"], alone(found, SEQUENCES)[0], rtol=0, atol=1e-9)
    assert extracted.token_budget > max(map(len, SEQUENCES)) and not capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "seed"), [(torch.float32, 0), *((torch.bfloat16, seed) for seed in range(4))])
def test_rounding_is_no_dependence_on_the_batch(dtype, seed):
    """Of 16 blocks with experts, where it differs with the shape of the batch, and in bfloat16 tips choices."""
    torch.manual_seed(seed)
    config = MixtralConfig(vocab_size=97, hidden_size=64, num_hidden_layers=16, num_attention_heads=4,
                           num_key_value_heads=4, intermediate_size=64, num_local_experts=8, num_experts_per_tok=2,
                           max_position_embeddings=LONGEST, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                           initializer_range=0.1)
    extracted = extract(MixtralForCausalLM(config).to(dtype).eval(), SEQUENCES, batch_size=16)
    assert extracted.token_budget > LONGEST


def test_the_shortest_sequences_that_have_a_longer_one_of_their_kind_are_tried():
    def beyond(length):
        return length > ORIGINAL

    assert independence._tried([5], beyond, 3)[0] == [] and independence._tried([20, 9], beyond, 3)[0] == []
    assert independence._tried([20, 9, 12, 30], beyond, 3) == ([1], 2)
    assert independence._tried([20, 9, 40, 30, 50, 60], beyond, 3) == ([0, 3, 2], 5)
    assert independence._tried([20, 9, 40, 30, 50, 60], beyond, 1) == ([0], 5)
    assert independence._tried([1, 2, 9], beyond, 3) == ([], 2)  # the first tokens are not turned


class Capacity(nn.Module):
    """Four experts, each with a queue of the whole batch's tokens in their order; who comes too late is not served."""

    def __init__(self, width, factor):
        super().__init__()
        self.factor, self.gate = factor, nn.Linear(width, 4, bias=False)
        self.up, self.down = (nn.Parameter(0.3 * torch.randn(4, *shape)) for shape in ((width, 48), (48, width)))

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        expert = self.gate(flat).argmax(-1)
        chosen = nn.functional.one_hot(expert, 4)
        served = (chosen.cumsum(0) * chosen).sum(-1) <= np.ceil(self.factor * len(flat) / 4)
        hidden = torch.einsum("tw,twh->th", flat, self.up[expert]).relu()
        return (torch.einsum("th,thw->tw", hidden, self.down[expert]) * served[:, None]).view(x.shape)


@pytest.mark.parametrize("factor", [1.0, 1.25, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_experts_of_limited_capacity_are_noticed(factor, seed, capsys):
    found = model()
    torch.manual_seed(seed)
    for layer in found.model.layers:
        layer.mlp = Capacity(32, factor).double()
    expected, nats = alone(found, SEQUENCES)
    extracted = extract(found, SEQUENCES, batch_size=16)
    torch.testing.assert_close(extracted.features["final"], expected, rtol=0, atol=1e-9)
    means = np.array(nats) / [len(s) - 1 for s in SEQUENCES]
    np.testing.assert_allclose(evaluation.loss(found, SEQUENCES, 16)["items"], means, rtol=2e-6)  # float32
    assert capsys.readouterr().err.count("each passes alone") == 2


def test_a_single_short_sequence_beside_long_ones_shows():
    sequences = [s for s in SEQUENCES if len(s) > 2 * ORIGINAL] + [SEQUENCES[0][:LEAST]]
    found = model(ByBatch())
    torch.testing.assert_close(last_token_states(found, sequences)["final"], alone(found, sequences)[0], rtol=0,
                               atol=1e-9)
