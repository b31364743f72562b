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
    **dict.fromkeys(("attention_hidden_size", "lru_width"), 32),
}

ODD: dict[str, dict[str, Any]] = {}
"""What some model types need besides, by type."""


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
    torch.manual_seed(0)
    with torch.no_grad():
        model = model_class(tiny(config_class, ODD.get(kind, {})))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tiny(config_class: Any, odd: dict[str, Any]) -> Any:
    """A small configuration of a class, and of the configurations within it."""
    fields = {field.name for field in dataclasses.fields(config_class)}
    sizes = {name: value for name, value in (SIZES | odd).items() if name in fields}
    sizes |= {name: value for name, value in odd.items() if name in fields}
    for inner, inner_class in (config_class.sub_configs or {}).items():
        if inner in fields and inner not in odd and dataclasses.is_dataclass(inner_class):
            sizes[inner] = tiny(inner_class, odd.get(f"{inner}.", {})).to_dict()
    return config_class(**{name: value for name, value in sizes.items() if not name.endswith(".")})
