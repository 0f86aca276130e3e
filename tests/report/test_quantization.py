"""Geometry of checkpoints with quantized weights.

Trusted: the package gguf, which rounds the weights of a saved copy of the model, and `trace`, which measures it.
"""

from collections import namedtuple
from types import SimpleNamespace

import gguf
import pandas as pd
import pytest
import torch
from gguf_writer import TEXTS
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from reptrace.checkpoints.listing import Checkpoint
from reptrace.records.store import Store
from reptrace.report import quantization
from reptrace.sweeps.sweep import trace
from reptrace.texts.corpora import Corpus, probe, train_tokenizer

Run = namedtuple("Run", "width")


@pytest.fixture
def model():
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                            intermediate_size=128, max_position_embeddings=32)).eval()


def test_checkpoints_are_measured_as_if_their_weights_had_been_saved_quantized(tmp_path, model):
    texts, run = probe(Corpus("texts", TEXTS), train_tokenizer(TEXTS, 300), 40, 16, 2), Run(32)
    kept, points = {}, [Checkpoint(str(tmp_path / "own"), step=7, tokens=70)]
    model.save_pretrained(points[0].model)
    profile = SimpleNamespace(suite=SimpleNamespace(checkpoints=lambda run: points), probe=lambda run: texts,
                              alpha_ranks=(2, 8), by_run=lambda table: {run: table},
                              asked=lambda name, make: kept.setdefault(name, make()))
    table = quantization.trace_quantized(profile, {run: [0], Run(24): [0]})[run]  # the narrow one is left out
    assert list(table.quantization) == ["Q8_0", "Q5_0", "Q4_0"] and list(kept) == [quantization.TABLE]
    assert list(table.columns) == quantization.COLUMNS and set(table.step) == {7}
    for row in table.itertuples():
        kind = gguf.GGMLQuantizationType[row.quantization]
        copy = GPTNeoXForCausalLM.from_pretrained(points[0].model)
        for weight in copy.parameters():
            if weight.ndim == 2:
                weight.data = torch.from_numpy(gguf.dequantize(gguf.quantize(weight.detach().numpy(), kind), kind))
        copy.save_pretrained(tmp_path / row.quantization)
        saved = trace(Checkpoint(str(tmp_path / row.quantization)), texts, Store(tmp_path / "records"), ranks=(2, 8),
                      progress=False).iloc[0]
        # the same states in batches of another size: rounding in float32
        pd.testing.assert_series_equal(
            pd.Series(row._asdict())[["rankme", "rankme_stderr", "alpha", "alpha_stderr"]].astype(float),
            saved[["rankme", "rankme_stderr", "alpha", "alpha_stderr"]].astype(float), rtol=1e-4, check_names=False)
