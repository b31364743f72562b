"""What is refused, and in which sentence."""

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn

import anamorph as am
from anamorph.models.base import Batch
from anamorph.models.listing import missing_sites
from huggingface_models import GROUPED, SIZES, VOCABULARY, make

SEQ2SEQ = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32, "vocab_size": VOCABULARY}
ROPE = {"rope_theta": 1e4, "factor": 2.0}


class Compiled(nn.Module):
    """As torch.compile wraps a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED))


def broken() -> nn.Module:
    model: Any = make("llama")
    model.model.layers[1].mlp.down_proj.weight.data[0, 0] = torch.nan
    return model  # type: ignore[no-any-return]


def random() -> nn.Module:
    model: Any = make("llama")
    noise = torch.nn.Dropout(0.5)
    model.model.norm.register_forward_hook(lambda module, inputs, out: noise.train()(out))
    return model  # type: ignore[no-any-return]


def told_more(name: str) -> nn.Module:
    """A model that hands its attention function something that nobody knows."""
    model: Any = make("llama")
    for layer in model.model.layers:
        layer.forward = partial(layer.forward, **{name: torch.ones(1)})
    return model  # type: ignore[no-any-return]


def sharing_keys() -> nn.Module:
    """The last layer takes the keys and values of an earlier one."""
    return hf.Gemma4ForCausalLM(
        hf.Gemma4TextConfig(
            **GROUPED,
            head_dim=8,
            global_head_dim=8,
            layer_types=["sliding_attention", "full_attention", "full_attention"],
            num_kv_shared_layers=1,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=VOCABULARY,
            sliding_window=4,
        )
    )


def keeping() -> nn.Module:
    """Its last block adds what it kept of an earlier block's run."""
    model: Any = make("llama")
    kept: list[Any] = []
    model.model.layers[0].register_forward_hook(lambda m, i, out: kept.append(out))
    model.model.layers[2].register_forward_hook(lambda m, i, out: out + kept[-1].mean())
    return model  # type: ignore[no-any-return]


def compiled_in_place() -> nn.Module:
    model = make("llama")
    model.compile()
    return model


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "data parallel": (
        lambda: nn.DataParallel(make("llama")),
        r"DataParallel is a wrapper around a LlamaForCausalLM.*give.*model\.module",
    ),
    "compiled": (lambda: Compiled(make("llama")), r"wrapper.*model\._orig_mod"),
    "compiled in place": (compiled_in_place, "compiled in place"),
    "any module": (lambda: nn.Linear(3, 3), r"Linear is not a model of transformers.*HookedModel"),
    "seq2seq": (
        lambda: hf.BartForConditionalGeneration(hf.BartConfig(**SEQ2SEQ)),
        "BartForConditionalGeneration has an encoder and a decoder",
    ),
    "without values": (
        on_meta,
        r"without values, on the meta device: model\.embed_tokens\.weight, .* and 27 more",
    ),
    "classifier": (
        lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**GROUPED)),
        "no language-model head",
    ),
    "labels of tokens": (
        lambda: hf.BertForTokenClassification(hf.BertConfig(**SIZES)),
        "no language-model head",
    ),
    "pictures": (
        lambda: hf.ViTForImageClassification(
            hf.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
        ),
        "takes pixel_values, not token ids",
    ),
    "sound": (
        lambda: hf.Wav2Vec2ForCTC(
            hf.Wav2Vec2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
        ),
        "takes input_values, not token ids",
    ),
    "shared layers": (
        lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(**SIZES)),
        "has no list of 3 blocks",
    ),
    "NaN": (broken, "gives NaN"),
    "random": (random, "other logits in a second run"),
    "indices": (partial(told_more, "indices"), r"LlamaAttention hands indices= to its attention"),
    "block_table": (partial(told_more, "block_table"), "hands block_table="),
    "alibi": (partial(told_more, "alibi"), "hands alibi="),
    "shared keys": (sharing_keys, r"blocks need more than the residual stream.*KeyError"),
    "kept": (keeping, "cannot be audited block by block: the logits of"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_sentence(what: str) -> None:
    build, match = REFUSED[what]
    with pytest.raises(am.AnamorphError, match=match) as caught:
        am.HuggingFace(build().eval())
    assert "\n" not in str(caught.value)


def test_padding_that_a_model_cannot_leave_out_is_refused() -> None:
    config = hf.FNetConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2)
    model = am.HuggingFace(hf.FNetForMaskedLM(config).eval())
    tokens = torch.arange(10).view(2, 5)
    model.start(Batch.whole(tokens))
    with pytest.raises(am.AnamorphError, match=r"Padding at the right.*sequences of one length"):
        model.start(Batch(tokens, torch.tensor([[True] * 5, [True, True, False, False, False]])))


def test_a_window_without_a_mask_is_refused() -> None:
    model: Any = make("mistral")  # its window is 4
    audited = am.HuggingFace(model)
    for layer in model.model.layers:
        layer.forward = partial(_without_mask, layer.forward)
    tokens = torch.arange(9)[None] + 3
    with pytest.raises(am.AnamorphError, match=r"sliding window of 4 tokens.*no mask.*for 9"):
        audited.layer(0, audited.start(Batch.whole(tokens)))


def _without_mask(forward: Any, *arguments: Any, attention_mask: Any = None, **more: Any) -> Any:
    return forward(*arguments, attention_mask=None, **more)


def test_layers_with_other_numbers_of_heads_have_no_heads() -> None:
    config = hf.Gemma4TextConfig(
        **GROUPED,
        head_dim=8,
        global_head_dim=8,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=VOCABULARY,
        sliding_window=4,
    )
    model = am.HuggingFace(hf.Gemma4ForCausalLM(config).eval())
    assert {site.layer for site in model.sites if site.kind == "key"} == {0, 1}
    assert "in layers 2" in missing_sites(model)[0]
    assert "other numbers of heads than layer 0" in missing_sites(model)[0]


# --- threads --------------------------------------------------------------------------------------


def rotary(kind: str) -> nn.Module:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    more = {**factors, "original_max_position_embeddings": 16} if kind == "longrope" else {}
    parameters = {"rope_type": kind, **ROPE, **more}
    return hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, rope_parameters=parameters)).eval()


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_what_depends_on_the_longest_of_a_batch_is_run_alone(kind: str) -> None:
    model = am.HuggingFace(rotary(kind))
    assert not model.parallel
    assert model.context == (16 if kind == "longrope" else 32)  # up to there it does not depend


def test_what_keeps_something_of_a_run_is_run_alone() -> None:
    model: Any = make("llama")
    model.model.norm.register_forward_hook(
        lambda module, inputs, out: setattr(module, "length", out.shape[1])
    )
    assert not am.HuggingFace(model).parallel
    for name in ("gpt2", "llama", "gemma3", "bert"):
        assert am.HuggingFace(make(name)).parallel


@pytest.mark.parametrize("name", ["llama", "gemma3", "bert"])
def test_two_threads_give_what_one_gives(name: str) -> None:
    model = am.HuggingFace(make(name))
    batches = [torch.randint(3, VOCABULARY, (2, n)) for n in (5, 9, 16, 7)]

    def logits(tokens: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return model.logits(model.run(Batch.whole(tokens)).state)

    expected = [logits(tokens) for tokens in batches]
    wrong: list[int] = []

    def work() -> None:
        for _ in range(5):
            for i, tokens in enumerate(batches):
                if not torch.allclose(logits(tokens), expected[i], atol=1e-5):
                    wrong.append(i)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
