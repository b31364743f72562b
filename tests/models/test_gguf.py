"""GGUF files, written here, give the model that they were made of, or an error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anamorph as am
from anamorph.models.base import Batch
from anamorph.models.huggingface.load import load_model
from huggingface_models import GROUPED, make

gguf = pytest.importorskip("gguf")
hf = pytest.importorskip("transformers")

TOKENS = torch.arange(3, 15)[None]
ONES = np.ones(32, dtype=np.float32)


def write(
    path: Path,
    model: Any,
    *,
    without: str = "nothing",
    more: dict[str, np.ndarray] | None = None,
    layers: int = 3,
    scaling: str | None = None,
    quantized: bool = False,
) -> Path:
    """A Llama as llama.cpp's converter writes it."""
    file = gguf.GGUFWriter(str(path), "llama")
    file.add_name("tiny")
    file.add_block_count(layers)
    file.add_context_length(32)
    file.add_embedding_length(32)
    file.add_feed_forward_length(48)
    file.add_head_count(4)
    file.add_head_count_kv(2)
    file.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    file.add_vocab_size(61)
    file.add_rope_dimension_count(8)
    file.add_rope_freq_base(10_000.0)
    if scaling is not None:
        file.add_rope_scaling_type(gguf.RopeScalingType(scaling))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    tensors = dict(more or {})
    for name, value in model.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # pairs lie side by side there
            heads = 4 if "q_proj" in name else 2
            value = value.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(value.shape)
        tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))] = value.numpy().copy()
    for name, value in tensors.items():
        if quantized and value.ndim == 2 and value.shape[1] == 32:
            kind = gguf.GGMLQuantizationType.Q8_0
            file.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        elif without not in name:
            file.add_tensor(name, value)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def logits(model: am.HuggingFace) -> torch.Tensor:
    with torch.inference_mode():
        return model.logits(model.run(Batch.whole(TOKENS)).state)[0]


def requires(path: Path, *sentences: str) -> None:
    with pytest.raises(am.AnamorphError) as told:
        load_model(path)
    for sentence in sentences:
        assert sentence in str(told.value), str(told.value)


def test_a_file_gives_the_models_logits_and_prints_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.gguf", make("llama"))
    capfd.readouterr()
    model = load_model(path)
    assert capfd.readouterr() == ("", "")
    with torch.inference_mode():
        expected = make("llama")(input_ids=TOKENS).logits
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


def test_a_quantized_file_gives_the_numbers_it_stands_for(tmp_path: Path) -> None:
    model = load_model(write(tmp_path / "a.gguf", make("llama"), quantized=True))
    own = make("llama")
    for name, weight in own.named_parameters():
        if weight.dim() == 2 and weight.shape[1] == 32:
            q8 = gguf.GGMLQuantizationType.Q8_0
            there_and_back = gguf.quants.dequantize(
                gguf.quants.quantize(weight.data.numpy(), q8), q8
            )
            weight.data = torch.from_numpy(there_and_back)
        assert model.model.get_parameter(name).dtype == torch.float32
    with torch.inference_mode():
        expected = own(input_ids=TOKENS).logits
    torch.testing.assert_close(logits(model), expected, atol=1e-4, rtol=1e-4)


def test_tensors_that_are_missing(tmp_path: Path) -> None:
    path, model = tmp_path / "a.gguf", make("llama")
    requires(write(path, model, without="blk.1.ffn_up"), "layers.1.mlp.up_proj.weight is not in")
    requires(write(path, model, without="token_embd"), "model.embed_tokens.weight is not in")
    requires(write(path, model, layers=4), "model.layers.3.", "and 5 more are not in the weights")


def test_tensors_that_would_be_left_out(tmp_path: Path) -> None:
    path, model = tmp_path / "a.gguf", make("llama")
    requires(write(path, model, layers=2), "Layer 2 of the file", "7,744 numbers", "0:")
    for name in ("blk.0.attn_q.bias", "blk.0.ffn_norm_2.weight"):
        requires(write(path, model, more={name: ONES}), "Layer 0 of the file", "7,776", "7,744")


def test_rotary_positions_that_are_scaled(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    scaled = hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, rope_parameters=rope)).eval()
    scaled.load_state_dict(make("llama").state_dict())
    usual = 10_000.0 ** -(torch.arange(0, 8, 2) / 8)
    factors = (usual / scaled.model.rotary_emb.inv_freq).numpy()
    assert factors.max() == 8
    path = write(tmp_path / "a.gguf", scaled, more={"rope_freqs.weight": factors})
    with torch.inference_mode():
        expected = scaled(input_ids=TOKENS).logits
    torch.testing.assert_close(logits(load_model(path)), expected, atol=1e-4, rtol=1e-4)
    requires(
        write(path, scaled, more={"rope_freqs.weight": ONES}), "rope_freqs.weight", "safetensors"
    )
    requires(write(path, make("llama"), scaling="yarn"), "scales rotary positions", "yarn")


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", make("llama"))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    requires(path, "Cannot load a causal or masked language model")
