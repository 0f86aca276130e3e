"""Where the text decoder of a model lies, and its parts: embeddings, blocks, final norm."""

from __future__ import annotations

import torch
from torch import nn

from reptrace.models.positions import text_config

# The final norm's attribute in the decoders of transformers; the blocks are found by their number.
FINAL_NORM_NAMES = ("final_layer_norm", "norm", "ln_f", "norm_f", "final_norm", "final_layernorm", "layer_norm",
                    "ln_out", "embedding_norm", "out_norm", "layernorm")
# Adapters of PEFT whose model does more in its forward pass than call the layers: X-LoRA runs twice, for instance.
ADAPTERS_OUTSIDE = ("XLORA", "SHADOW", "POLY")


def text_decoder(model: nn.Module) -> nn.Module:
    """The module that holds the blocks of the text decoder, whatever it is wrapped in (a head, a multimodal model)."""
    model = _unwrapped(model)
    if not hasattr(model, "config"):
        raise TypeError(f"expected a transformers model, got {type(model).__name__}.")
    if getattr(model.config, "is_encoder_decoder", False):
        raise TypeError(f"{type(model).__name__} has an encoder beside its decoder, which reads the text: there is no "
                        "last token whose state could be measured. Decoders alone can be.")
    kind, level = text_config(model.config).model_type, [model]
    while level:
        for module in level:
            reads = hasattr(module, "config") and hasattr(module, "get_input_embeddings")
            if reads and module.config.model_type == kind and block_list(module) is not None:
                return module
        level = [_unwrapped(child) for module in level for child in module.children()
                 if not isinstance(child, nn.ModuleList)]
    raise TypeError(f"{type(model).__name__} has no list of as many blocks as its configuration says: not a decoder "
                    "whose layers can be told apart.")


def _unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside of torch.compile's, DistributedDataParallel's and PEFT's wrappers.

    PEFT's layers sit inside of the model that it wraps, so that a pass through that one alone goes through the active
    adapters; adapters of which this is not so are refused.
    """
    while True:
        parts = {**getattr(model, "__dict__", {}), **getattr(model, "_modules", {})}
        inside = parts.get("_orig_mod", parts.get("module"))
        if isinstance(inside, nn.Module):
            model = inside
        elif hasattr(model, "get_base_model"):
            _check_adapters(model)
            model = model.get_base_model()
        else:
            return model


def _check_adapters(model: nn.Module) -> None:
    """TypeError where an adapter of a PEFT model does its work outside of the model's own layers."""
    if getattr(model, "_adapters_disabled", False):
        return
    kinds = {name: str(getattr(config.peft_type, "value", config.peft_type))
             for name, config in model.peft_config.items()}
    for name, config in model.peft_config.items():
        if name in model.active_adapters and config.is_prompt_learning:
            raise TypeError(f"the model has an adapter of the kind {kinds[name]}, which puts learned tokens or states "
                            "before every text: hidden states of the text alone would not be this model's. LoRA and "
                            "other adapters inside of the layers can be measured.")
        invoked = name in model.active_adapters and getattr(config, "alora_invocation_tokens", None)
        if invoked or kinds[name] in ADAPTERS_OUTSIDE:
            kind = "aLoRA" if invoked else kinds[name]
            raise TypeError(f"the model has an adapter of the kind {kind}, which depends on more than the layer that "
                            "it sits in: a pass through the decoder alone would leave some of it out. LoRA can be "
                            "measured.")


def adapters(model: nn.Module) -> list[str]:
    """Names of PEFT's adapters that a pass through a model's text decoder goes through, in alphabetical order."""
    layers = [module for module in text_decoder(model).modules() if hasattr(module, "adapter_layer_names")]
    return sorted({name for layer in layers if not layer.disable_adapters for name in layer.active_adapters
                   if any(name in getattr(layer, part, {}) for part in layer.adapter_layer_names)})


def block_list(module: nn.Module) -> nn.ModuleList | None:
    """The list among a module's children that holds as many blocks as the configuration says; None where none does."""
    count = getattr(text_config(module.config), "num_hidden_layers", None)
    lists = (child for child in module.children() if isinstance(child, nn.ModuleList) and len(child) == count)
    return next(lists, None)


def final_norm(decoder: nn.Module) -> nn.Module:
    """The norm after the last block; TypeError where there is none under a known name."""
    for name in FINAL_NORM_NAMES:
        if isinstance(getattr(decoder, name, None), nn.Module):
            return getattr(decoder, name)
    raise TypeError(f"{type(decoder).__name__} has no final norm under a known name ({', '.join(FINAL_NORM_NAMES)}): "
                    f"ask for layer {len(block_list(decoder))} instead, the last block before any norm.")


def vocabulary(model: nn.Module) -> int:
    """How many token ids a model, or a decoder, has embeddings for."""
    embeddings = model.get_input_embeddings()
    return getattr(embeddings, "num_embeddings", None) or len(embeddings.weight)  # an adapter's has the weight alone


def devices_of(decoder: nn.Module) -> list[torch.device]:
    """Where the model computes: first the device that takes the token ids, then the others that hold weights.

    Weights that accelerate has put away on the CPU or the disk are on the device "meta" between their turns.
    """
    embeddings = decoder.get_input_embeddings()
    device = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    first = embeddings.weight.device if device is None else torch.empty(0, device=device).device
    devices = [first, *(parameter.device for parameter in decoder.parameters())]
    return [device for device in dict.fromkeys(devices) if device.type != "meta"]
