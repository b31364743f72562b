"""A tiny random model of every causal and masked language-model class that transformers has.

Sizes have the same names in most configurations, so one table serves nearly all of them; `ODD` says
what some need besides. Whatever a configuration does not know is left out.
"""

import dataclasses
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.auto import modeling_auto

VOCABULARY = 97
CONTEXT = 64

SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "decoder_vocab_size", "unpadded_vocab_size"), VOCABULARY),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id"), 0),
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
    **{"mask_token_id": 3, "cls_token_id": 1, "decoder_start_token_id": 1, "eod_token_id": 2},
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_dim", "embedding_size"),
        32,
    ),
    **dict.fromkeys(("word_embed_proj_dim", "input_embedding_size", "output_embedding_size"), 32),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "hidden_dim"), 48
    ),
    **dict.fromkeys(("d_inner", "dff", "dim_ff", "feed_forward_size", "intermediate_size_mlp"), 48),
    **dict.fromkeys(("ffn_hidden_size", "dense_intermediate_size"), 48),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 3
    ),
    **dict.fromkeys(("encoder_layers", "num_decoder_layers", "num_encoder_layers"), 3),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4
    ),
    **dict.fromkeys(("encoder_attention_heads", "attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "d_head", "dim_head", "kv_channels", "swa_head_dim"), 8),
    **dict.fromkeys(("global_head_dim", "attention_head_size", "v_head_dim"), 8),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"),
        CONTEXT,
    ),
    **dict.fromkeys(("original_max_position_embeddings", "max_target_positions"), CONTEXT),
    **dict.fromkeys(
        ("sliding_window", "sliding_window_size", "local_attention", "attention_window_size"), 4
    ),
    **dict.fromkeys(("window_size", "attention_chunk_size", "keep_window_size"), 4),
    # experts
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16
    ),
    **dict.fromkeys(("shared_intermediate_size", "shared_experts_intermediate_size"), 16),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "prefix_dense_intermediate_size"), 16),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("moe_num_shared_experts", "first_k_dense_replace", "num_dense_layers"), 1),
    # latent attention
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 4),
    **dict.fromkeys(("index_head_dim", "indexer_head_dim"), 8),
    **dict.fromkeys(("index_n_heads", "index_topk", "indexer_n_heads"), 2),
    # state spaces and linear attention
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_headdim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 4),
    **dict.fromkeys(("mamba_n_groups", "mamba_ngroups", "n_groups"), 1),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size", "block_size"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("rotary_dim",), 4),
    **dict.fromkeys(("query_pre_attn_scalar",), 8),
    **dict.fromkeys(("type_vocab_size", "ngram"), 2),
    **dict.fromkeys(("lru_width",), 32),
    # images and sounds, which no text meets
    **dict.fromkeys(("embed_dim", "out_hidden_size", "adapter_out_dim", "output_channels"), 32),
    **dict.fromkeys(("depth", "num_mel_bins"), 4),
    **dict.fromkeys(("image_size",), 16),
    **dict.fromkeys(("patch_size",), 8),
    **dict.fromkeys(("image_token_id", "video_token_id", "audio_token_id", "image_token_index"), 4),
}

MIXED = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
FOUR = {"num_hidden_layers": 4}
HYBRID: dict[str, Any] = {**FOUR, "layer_types": MIXED}
EVERY_HEAD = {"num_key_value_heads": 4}
ZAMBA = {**FOUR, "layers_block_type": ["linear_attention", "hybrid"] * 2, **EVERY_HEAD}
REFORMER = {
    "attn_layers": ["local", "lsh", "local"],
    "axial_pos_embds_dim": (16, 16),
    "axial_pos_shape": (8, 8),
    "num_buckets": 2,
    "hash_seed": 0,
    "lsh_attn_chunk_length": 8,
    "local_attn_chunk_length": 8,
}
ASSISTED = {
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "num_hidden_layers": 3,
    "layer_types": None,
}
SHARING = {
    **FOUR,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}

ODD: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3"), EVERY_HEAD),
    **dict.fromkeys(("glm4_moe_lite", "minicpm3"), EVERY_HEAD),
    "bailing_hybrid": {**HYBRID, "head_dim": 8, "num_key_value_heads": 4},
    "bamba": {**FOUR, "attn_layer_indices": [1, 3]},
    "blt": {
        "use_cache": False,
        "encoder_hash_byte_group_vocab": 50,
        "encoder_hash_byte_group_size": [3, 4],
        **{
            f"{part}_config": {"head_dim": 8, "hidden_size_global": 32, **EVERY_HEAD}
            for part in ("encoder", "decoder", "global", "patcher")
        },
    },
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v32": EVERY_HEAD,
    "dots3_note_text": {"index_n_heads": 4, "use_sliding_window": False, **EVERY_HEAD},
    "esmc": EVERY_HEAD,
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {**SHARING, **PER_LAYER, "laurel_rank": 8},
    "gemma4_assistant": {"text_config": ASSISTED, "num_centroids": 8, "backbone_hidden_size": 32},
    "gemma4_text": {**SHARING, **PER_LAYER, "vocab_size_per_layer_input": VOCABULARY},
    "gemma4_unified_text": SHARING,
    "gemma4_unified_assistant": {
        "text_config": ASSISTED,
        "num_centroids": 8,
        "backbone_hidden_size": 32,
    },
    "glm_moe_dsa": EVERY_HEAD,
    "gpt_neo": {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": HYBRID,
    "jamba": {**FOUR, "attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**HYBRID, **EVERY_HEAD},
    "lfm2_moe": {**FOUR, "layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"num_layers": 2, "head_dim": 4, "zero_expert_num": 2, **EVERY_HEAD},
    "luke": {"entity_vocab_size": 50, "entity_emb_size": 32},
    "mamba2": {"head_dim": 16},
    "moshi": {"audio_vocab_size": 50, "num_codebooks": 2},
    "neomme": {"head_dim": 16},
    "perceiver": {"d_latents": 32, "num_latents": 16, "num_self_attends_per_block": 3},
    "qwen3_5_text": HYBRID,
    "qwen3_5_moe_text": HYBRID,
    "qwen3_next": HYBRID,
    "qwen4_exp_text": {
        **FOUR,
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_kv_heads": 1,
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
    },
    "reformer": REFORMER,
    "roc_bert": {
        "pronunciation_vocab_size": 20,
        "shape_vocab_size": 20,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xlstm": {"num_blocks": 3, "qk_dim_factor": 2.0, "v_dim_factor": 2.0},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {**ZAMBA, "attention_head_dim": 16},
    "zamba2": ZAMBA,
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""What some model types need besides; what has an inner configuration's name is for that one."""


def classes() -> dict[str, str]:
    """The name of every causal and masked class, with a model type that leads to it."""
    found: dict[str, str] = {}
    for mapping in (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    ):
        for kind, name in mapping.items():
            found.setdefault(name, kind)
    return found


def make(name: str, kind: str) -> nn.Module:
    """A model of the class `name` with weights large enough that every part matters."""
    model_class = getattr(transformers, name)
    config_class = model_class.config_class or transformers.CONFIG_MAPPING[kind]
    odd = {}
    if name == "ReformerModelWithLMHead":
        odd = {"is_decoder": True}
    torch.manual_seed(0)
    with torch.no_grad():
        model = model_class(tiny(config_class, odd))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tiny(config_class: Any, odd: dict[str, Any]) -> Any:
    """A small configuration of a class, and of the configurations within it."""
    odd = ODD.get(config_class.model_type, {}) | odd
    fields = {field.name for field in dataclasses.fields(config_class)}
    sizes = {name: value for name, value in SIZES.items() if name in fields} | odd
    for name, inner in _inner(config_class).items():
        sizes[name] = tiny(inner, odd.get(name, {})).to_dict()
    return config_class(**sizes)


def _inner(config_class: Any) -> dict[str, Any]:
    """The classes of the configurations within one, by name."""
    given = {**config_class.sub_configs, **getattr(config_class, "sub_configs_defaults", {})}
    found = {}
    for name, inner in given.items():
        kind = getattr(inner, "model_type", None)
        inner = getattr(inner, "config_class", inner)
        if inner is transformers.AutoConfig:
            inner = transformers.CONFIG_MAPPING[kind]
        found[name] = inner
    return found
