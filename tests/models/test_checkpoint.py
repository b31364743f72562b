"""Checkpoints as they are found: whole, or missing this and that."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import transformers_tiny as tiny
from anamorph.models.huggingface.load import _config, _loading, _model, load_model
from checkpoints import (
    BERT,
    FILE,
    GPT2,
    LLAMA,
    QWEN,
    Weights,
    configured,
    folder,
    logits,
    renamed,
    requires,
    within,
    without,
)
from huggingface_models import GROUPED, make

hf = pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [
        ("_orig_mod.", "torch.compile"),
        ("module.", "DataParallel"),
        ("_forward_module.", "Lightning"),
        ("net.", ""),
        ("module._orig_mod.", "torch.compile"),
        ("student.backbone.", ""),
    ],
)
@pytest.mark.parametrize("name", [LLAMA, BERT])
def test_names_with_something_in_front(
    tmp_path: Path, prefix: str, wrapper: str, name: str
) -> None:
    requires(folder(tmp_path, name, within(prefix)), f"have {prefix!r} in addition", wrapper)


def test_names_with_something_between(tmp_path: Path) -> None:
    path = folder(tmp_path, LLAMA, renamed(".self_attn.", "._fsdp_wrapped_module.self_attn."))
    requires(
        path, "and 8 more are not in the weights", "'_fsdp_wrapped_module.' in addition", "FSDP"
    )


def test_names_with_something_too_few(tmp_path: Path) -> None:
    """As of a model's inside, or with it twice: transformers finds its way."""
    tokens = torch.arange(3, 15)[None]
    expected = make(LLAMA)(input_ids=tokens).logits
    for number, to in enumerate(("model.model.", "")):
        model = load_model(folder(tmp_path / str(number), LLAMA, renamed("model.", to)))
        torch.testing.assert_close(logits(model, tokens), expected, atol=1e-4, rtol=1e-4)


def test_weights_of_a_wrapped_model(tmp_path: Path) -> None:
    path = folder(tmp_path, GPT2)
    (path / FILE).unlink()
    torch.save(torch.nn.DataParallel(make(GPT2)).state_dict(), path / "pytorch_model.bin")
    requires(path, "'module.' in addition", "DataParallel wraps")
    torch.save(make(GPT2).state_dict(), path / "pytorch_model.bin")
    load_model(path)


@pytest.mark.parametrize(
    ("name", "change", "sentences"),
    [
        (LLAMA, without("lm_head"), ["lm_head.weight is not in", "head is not there"]),
        (BERT, without("cls."), ["cls.predictions", "head is not there"]),
        (LLAMA, without("layers.1."), ["model.layers.1.input_layernorm.weight", "and 5 more are"]),
        (LLAMA, without("layers.1.mlp.up"), ["model.layers.1.mlp.up_proj.weight is not in"]),
        (QWEN, without("q_proj.bias"), ["model.layers.0.self_attn.q_proj.bias"]),
        (LLAMA, without("embed_tokens"), ["model.embed_tokens.weight is not in"]),
        (LLAMA, without("model."), ["random numbers"]),
    ],
)
def test_weights_that_are_missing(
    tmp_path: Path, name: str, change: Callable[[Weights], Weights], sentences: list[str]
) -> None:
    requires(folder(tmp_path, name, change), *sentences, "would hold random numbers")


def test_a_head_that_is_tied_need_not_be_there(tmp_path: Path) -> None:
    assert "lm_head.weight" not in load_file(folder(tmp_path, GPT2) / FILE)
    load_model(tmp_path)


def test_a_model_without_its_head(tmp_path: Path) -> None:
    for name, base in ((LLAMA, "model"), (BERT, "bert")):
        getattr(make(name), base).save_pretrained(tmp_path / name)
        requires(tmp_path / name, "The language-model head is not there")
    make(GPT2).transformer.save_pretrained(tmp_path / GPT2)  # type: ignore[union-attr, operator]
    model = load_model(tmp_path / GPT2)  # the head is the embedding
    tokens = torch.arange(3, 15)[None]
    expected = make(GPT2)(input_ids=tokens).logits
    torch.testing.assert_close(logits(model, tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (LLAMA, lambda w: w | {"lm_head.weight": torch.ones(64, 32)}, "[64, 32] for [61, 32]"),
        (LLAMA, lambda w: w | {"model.embed_tokens.weight": torch.ones(70, 32)}, "[70, 32]"),
        (
            GPT2,
            lambda w: {n: x[..., :64].clone() if "c_attn" in n else x for n, x in w.items()},
            "[32, 64]",
        ),
        (BERT, lambda w: w | {"bert.embeddings.word_embeddings.weight": torch.ones(2, 32)}, "[2,"),
    ],
)
def test_weights_of_other_shapes(
    tmp_path: Path, name: str, change: Callable[[Weights], Weights], told: str
) -> None:
    requires(folder(tmp_path, name, change), told, "another shape than config.json says")


def test_a_configuration_of_another_model(tmp_path: Path) -> None:
    path = configured(folder(tmp_path), num_hidden_layers=2)
    requires(path, "model.layers.2.input_layernorm.weight", "have no place", "left out")
    requires(configured(path, num_hidden_layers=4), "model.layers.3.input_layernorm.weight", "lost")
    requires(configured(path, num_hidden_layers=3, hidden_size=16), "another shape")
    requires(
        configured(path, hidden_size=32, attention_bias=True), "self_attn.k_proj.bias", "are not in"
    )


def test_weights_that_would_be_left_out(tmp_path: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(32), "lm_head.bias": torch.ones(61)}
    path = folder(tmp_path, LLAMA, lambda weights: weights | bias)
    requires(path, "lm_head.bias, model.layers.0.self_attn.q_proj.bias", "have no place")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        (BERT, ["bert.pooler.dense.weight", "cls.seq_relationship.weight", "classifier.bias"]),
        (BERT, ["bert.embeddings.position_ids"]),
        (LLAMA, ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.mtp.0.weight"]),
        (LLAMA, ["vision_tower.layers.0.weight", "v_head.summary.weight"]),
        (GPT2, ["transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias"]),
        ("neox", ["gpt_neox.layers.0.attention.bias", "gpt_neox.layers.0.attention.masked_bias"]),
    ],
)
def test_what_a_language_model_has_no_use_for(tmp_path: Path, name: str, more: list[str]) -> None:
    load_model(folder(tmp_path, name, lambda weights: weights | {n: torch.ones(2) for n in more}))


def test_shards(tmp_path: Path) -> None:
    make(LLAMA).save_pretrained(tmp_path, max_shard_size="20kB")  # type: ignore[operator]
    load_model(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    kept = {n: f for n, f in places["weight_map"].items() if f != shards[1].name}
    index.write_text(json.dumps(places | {"weight_map": kept}))
    requires(tmp_path, "would hold random numbers")
    index.write_text(json.dumps(places))
    shards[1].unlink()
    requires(tmp_path, f"{shards[1].name}, which model.safetensors.index.json names, is not there")


def cut(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def test_files_that_are_damaged(tmp_path: Path) -> None:
    path = folder(tmp_path)
    cut(path / FILE)
    requires(path, "Cannot load", "model.safetensors is damaged or cut off")
    (path / FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 3")
    requires(path, "git lfs pull")
    (path / FILE).unlink()
    requires(path, "Cannot load", "model.safetensors")
    bin = path / "pytorch_model.bin"
    torch.save(make(LLAMA).state_dict(), bin)
    cut(bin)
    requires(path, "pytorch_model.bin is damaged or cut off")
    torch.save(make(LLAMA), bin)
    requires(path, "pytorch_model.bin holds more than tensors")
    (path / "config.json").unlink()
    requires(path, "There is no config.json")


@pytest.mark.parametrize("name", ["state_dict", "model", "model_state_dict"])
def test_checkpoints_of_a_training_run(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path)
    (path / FILE).unlink()
    torch.save({name: make(LLAMA).state_dict(), "step": 3}, path / "pytorch_model.bin")
    requires(path, "checkpoint of a training run", f"in {name!r}")


def test_experts_that_are_missing(tmp_path: Path) -> None:
    sizes = {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}
    hf.MixtralForCausalLM(hf.MixtralConfig(**sizes)).save_pretrained(tmp_path)
    load_model(tmp_path)
    whole = load_file(tmp_path / FILE)
    for parts, sentence in (
        (("layers.1.block_sparse_moe.experts.2.",), "[3, 32, 48] for [4, 32, 48]"),
        (("layers.1.block_sparse_moe.experts.2.w3",), "do not fit together"),
        ((".experts.",), "random numbers"),
    ):
        save_file(without(*parts)(whole), tmp_path / FILE, {"format": "pt"})
        requires(tmp_path, sentence)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    key = "model.layers.1.mlp.up_proj.weight"

    def spoilt(value: float) -> Callable[[Weights], Weights]:
        def change(weights: Weights) -> Weights:
            weights[key][3, 4] = value
            return weights

        return change

    requires(folder(tmp_path / "nan", LLAMA, spoilt(torch.nan)), f"{key} has NaN or infinite")
    requires(folder(tmp_path / "inf", LLAMA, spoilt(-torch.inf)), f"{key} has NaN or infinite")
    load_model(folder(tmp_path / "large", LLAMA, spoilt(-1e4)))
    zeros = folder(tmp_path / "zeros", LLAMA, lambda w: {n: x * 0 for n, x in w.items()})
    requires(zeros, "All weights are zero")


def test_an_adapter_among_the_weights(tmp_path: Path) -> None:
    def change(weights: Weights) -> Weights:
        key = "base_model.model.model.layers.0.self_attn.q_proj"
        return {f"base_model.model.{name}": x for name, x in weights.items()} | {
            f"{key}.lora_A.weight": torch.ones(2, 32)
        }

    requires(folder(tmp_path, LLAMA, change), "adapter", "merge_and_unload")


ONE = torch.ones(2)


def plus(*names: str) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: ONE.clone() for name in names}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("BertForMaskedLM", renamed("LayerNorm.weight", "LayerNorm.gamma")),
        ("BertForMaskedLM", plus("bert.pooler.dense.weight", "cls.seq_relationship.bias")),
        (
            "RobertaForMaskedLM",
            plus("roberta.pooler.dense.bias", "roberta.embeddings.position_ids"),
        ),
        ("GPT2LMHeadModel", renamed("transformer.", "")),
        ("GPT2LMHeadModel", plus("transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias")),
        ("GPTJForCausalLM", plus("transformer.h.0.attn.bias", "transformer.h.0.attn.masked_bias")),
        ("GPTNeoForCausalLM", plus("transformer.h.0.attn.attention.bias")),
        ("CodeGenForCausalLM", plus("transformer.h.0.attn.causal_mask")),
        ("BloomForCausalLM", renamed("transformer.", "")),
        ("OPTForCausalLM", renamed("model.decoder.", "decoder.")),
        ("XGLMForCausalLM", plus("model.embed_positions.weights")),
        ("AlbertForMaskedLM", plus("albert.pooler.weight", "sop_classifier.classifier.weight")),
        ("DeepseekV3ForCausalLM", plus("model.layers.61.eh_proj.weight")),
        ("MistralForCausalLM", plus("model.layers.0.self_attn.rotary_emb.inv_freq")),
    ],
)
def test_files_as_they_lie_on_the_hub(
    tmp_path: Path, name: str, change: Callable[[Weights], Weights]
) -> None:
    own = tiny.make(name, tiny.classes()[name])
    own.save_pretrained(tmp_path)  # type: ignore[operator]
    save_file(change(load_file(tmp_path / FILE)), tmp_path / FILE, {"format": "pt"})
    with _loading(tmp_path, hub=False) as (transformers, where, options):
        model = _model(transformers, where, _config(transformers, where, options), options)
    for key, value in own.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize(
    "name", ["prompt_encoder.embedding.weight", "logit_scale", "ema.head.weight"]
)
def test_a_part_that_is_left_out_is_told(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path, LLAMA, lambda weights: weights | {name: torch.ones(3)})
    with pytest.warns(UserWarning, match=f"{name} in the weights is left out"):
        load_model(path)


def test_an_adapter_without_its_configuration(tmp_path: Path) -> None:
    path = folder(tmp_path, LLAMA)
    save_file({"x": torch.ones(1)}, path / "adapter_model.safetensors")
    requires(path, "An adapter (adapter_model.safetensors) lies in", "merge")
