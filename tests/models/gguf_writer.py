"""Small GGUF files for tests, written by the package gguf as llama.cpp's converter writes a Llama."""

import json

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import LlamaConfig, LlamaForCausalLM

from reptrace.texts.corpora import train_tokenizer

TEXTS = [f"{k} one two three {k * k} four {k % 7}, five" for k in range(40)]
WIDTH, HEADS, KEY_HEADS, LAYERS, CONTEXT = 64, 4, 2, 2, 64
NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
         "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
         "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tiny_llama(**options):
    """A Llama with random weights, whose widths are whole blocks, and a tokenizer for `TEXTS`."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS, 300)
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS, intermediate_size=96,
                         num_attention_heads=HEADS, num_key_value_heads=KEY_HEADS, max_position_embeddings=CONTEXT,
                         rms_norm_eps=1e-6, initializer_range=0.2, **options)
    model = LlamaForCausalLM(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model, tokenizer


def gguf_name(key):
    """llama.cpp's name of a tensor of transformers' Llama."""
    name, suffix = key.rsplit(".", 1)
    if name.startswith("model.layers."):
        number, part = name.removeprefix("model.layers.").split(".", 1)
        return f"blk.{number}.{NAMES[part]}.{suffix}"
    return f"{NAMES[name]}.{suffix}"


def as_stored(key, weight):
    """A tensor as llama.cpp has it: the halves of each query and key head are interleaved."""
    heads = {"q_proj": HEADS, "k_proj": KEY_HEADS}.get(key.split(".")[-2])
    weight = weight.detach().float().numpy()
    if heads is None:
        return weight
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def written(path, model, tokenizer=None, kind=Type.F32, further=None, facts=None, architecture="llama",
            rule="gpt-2"):
    """Write a model as a GGUF file.

    kind : type of all matrices (norms stay in float32), or a mapping from names to types
    further : mapping of more tensors, name -> array; facts: of more (or other) values of the header
    rule : how the tokenizer is said to split texts
    """
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    for name, value in (facts or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(name, value)
    if tokenizer is not None:
        add_tokenizer(writer, tokenizer, rule)
    tied = config.tie_word_embeddings
    tensors = {gguf_name(key): as_stored(key, weight) for key, weight in model.state_dict().items()
               if not (tied and key == "lm_head.weight")}
    for name, weight in tensors.items():
        one = kind.get(name, Type.F32) if isinstance(kind, dict) else kind
        one = Type.F32 if weight.ndim == 1 else one
        writer.add_tensor(name, gguf.quantize(weight, one), raw_dtype=one)
    for name, weight in (further or {}).items():
        writer.add_tensor(name, np.asarray(weight, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_tokenizer(writer, tokenizer, rule):
    """A byte-level BPE: vocabulary, merges and special tokens."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.bos_token_id)
