"""Geometry of subsets of sequences and at shorter lengths, from one pass.

Trusted: `last_token_states` of the sequences cut to the length, a pass of its own, and `geometry` of these.
"""

import numpy as np
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from reptrace.checkpoints.suites import Checkpoint
from reptrace.measures.spectra import geometry
from reptrace.models.hidden_states import extract, last_token_states
from reptrace.records.store import Store
from reptrace.sweeps import subsets
from reptrace.sweeps.dispatch import Means, run
from reptrace.sweeps.located import Opening
from reptrace.sweeps.subsets import SubsetsPart
from reptrace.sweeps.sweep import table_of
from reptrace.texts.probes import Probe

SHAPE = {"vocab_size": 50, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 16}
draw = np.random.default_rng(0)
SEQUENCES = [draw.integers(50, size=16).tolist() for _ in range(70)]
MODELS = {"gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)),
          "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE))}


def made(kind):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


@pytest.mark.parametrize("kind", MODELS)
def test_a_state_within_a_sequence_is_that_of_the_sequence_cut_there(kind):
    model = made(kind)
    found = extract(model, SEQUENCES, "all", 16, reductions=subsets.at_lengths((5, 11, 16)))
    for length in (5, 11, 16):
        cut = last_token_states(model, [each[:length] for each in SEQUENCES], "all", 16)
        for layer, states in cut.items():  # float32: other shapes of matrix products round otherwise
            torch.testing.assert_close(found.reduced[str(length)][layer], states, rtol=1e-5, atol=1e-6)


def test_rows_are_geometries_of_disjoint_subsets_and_of_cut_sequences(tmp_path):
    made("gpt_neox").save_pretrained(tmp_path / "model")
    point = Checkpoint(str(tmp_path / "model"), "step5", 5, 500)
    part = SubsetsPart(Probe("some", SEQUENCES, 16, 16), (8, 16), (2, 6), 16)
    store, opening = Store(tmp_path / "records"), Opening("cpu", "float32")
    (jobs,) = run([([point], [part])], store, opening, Means(progress=False))
    table = table_of([point], [part], jobs, store)
    assert (table.status == "measured").all()
    for length, row in table[table.times_width.isna()].set_index("length").iterrows():
        states = last_token_states(made("gpt_neox"), [each[:length] for each in SEQUENCES], batch_size=16)["final"]
        # as above; RankMe follows the states to first order
        assert row.rankme == pytest.approx(geometry(states, (2, 6)).rankme, rel=1e-5) and row.used == 70
    states = last_token_states(made("gpt_neox"), SEQUENCES, batch_size=16)["final"]
    states = states[subsets.order_of(point.model, 70)]
    drawn = table.dropna(subset="times_width")
    assert drawn.groupby("times_width").size().to_dict() == {0.5: 16, 1: 8, 2: 4, 4: 2, 8: 1}
    for row in drawn.itertuples():
        size = round(row.times_width * 8)
        part = geometry(states[row.draw * size : (row.draw + 1) * size], (2, 6), shorten=True)
        assert row.rankme == pytest.approx(part.rankme, rel=1e-5) and row.used == size


def test_subsets_of_a_size_share_no_sequence_and_names_draw_other_ones():
    for times in subsets.TIMES_WIDTH[:5]:
        rows = [k for at, _, its in subsets.subsets(200, 8) if at == times for k in its]
        assert len(rows) == len(set(rows)) and max(rows) < 200
    one, other = subsets.order_of("a", 50), subsets.order_of("b", 50)
    assert sorted(one) == list(range(50)) and list(one) == list(subsets.order_of("a", 50)) != list(other)


def test_sequences_that_end_alike_have_no_spectrum_and_the_others_one(tmp_path):
    made("gpt_neox").save_pretrained(tmp_path / "model")
    alike = [[7] * 4 + each[4:] for each in SEQUENCES]
    point, part = Checkpoint(str(tmp_path / "model")), SubsetsPart(Probe("some", alike, 16, 16), (4, 16), (2, 6), 16)
    store = Store(tmp_path / "records")
    (jobs,) = run([([point], [part])], store, Opening("cpu", "float32"), Means(progress=False))
    table = table_of([point], [part], jobs, store)
    assert table.rankme.isna().tolist() == [True] + [False] * (len(table) - 1)


def test_a_length_beyond_the_sequences_is_refused():
    with pytest.raises(ValueError, match="states at 32 tokens take sequences of so many at least, got one of 16"):
        SubsetsPart(Probe("some", SEQUENCES, 16, 16), (8, 32), (2, 6))
