"""Tiny random models of many families."""

from collections.abc import Callable

import torch
import transformers as hf
from torch import nn

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 32}
OPT = {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32}
OPT.pop("intermediate_size")

MODELS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2, bos_token_id=1, eos_token_id=2)),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GEMMA)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GEMMA)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED)),
    "opt": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES)),
}
MORE: dict[str, Callable[[], nn.Module]] = {
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=8)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=4)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**SIZES)),
    "gpt_oss": lambda: hf.GptOssForCausalLM(  # attention sinks, sliding windows, experts
        hf.GptOssConfig(
            **GROUPED, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4
        )
    ),
    "gpt_neo": lambda: hf.GPTNeoForCausalLM(  # does not go through the attention interface
        hf.GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=32,
        )
    ),
}


def make(name: str, attention: str = "sdpa") -> nn.Module:
    """A model with weights large enough that every head matters."""
    torch.manual_seed(0)
    model = (MODELS | MORE)[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.2)
    if name not in ("gemma2", "gpt_oss", "gpt_neo"):  # those know eager attention only
        model.set_attn_implementation(attention)
    return model.eval()


def uneven(module: nn.Module) -> nn.Module:
    """The module, its norms with gains and biases of their own."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module


def wide(model: nn.Module) -> nn.Module:
    """Weights large enough that every part matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()
