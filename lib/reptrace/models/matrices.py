"""Weight matrices of a model by what they are part of: attention, MLP, or the unembedding."""

from __future__ import annotations

import re

import torch
from torch import nn

from reptrace.measures.readout import Head
from reptrace.measures.weights import Spectra
from reptrace.models.decoders import block_list, text_decoder

KINDS = {"attention": re.compile(r"attn|attention", re.IGNORECASE),
         "mlp": re.compile(r"mlp|feed_?forward|ffn|expert|moe|\bfc\d", re.IGNORECASE)}
ROUTER = re.compile(r"(\bgate|router)(\.\w+)?\.weight$")  # which expert a token goes to: of no MLP
FUSED = re.compile(r"(query_key_value|qkv_proj|Wqkv|c_attn|qkv)\.weight$")


def unembedding(model: nn.Module) -> torch.Tensor:
    """The LM head's weights, shape (V, d); ValueError where a model has none."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if getattr(head, "weight", None) is None:
        raise ValueError(f"{type(model).__name__} has no unembedding (its get_output_embeddings gives "
                         f"{type(head).__name__}): nothing reads its states as logits, so leave out the measures of "
                         "it, readout and weights.")
    return _at_hand(head.weight)


def tied(model: nn.Module) -> bool:
    """Whether the unembedding's weights are those of the embeddings: the very same numbers in memory."""
    unembedding(model)  # refuses a model without one
    return model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def block_matrices(model: nn.Module) -> tuple[dict[str, list[torch.Tensor]], int]:
    """Weight matrices in the blocks, kind -> a list; and how many of attention's are fused ones that were left so.

    Queries, keys and values that are stored as one are told apart where their order is known: GPT-NeoX keeps them by
    head, GPT-2 side by side, Phi-3 one below the other. Of experts that are stored as one each is a matrix.
    """
    decoder = text_decoder(model)
    config, found, fused = decoder.config, {kind: [] for kind in KINDS}, 0
    for block in block_list(decoder):
        for name, weight in block.named_parameters():
            kind = next((kind for kind, pattern in KINDS.items() if pattern.search(name)), None)
            if kind is None or ROUTER.search(name) or weight.ndim not in (2, 3) or min(weight.shape[-2:]) < 2:
                continue
            weight = _at_hand(weight)
            parts = list(weight) if weight.ndim == 3 else [weight]
            if kind == "attention" and FUSED.search(name):
                parts = _told_apart(parts[0], name, config)
                fused += len(parts) == 1
            found[kind] += parts
    return found, fused


def head_of(model: nn.Module) -> Head:
    """The directions of a model's unembedding."""
    return Head.of(unembedding(model), tied(model))


def spectra_of(model: nn.Module) -> Spectra:
    """Singular values of its weight matrices, the unembedding among them."""
    inside, fused = block_matrices(model)
    return Spectra.of({**inside, "unembedding": [unembedding(model)]}, fused)


def _at_hand(weight: torch.Tensor) -> torch.Tensor:
    """On a GPU where it is on one, else on the CPU: other devices (Apple's MPS) have no float64."""
    return weight.detach() if weight.device.type == "cuda" else weight.detach().cpu()


def _told_apart(weight: torch.Tensor, name: str, config) -> list[torch.Tensor]:
    """Query, key and value; or the matrix as it is, where their order is not known."""
    width, heads = config.hidden_size, config.num_attention_heads
    if config.model_type == "gpt_neox":
        return [weight.view(heads, 3, width // heads, width)[:, k].reshape(width, width) for k in range(3)]
    if config.model_type == "gpt2" and "c_attn" in name:  # stored as (in, out)
        return list(weight.split(width, dim=1))
    if config.model_type in ("phi3", "phi4_multimodal"):
        each = getattr(config, "head_dim", None) or width // heads
        rest = config.num_key_value_heads * each
        return list(weight.split([heads * each, rest, rest]))
    return [weight]
