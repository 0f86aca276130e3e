"""GPT-NeoX's forward pass and loss for training on a CPU: transformers' numbers but for rounding, in fewer operations.

A small model's step is made of hundreds of tiny operations, each of which costs more to call than to compute, and of
one large one, the head. Here rotary embedding is three operations with a backward pass of its own, masks and positions
are not made anew, and the head goes through the vocabulary in pieces that stay in the processor's cache, once.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention
from transformers import GPTNeoXForCausalLM

LOGITS = 2**17  # at a time: half a megabyte, which fits into the cache of a core


class Forward:
    """States after the final norm, of models with GELU, parallel residuals and no dropout: as `Run.config` makes them.

    Parameters
    ----------
    model : GPTNeoXForCausalLM
        Its weights are read anew at each call.
    length : int
        Of all sequences.
    """

    def __init__(self, model: GPTNeoXForCausalLM, length: int):
        self.model = model.gpt_neox
        config = model.config
        if not config.use_parallel_residual or config.hidden_act != "gelu":
            raise ValueError("expected a model with parallel residuals and GELU.")
        self.heads, self.eps = config.num_attention_heads, config.layer_norm_eps
        with torch.no_grad():
            cos, sin = self.model.rotary_emb(model.lm_head.weight, torch.arange(length)[None])
        half = cos.shape[-1] // 2
        shape = (length, 1, 1, 2 * half)  # against heads, and queries and keys
        self.cos = cos.reshape(shape)
        self.sin = (sin * torch.tensor([-1.0, 1.0]).repeat_interleave(half)).reshape(shape)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Shape (batch, length, d) of ids of shape (batch, length)."""
        states = nn.functional.embedding(ids, self.model.embed_in.weight)
        for block in self.model.layers:
            states = self._mlp(block, states) + self._attention(block, states) + states
        return self._norm(self.model.final_layer_norm, states)

    def _attention(self, block: nn.Module, states: torch.Tensor) -> torch.Tensor:
        mixed = self._linear(block.attention.query_key_value, self._norm(block.input_layernorm, states))
        batch, length, width = states.shape
        mixed = Rotation.apply(mixed.view(batch, length, self.heads, 3, width // self.heads), self.cos, self.sin)
        queries, keys, values = (each.transpose(1, 2) for each in mixed.unbind(3))
        found = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self._linear(block.attention.dense, found.transpose(1, 2).reshape(states.shape))

    def _mlp(self, block: nn.Module, states: torch.Tensor) -> torch.Tensor:
        hidden = self._linear(block.mlp.dense_h_to_4h, self._norm(block.post_attention_layernorm, states))
        return self._linear(block.mlp.dense_4h_to_h, gelu(hidden))

    def _norm(self, norm: nn.Module, states: torch.Tensor) -> torch.Tensor:
        return layer_norm(states, norm.normalized_shape, norm.weight, norm.bias, self.eps)

    def _linear(self, layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
        return linear(states, layer.weight, layer.bias)


class Rotation(torch.autograd.Function):
    """Rotary embedding of queries and keys.

    Shapes: (batch, length, heads, 3, width) of queries, keys and values; (length, 1, 1, turned) of cosines and of
    sines, these negative in the first half.
    """

    @staticmethod
    def forward(context, mixed, cos, sin):
        context.save_for_backward(cos, sin)
        return Rotation.turn(mixed, cos, sin)

    @staticmethod
    def backward(context, gradient):
        cos, sin = context.saved_tensors
        return Rotation.turn(gradient, cos, -sin), None, None

    @staticmethod
    def turn(mixed, cos, sin):
        mixed = mixed.clone()  # autograd takes longer over a change in place
        turned = mixed[..., :2, : cos.shape[-1]]
        crossed = turned.roll(cos.shape[-1] // 2, -1)
        turned.mul_(cos).addcmul_(crossed, sin)
        return mixed


def head_loss(states: torch.Tensor, unembedding: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """`lean.head_loss`; its gradients are found on the way, so that it is for training alone."""
    return CrossEntropy.apply(states[:, :-1].flatten(0, 1), unembedding, ids[:, 1:].flatten())


class CrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of linear logits: states (n, d), unembedding (V, d), labels (n)."""

    @staticmethod
    def forward(context, states, unembedding, labels):
        rows, count = max(1, LOGITS // len(unembedding)), len(labels)
        across = unembedding.T.contiguous()
        to_states, to_unembedding = torch.empty_like(states), torch.zeros_like(across)
        total = states.new_zeros(())
        for some, gradient in zip(states.split(rows), to_states.split(rows), strict=True):
            exponentials = some @ across
            largest = exponentials.amax(1, keepdim=True)
            exponentials.sub_(largest).exp_()
            sums = exponentials.sum(1, keepdim=True)
            total += (sums.log() + largest).sum()
            torch.mm(exponentials, unembedding, out=gradient).div_(sums)
            to_unembedding.addmm_((some / sums).T, exponentials)
        right = unembedding[labels]
        total -= (states * right).sum()
        to_states.sub_(right)
        context.save_for_backward(to_states.div_(count),
                                  to_unembedding.T.contiguous().index_add_(0, labels, states, alpha=-1).div_(count))
        return total / count

    @staticmethod
    def backward(context, gradient):
        to_states, to_unembedding = context.saved_tensors
        return to_states * gradient, to_unembedding * gradient, None
