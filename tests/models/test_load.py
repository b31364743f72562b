"""Checkpoints as they are found: whole, or missing this and that."""

import json
import logging
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import anamorph as am
import transformers_tiny as tiny
from anamorph.models.base import Batch
from anamorph.models.load import _config, _loading, _model, load_model
from huggingface_models import GROUPED, make

hf = pytest.importorskip("transformers")

Weights = dict[str, Tensor]
FILE = "model.safetensors"
LLAMA, BERT, GPT2, QWEN = "llama", "bert", "gpt2", "qwen2"


def folder(
    path: Path, name: str = LLAMA, change: Callable[[Weights], Weights] | None = None
) -> Path:
    """A saved model, its weights changed in the file."""
    make(name).save_pretrained(path)  # type: ignore[operator]
    if change is not None:
        save_file(change(load_file(path / FILE)), path / FILE, {"format": "pt"})
    return path


def configured(path: Path, **changes: Any) -> Path:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))
    return path


def renamed(of: str, to: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name.replace(of, to, 1): x for name, x in weights.items()}


def within(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: x for name, x in weights.items()}


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda weights: {n: x for n, x in weights.items() if not any(p in n for p in parts)}


def logits(model: am.HuggingFace, tokens: Tensor) -> Tensor:
    with torch.inference_mode():
        state = model.start(Batch(tokens, torch.ones_like(tokens).bool()))
        for layer in range(model.layers):
            state = model.layer(layer, state)
        return model.logits(state)[0]


def requires(path: Path, *sentences: str) -> None:
    with pytest.raises(am.AnamorphError) as told:
        load_model(path)
    for sentence in sentences:
        assert sentence in str(told.value), str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", [LLAMA, BERT, GPT2, QWEN])
def test_a_whole_checkpoint_gives_the_models_own_logits(tmp_path: Path, name: str) -> None:
    model = load_model(folder(tmp_path, name))
    tokens = torch.arange(3, 15)[None]
    with torch.inference_mode():
        expected = make(name)(input_ids=tokens).logits
    torch.testing.assert_close(logits(model, tokens), expected, atol=1e-4, rtol=1e-4)


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
    requires(folder(tmp_path, name, within(prefix)), f"have {prefix!r} too much", wrapper)


def test_names_with_something_between(tmp_path: Path) -> None:
    path = folder(tmp_path, LLAMA, renamed(".self_attn.", "._fsdp_wrapped_module.self_attn."))
    requires(path, "and 8 more are not in the weights", "'_fsdp_wrapped_module.' too much", "FSDP")


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
    requires(path, "'module.' too much", "DataParallel wraps")
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
    "architecture", ["LlamaForSequenceClassification", "LlamaForQuestionAnswering"]
)
def test_a_model_with_another_head(tmp_path: Path, architecture: str) -> None:
    config = make(LLAMA).config
    config.num_labels = 2  # type: ignore[union-attr]
    getattr(hf, architecture)(config).save_pretrained(tmp_path)
    requires(tmp_path, f"is of {architecture} (llama)", "no language-model head")


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


def test_heads_beside_the_language_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    both = hf.BertForPreTraining(make(BERT).config).eval()
    both.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    tokens = torch.arange(3, 15)[None]
    with torch.inference_mode():
        expected = both(input_ids=tokens).prediction_logits
    torch.testing.assert_close(logits(model, tokens), expected, atol=1e-4, rtol=1e-4)
    assert not model.causal


def test_a_configuration_that_names_no_class(tmp_path: Path) -> None:
    for name, causal in ((BERT, False), (LLAMA, True)):
        path = configured(folder(tmp_path / name, name), architectures=None)
        assert load_model(path).causal is causal


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


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(am.AnamorphError, match=r"no tokenizer in .* tokenizer\.save_pretrained"):
        am.load_pretrained(folder(tmp_path))
    with pytest.raises(am.AnamorphError, match="is no GGUF file"):
        am.load_pretrained(tmp_path / FILE)


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


def test_weights_in_half_precision_become_float32(tmp_path: Path) -> None:
    path = folder(tmp_path, LLAMA, lambda w: {n: x.bfloat16() for n, x in w.items()})
    model = load_model(configured(path, dtype="bfloat16"))
    assert {p.dtype for p in model.model.parameters()} == {torch.float32}
    own = make(LLAMA).get_parameter("lm_head.weight")
    assert torch.equal(model.model.lm_head.weight, own.bfloat16().float())


@pytest.mark.parametrize("base", [True, False])
def test_an_adapter(tmp_path: Path, base: bool) -> None:
    if base:
        folder(tmp_path)
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 32)}
    save_file(lora, tmp_path / "adapter_model.safetensors")
    adapter = {"base_model_name_or_path": "somewhere", "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    requires(tmp_path, "An adapter (adapter_config.json) lies in", "merge_and_unload")


def test_an_adapter_among_the_weights(tmp_path: Path) -> None:
    def change(weights: Weights) -> Weights:
        key = "base_model.model.model.layers.0.self_attn.q_proj"
        return {f"base_model.model.{name}": x for name, x in weights.items()} | {
            f"{key}.lora_A.weight": torch.ones(2, 32)
        }

    requires(folder(tmp_path, LLAMA, change), "adapter", "merge_and_unload")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("T5Config", "an encoder with a decoder"),
        ("BartConfig", "an encoder with a decoder"),
        ("MarianConfig", "an encoder with a decoder"),
        ("ViTConfig", "no causal or masked language model"),
        ("WhisperConfig", "an encoder with a decoder"),
        ("Wav2Vec2Config", "no causal or masked language model"),
        ("CLIPConfig", "no causal or masked language model"),
    ],
)
def test_models_of_other_kinds(tmp_path: Path, config: str, sentence: str) -> None:
    getattr(hf, config)().save_pretrained(tmp_path)
    requires(tmp_path, sentence)


def test_code_that_comes_with_a_model(tmp_path: Path) -> None:
    path = folder(tmp_path)
    ran = tmp_path / "ran"
    (path / "modeling_mine.py").write_text(f"open({str(ran)!r}, 'w')")
    code = {"AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Mine"}
    load_model(configured(path, auto_map=code))  # transformers has a class for it
    requires(configured(path, model_type="mine"), "'mine'", "code that comes with a model is not")
    configured(path, auto_map=None, model_type="newer")
    config = json.loads((path / "config.json").read_text())
    del config["auto_map"]
    (path / "config.json").write_text(json.dumps(config))
    requires(path, "'newer'", "A newer version may")
    assert not ran.exists()


def test_an_embedding_and_a_head_that_are_said_to_be_one(tmp_path: Path) -> None:
    path = configured(folder(tmp_path), tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="two that differ"):
        model = load_model(path)
    tokens = torch.arange(3, 15)[None]
    expected = make(LLAMA)(input_ids=tokens).logits
    torch.testing.assert_close(logits(model, tokens), expected, atol=1e-4, rtol=1e-4)


def test_loading_leaves_everything_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub.utils as hub

    path = folder(tmp_path)
    load_model(path)
    hf.logging.set_verbosity(logging.INFO)
    for shown in (True, False):
        (hf.logging.enable_progress_bar if shown else hf.logging.disable_progress_bar)()
        torch.manual_seed(3)
        before = torch.get_rng_state(), dict(os.environ), list(warnings.filters)
        capfd.readouterr()
        load_model(path)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert (dict(os.environ), list(warnings.filters)) == before[1:]
        assert hf.logging.is_progress_bar_enabled() is shown
        assert hub.are_progress_bars_disabled() is not shown
        assert hf.logging.get_verbosity() == logging.INFO
        assert capfd.readouterr() == ("", "")
    hf.logging.set_verbosity(logging.WARNING)
    hf.logging.enable_progress_bar()


def test_errors_leave_everything_as_it_was_too(tmp_path: Path) -> None:
    before = hf.logging.get_verbosity(), hf.logging.is_progress_bar_enabled()
    requires(folder(tmp_path, LLAMA, without("lm_head")), "lm_head")
    assert (hf.logging.get_verbosity(), hf.logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("name", ["Emu3ForCausalLM", "InklingForCausalLM", "XmodForMaskedLM"])
def test_classes_that_no_auto_class_finds(tmp_path: Path, name: str) -> None:
    """A text model that comes out of a larger one has a model type of its own."""
    torch.manual_seed(0)
    own = tiny.make(name, tiny.classes()[name])
    own.save_pretrained(tmp_path)  # type: ignore[operator]
    with _loading(tmp_path, hub=False) as (transformers, where, options):
        model = _model(transformers, where, _config(transformers, where, options), options)
    assert type(model) is type(own)
    for key, value in own.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
