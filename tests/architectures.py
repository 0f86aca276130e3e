"""One small random model of each architecture that users bring, by name: `build(name)`, with its LM head.

Weights are larger than transformers draws them, so that attention and positions show in the last token's state.
"""

import torch
import transformers as tr

VOCABULARY, WIDTH, CONTEXT, LAYERS = 97, 32, 64, 2
TEXT = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": CONTEXT, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2}
GROUPED = TEXT | {"num_key_value_heads": 2}
VISION = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
          "image_size": 16, "patch_size": 8}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT,
        "bos_token_id": 1, "eos_token_id": 2}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0, 9.0, 16.0, 30.0]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10_000.0, "original_max_position_embeddings": 16, **FACTORS}
MROPE = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [1, 1, 2]}

TEXT_ONLY = {
    "Bloom": (tr.BloomForCausalLM, tr.BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=LAYERS, n_head=4)),
    "Cohere": (tr.CohereForCausalLM, tr.CohereConfig(**GROUPED)),
    "Falcon": (tr.FalconForCausalLM, tr.FalconConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_attention_heads=4,
                                                     num_hidden_layers=LAYERS, max_position_embeddings=CONTEXT)),
    "Gemma": (tr.GemmaForCausalLM, tr.GemmaConfig(**GROUPED, head_dim=8)),
    "Gemma2": (tr.Gemma2ForCausalLM, tr.Gemma2Config(**GROUPED, head_dim=8, sliding_window=16)),
    "GPT-2": (tr.GPT2LMHeadModel, tr.GPT2Config(**GPT2)),
    "GPT-J": (tr.GPTJForCausalLM, tr.GPTJConfig(**GPT2, rotary_dim=4)),
    "GPT-NeoX": (tr.GPTNeoXForCausalLM, tr.GPTNeoXConfig(**TEXT)),
    "Granite": (tr.GraniteForCausalLM, tr.GraniteConfig(**GROUPED)),
    "Llama": (tr.LlamaForCausalLM, tr.LlamaConfig(**GROUPED)),
    "Llama 4": (tr.Llama4ForCausalLM, tr.Llama4TextConfig(**GROUPED, head_dim=8, intermediate_size_mlp=48,
                                                          num_local_experts=2, attention_chunk_size=16)),
    "Mamba": (tr.MambaForCausalLM, tr.MambaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS,
                                                  state_size=4)),
    "Mistral": (tr.MistralForCausalLM, tr.MistralConfig(**GROUPED, head_dim=8, sliding_window=16)),
    "Mixtral": (tr.MixtralForCausalLM, tr.MixtralConfig(**GROUPED, num_local_experts=4)),
    "OLMo": (tr.OlmoForCausalLM, tr.OlmoConfig(**GROUPED)),
    "OLMo 2": (tr.Olmo2ForCausalLM, tr.Olmo2Config(**GROUPED)),
    "OLMoE": (tr.OlmoeForCausalLM, tr.OlmoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2)),
    "OPT": (tr.OPTForCausalLM, tr.OPTConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS,
                                            num_attention_heads=4, ffn_dim=48, max_position_embeddings=CONTEXT,
                                            word_embed_proj_dim=WIDTH)),
    "Phi": (tr.PhiForCausalLM, tr.PhiConfig(**GROUPED)),
    "Phi-3 with LongRoPE": (tr.Phi3ForCausalLM, tr.Phi3Config(**GROUPED, original_max_position_embeddings=16,
                                                              rope_parameters=LONGROPE)),
    "Qwen2": (tr.Qwen2ForCausalLM, tr.Qwen2Config(**GROUPED)),
    "Qwen2 MoE": (tr.Qwen2MoeForCausalLM, tr.Qwen2MoeConfig(**GROUPED, num_experts=4, num_experts_per_tok=2,
                                                            moe_intermediate_size=16,
                                                            shared_expert_intermediate_size=16)),
    "Qwen3": (tr.Qwen3ForCausalLM, tr.Qwen3Config(**GROUPED, head_dim=8)),
    "RWKV": (tr.RwkvForCausalLM, tr.RwkvConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS,
                                               context_length=CONTEXT)),
    "StableLM": (tr.StableLmForCausalLM, tr.StableLmConfig(**GROUPED)),
}
MULTIMODAL = {
    "Gemma 3": (tr.Gemma3ForConditionalGeneration, tr.Gemma3Config(
        text_config=GROUPED | {"head_dim": 8, "sliding_window": 16}, vision_config=VISION, mm_tokens_per_image=4)),
    "Llama 4 with vision": (tr.Llama4ForConditionalGeneration, tr.Llama4Config(
        text_config=GROUPED | {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2},
        vision_config=VISION | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16})),
    "Llava": (tr.LlavaForConditionalGeneration, tr.LlavaConfig(
        text_config=tr.LlamaConfig(**GROUPED), vision_config=tr.CLIPVisionConfig(**VISION, projection_dim=16),
        image_token_index=96)),
    "Mistral 3": (tr.Mistral3ForConditionalGeneration, tr.Mistral3Config(
        text_config=tr.MistralConfig(**GROUPED, head_dim=8), image_token_index=96,
        vision_config=tr.PixtralVisionConfig(**VISION, head_dim=8))),
    "Qwen2-VL": (tr.Qwen2VLForConditionalGeneration, tr.Qwen2VLConfig(
        text_config=GROUPED | {"rope_parameters": MROPE},
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": WIDTH, "patch_size": 8,
                       "mlp_ratio": 1})),
}
ALL = TEXT_ONLY | MULTIMODAL


def build(name: str):
    model_class, config = ALL[name]
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.1)
    return model


@torch.no_grad()
def received_by_the_head(model, sequences):
    """What the LM head is given for the last token of each sequence alone, unpadded: shape (M, d)."""
    rows = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: rows.append(args[0][0, -1]))
    for sequence in sequences:
        model(input_ids=torch.tensor([list(sequence)]), use_cache=False)
    handle.remove()
    return torch.stack(rows)
