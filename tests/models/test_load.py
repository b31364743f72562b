"""What is loaded, as what, and what loading leaves behind."""

import json
import logging
import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import anamorph as am
import transformers_tiny as tiny
from anamorph.models.huggingface.load import _config, _loading, _model, load_model
from checkpoints import (
    BERT,
    FILE,
    GPT2,
    LLAMA,
    QWEN,
    configured,
    folder,
    logits,
    requires,
    without,
)
from huggingface_models import make

hf = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", [LLAMA, BERT, GPT2, QWEN])
def test_a_whole_checkpoint_gives_the_models_own_logits(tmp_path: Path, name: str) -> None:
    model = load_model(folder(tmp_path, name))
    tokens = torch.arange(3, 15)[None]
    with torch.inference_mode():
        expected = make(name)(input_ids=tokens).logits
    torch.testing.assert_close(logits(model, tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "architecture", ["LlamaForSequenceClassification", "LlamaForQuestionAnswering"]
)
def test_a_model_with_another_head(tmp_path: Path, architecture: str) -> None:
    config = make(LLAMA).config
    config.num_labels = 2  # type: ignore[union-attr]
    getattr(hf, architecture)(config).save_pretrained(tmp_path)
    requires(tmp_path, f"is of {architecture} (llama)", "no language-model head")


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


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(am.AnamorphError, match=r"no tokenizer in .* tokenizer\.save_pretrained"):
        am.load_pretrained(folder(tmp_path))
    with pytest.raises(am.AnamorphError, match="is not a GGUF file"):
        am.load_pretrained(tmp_path / FILE)


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


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("T5Config", "an encoder with a decoder"),
        ("BartConfig", "an encoder with a decoder"),
        ("MarianConfig", "an encoder with a decoder"),
        ("ViTConfig", "not a causal or masked language model"),
        ("WhisperConfig", "an encoder with a decoder"),
        ("Wav2Vec2Config", "not a causal or masked language model"),
        ("CLIPConfig", "not a causal or masked language model"),
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
