"""Views from disk: every law, the site that a file names, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import anamorph as am
from anamorph.errors import AnamorphError
from anamorph.models.base import Batch
from anamorph.models.sites import Site
from anamorph.simplifications import (
    Simplification,
    Where,
    check_proxies,
    check_readable,
    check_simplification,
    expand,
    fit,
    from_disk,
    parse,
)
from anamorph.simplifications.base import Simplified
from anamorph.simplifications.methods.clt import CLT
from anamorph.simplifications.methods.sae import SAE
from anamorph.simplifications.methods.transcoder import Transcoder
from anamorph.tasks import Task
from coders import Drawn, cross_layer, sae, transcoder, transcoder_set
from plain import small_model

WORD = Batch.whole(torch.tensor([[0, 2, 3, 5, 6, 4, 7, 1]]))


@pytest.fixture(scope="module")
def model(task: Task) -> am.Decoder:
    return small_model(task, layers=3)


# --- every format -------------------------------------------------------------------------------


def weights(transposed: bool = False) -> dict[str, torch.Tensor]:
    draw = Drawn()
    encoder = draw(20, 8) if transposed else draw(8, 20)
    return {"W_enc": encoder, "b_enc": draw(20), "W_dec": draw(20, 8), "b_dec": draw(8)}


def of_gemma_scope_1(folder: Path) -> Simplification:
    folder = folder / "layer_3"
    folder.mkdir()
    arrays = {name: value.numpy() for name, value in weights().items()}
    np.savez(folder / "params.npz", **arrays, threshold=np.full(20, 0.1, np.float32))
    return SAE(path=str(folder))


def of_gemma_scope_2(folder: Path) -> Simplification:
    lower = {name.lower(): value for name, value in weights().items()}
    save_file(lower | {"threshold": torch.full((20,), 0.1)}, folder / "params.safetensors")
    places = {"in": "pre_feedforward_layernorm", "out": "post_feedforward_layernorm"}
    said = {f"hf_hook_point_{k}": f"model.layers.9.{v}.output" for k, v in places.items()}
    (folder / "config.json").write_text(json.dumps(said))
    return Transcoder(path=str(folder / "params.safetensors"))


def of_sparsify(folder: Path) -> Simplification:
    folder = folder / "layers.7"
    folder.mkdir()
    w = weights(transposed=True)
    names = {"W_enc": "encoder.weight", "b_enc": "encoder.bias"}
    save_file({names.get(k, k): v for k, v in w.items()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"k": 3}))
    return SAE(path=str(folder))


def of_dictionary_learning(folder: Path) -> Simplification:
    said = {"dict_class": "JumpReluAutoEncoder", "submodule_name": "resid_post_layer_1"}
    (folder / "config.json").write_text(json.dumps({"trainer": said}))
    torch.save(weights() | {"threshold": torch.full((20,), 0.1)}, folder / "ae.pt")
    return SAE(path=str(folder))


def of_a_set(folder: Path) -> Simplification:
    transcoder_set(folder, 4, 8)
    return Transcoder(path=str(folder))


def of_layers(folder: Path) -> Simplification:
    cross_layer(folder, 4, 8)
    return CLT(path=str(folder))


def of_gemma_scope_2_layers(folder: Path) -> Simplification:
    for layer in range(4):
        draw = Drawn(layer)
        w = {"w_enc": draw(8, 20), "b_enc": draw(20), "w_dec": draw(20, 4, 8), "b_dec": draw(8)}
        w["affine_skip_connection"] = draw(8, 8)
        file = folder / f"params_layer_{layer}.safetensors"
        save_file(w | {"threshold": torch.full((20,), 0.1)}, file)
    return CLT(path=str(folder))


FORMATS = [
    lambda folder: SAE(path=sae(folder / "a", 3, 8)),
    lambda folder: Transcoder(path=transcoder(folder / "a", 3, 8)),
    of_gemma_scope_1,
    of_gemma_scope_2,
    of_sparsify,
    of_dictionary_learning,
    of_a_set,
    of_layers,
    of_gemma_scope_2_layers,
]


@pytest.mark.parametrize("more", [{}, {"error": True}], ids=str)
@pytest.mark.parametrize("make", FORMATS)
def test_they_keep_every_law(tmp_path: Path, make: Any, more: dict[str, Any]) -> None:
    made = make(tmp_path)
    check_simplification(type(made)(**made.get_params() | more))


@pytest.mark.parametrize("make", FORMATS)
def test_some_points_at_a_time_make_the_same(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, draw = make(tmp_path), Drawn(3)
    read = tuple(draw(3, 7, 8, scale=1) for _ in made.reads(Site(3, None, "mlp")) or (0,))
    whole = made.learn(None)(*read)
    monkeypatch.setattr(from_disk, "FEATURES", 100)  # of 20 features, 5 points
    torch.testing.assert_close(made(*read), whole)
    torch.testing.assert_close(made(*(x[1, 2] for x in read)), whole[1, 2])


# --- the text -----------------------------------------------------------------------------------


def test_a_value_alone_is_the_path() -> None:
    text = 'sae( "my coders/a" , keep=1)@1.residual'
    (proxy,) = parse(text)
    assert isinstance(proxy, Simplified)
    (attachment,) = proxy.attachments
    assert (attachment.simplification, attachment.keep) == (SAE(path="my coders/a"), 1)
    assert str(proxy) == 'sae(path="my coders/a", keep=1)@1.residual'
    check_readable([proxy])
    assert [str(p) for p in parse("sae([a/1,2])+svd(rank=1)@1.mlp")] == [
        "sae(path=a/1)+svd(rank=1)@1.mlp",
        'sae(path="2")+svd(rank=1)@1.mlp',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sae(a, path=b)@1.residual", "gives path of sae twice"),
        ("sae(keep=1, a)@1.residual", "expected '=' and a value"),
        ("sae(a, 1)@1.residual", "expected the name of a parameter"),
        ("sae@1.residual", "sae needs path"),
        ("onehot(a)@1.0.pattern", "onehot has no path, which a value without a name would be"),
        ("sae(a, keep=-1)@1.residual", "keep must be a whole number from 0; got -1"),
        ("sae(a, error=1.5)@1.residual", "error must be true or false; got 1.5"),
        ("sae(path=3)@1.residual", "the path is 3; give the folder as text"),
        ("clt(a, source=nonsense)@1.mlp", "source must be one of residual, .*; got 'nonsense'"),
        ("clt(a)+svd(rank=2)@1.mlp", "clt needs a site of its own"),
    ],
)
def test_texts_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        parse(text)


# --- the site that a file names -----------------------------------------------------------------


def tried(model: am.Decoder, spec: str) -> None:
    check_proxies(model, expand(spec), {"train": [WORD]})


def test_the_site_that_a_file_names_is_checked(model: am.Decoder, tmp_path: Path) -> None:
    path = sae(tmp_path / "a", 1, 8)
    tried(model, f"sae({path})@1.residual")
    for site in ("0.residual", "1.mlp"):
        message = r"made for 1\.residual of tiny \(the file says blocks\.1\.hook_resid_post\), "
        with pytest.raises(AnamorphError, match=rf"@{site}, at {site}.*{message}.*to {site}"):
            tried(model, f"sae({path})@{site}")
    with pytest.raises(AnamorphError, match=r"made for 1\.residual .* is attached to 0\.residual"):
        tried(model, f"sae({path})@*.residual")
    both = Where((Site(1, None, "residual"), Site(1, None, "mlp")))
    with pytest.raises(AnamorphError, match=r"made for 1\.residual .* is attached to 1\.mlp"):
        SAE(path=str(path)).placed(both)  # as sites that share a fit are
    path = transcoder(tmp_path / "b", 2, 8)
    tried(model, f"transcoder({path})@2.mlp")
    with pytest.raises(AnamorphError, match=r"made for 2\.mlp of tiny .* is attached to 1\.mlp"):
        tried(model, f"transcoder({path})@1.mlp")
    with pytest.raises(AnamorphError, match=r"reads blocks.2.mlp.hook_in .* Use transcoder\(PATH"):
        tried(model, f"sae({path})@2.mlp")
    path = sae(tmp_path / "c", 2, 8, place="mlp_out")
    with pytest.raises(AnamorphError, match=r"it is an autoencoder. Use sae\(PATH\)"):
        tried(model, f"transcoder({path})@2.mlp")


def test_a_module_before_a_norm_is_not_our_site(tmp_path: Path) -> None:
    folder = tmp_path / "layers.3.mlp"
    folder.mkdir()
    save_file(
        {
            "encoder.weight": torch.ones(20, 8),
            "encoder.bias": torch.ones(20),
            "W_dec": torch.ones(20, 8),
            "b_dec": torch.ones(8),
        },
        folder / "sae.safetensors",
    )
    said = {"k": 2, "activation": "topk", "num_latents": 20, "d_in": 8, "transcode": False}
    (folder / "cfg.json").write_text(json.dumps(said))
    site = Site(3, None, "mlp")
    sae = SAE(path=str(folder))
    assert sae.placed(Where((site,), (), (8, 8), {"class": "LlamaForCausalLM"})) == sae
    for model in ("Gemma3ForCausalLM", "Olmo2ForCausalLM"):
        with pytest.raises(AnamorphError, match=rf"{model} applies a norm .* 3\.mlp is behind"):
            sae.placed(Where((site,), (), (8, 8), {"class": model}))


def test_one_heads_autoencoder(model: am.Decoder, tmp_path: Path) -> None:
    path = sae(tmp_path, 1, 4, place="resid_post")
    said = json.loads((tmp_path / "cfg.json").read_text())
    said["metadata"] |= {"hook_name": "blocks.1.attn.hook_z", "hook_head_index": 1}
    (tmp_path / "cfg.json").write_text(json.dumps(said))
    tried(model, f"sae({path})@1.1.output")
    with pytest.raises(AnamorphError, match=r"made for 1\.1\.output .* is attached to 1\.0\.outp"):
        tried(model, f"sae({path})@1.0.output")


def test_widths_are_checked_before_anything_is_fitted(model: am.Decoder, tmp_path: Path) -> None:
    path = sae(tmp_path / "a", 1, 12)
    with pytest.raises(AnamorphError, match=r"of width 12, and 1\.residual has width 8"):
        tried(model, f"sae({path})@1.residual")
    path = transcoder(tmp_path / "b", 1, 12)
    for more in ("", ", keep=1"):
        with pytest.raises(AnamorphError, match=r"of width 12, and 1\.mlp_input has width 8"):
            tried(model, f"transcoder({path}{more})@1.mlp")
    cross_layer(tmp_path / "c", 3, 12)
    with pytest.raises(AnamorphError, match=r"of width 12, and 0\.mlp_input has width 8"):
        tried(model, f"clt({tmp_path / 'c'})@*.mlp")
    cross_layer(tmp_path / "d", 2, 8)
    with pytest.raises(AnamorphError, match="has 2 layers, and the model 3; it was made for"):
        tried(model, f"clt({tmp_path / 'd'})@0-1.mlp")


def test_a_file_that_names_no_site_is_taken_at_its_word(model: am.Decoder, tmp_path: Path) -> None:
    tried(model, f"{of_gemma_scope_1(tmp_path)}@2.mlp")


NAMES = {
    "resid_post_layer_3": "residual",
    "mlp_out_layer_3": "mlp",
    "attn_out_layer_3": "attention",
    "gpt_neox.layers.3": "residual",
    "gpt_neox.layers.3.attention": "attention",
    "transformer.h.3.mlp": "mlp",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_dictionary_learning(model: am.Decoder, tmp_path: Path, name: str) -> None:
    path = of_dictionary_learning(tmp_path).path  # type: ignore[attr-defined]
    said = {"trainer": {"dict_class": "JumpReluAutoEncoder", "submodule_name": name}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    kind = NAMES[name]
    with pytest.raises(AnamorphError, match=rf"made for 3\.{kind} .* is attached to 1\.{kind}"):
        tried(model, f"sae({path})@1.{kind}")


def test_what_a_transcoder_reads(model: am.Decoder, tmp_path: Path) -> None:
    named = transcoder(tmp_path / "a", 1, 8, reads="hook_resid_mid")
    assert Transcoder(path=named).reads(Site(1, None, "mlp")) == (Site(1, None, "middle"),)
    with pytest.raises(AnamorphError, match=r"reads 1\.middle .* and source is mlp_input; leave"):
        tried(model, f"transcoder({named}, source=mlp_input)@1.mlp")
    before = transcoder(tmp_path / "b", 1, 8, reads="hook_resid_pre")
    assert Transcoder(path=before).reads(Site(1, None, "mlp")) == (Site(0, None, "residual"),)
    tried(model, f"transcoder({before})@1.mlp")
    processed = transcoder(tmp_path / "c", 1, 8, reads="ln2.hook_normalized")
    message = r"blocks\.1\.ln2\.hook_normalized, .* before its gain .* source=mlp_input"
    with pytest.raises(AnamorphError, match=message):
        tried(model, f"transcoder({processed})@1.mlp")
    tried(model, f"transcoder({processed}, source=mlp_input)@1.mlp")


def test_what_was_trained_on_a_processed_model_is_refused(
    model: am.Decoder, tmp_path: Path
) -> None:
    path = sae(tmp_path, 1, 8)
    said = json.loads((tmp_path / "cfg.json").read_text())
    said["metadata"]["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    (tmp_path / "cfg.json").write_text(json.dumps(said))
    with pytest.raises(AnamorphError, match=r"TransformerLens had changed \(center_writing_weigh"):
        tried(model, f"sae({path})@1.residual")


# --- what cannot be read ------------------------------------------------------------------------


class Code:
    """Something that a pickle would run."""

    def __reduce__(self) -> Any:
        return print, ("run",)


def test_what_cannot_be_read_says_so_once(
    model: am.Decoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AnamorphError, match=r"There is no folder .*; give that of a sparse coder"):
        tried(model, f"sae({tmp_path}/absent)@1.residual")
    (tmp_path / "empty").mkdir()
    for spec in ("sae({})@1.residual", "transcoder({})@1.mlp", "clt({})@*.mlp"):
        with pytest.raises(AnamorphError, match=r"is of no format .*known are, .*config.yaml"):
            tried(model, spec.format(tmp_path / "empty"))
    file = Path(sae(tmp_path / "cut", 1, 8)) / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(AnamorphError, match=r"at 1\.residual: Cannot read .*the file is damaged"):
        tried(model, f"sae({file})@1.residual")
    of_dictionary_learning(tmp_path)
    torch.save({"W_enc": Code()}, tmp_path / "ae.pt")
    with pytest.raises(AnamorphError, match=r"more than tensors .* anamorph does not do that"):
        tried(model, f"sae({tmp_path})@1.residual")
    assert capsys.readouterr().out == ""
    cross_layer(tmp_path / "clt", 3, 8)
    (tmp_path / "clt" / "W_dec_1.safetensors").unlink()
    with pytest.raises(AnamorphError, match=r"has no W_dec_1\.safetensors; it has: W_dec_0"):
        tried(model, f"clt({tmp_path / 'clt'})@*.mlp")


# --- a file, read and changed -------------------------------------------------------------------


def test_the_folder_is_pinned_by_its_content(tmp_path: Path, monkeypatch: Any) -> None:
    folder = Path(sae(tmp_path / "a", 1, 8))
    before = SAE(path=str(folder)).fingerprint()
    (proxy,) = expand(f"sae({folder})@1.residual")
    assert proxy.attachments[0].simplification.fingerprint() == before  # type: ignore[attr-defined]
    file = folder / "sae_weights.safetensors"
    by_file = SAE(path=str(file)).fingerprint()
    said = (folder / "cfg.json").read_text()
    (folder / "cfg.json").write_text(said.replace('"k": 4', '"k": 3'))
    assert SAE(path=str(folder)).fingerprint() != before
    assert SAE(path=str(file)).fingerprint() != by_file  # of what lies beside it, too
    monkeypatch.setenv("HOME", str(tmp_path))
    at_home = SAE(path="~/a").fingerprint()
    (folder / "cfg.json").write_text(said)
    assert SAE(path="~/a").fingerprint() != at_home
    assert SAE(path=str(folder)).fingerprint() == before


def test_without_statistics_one_batch_is_enough(model: am.Decoder, tmp_path: Path) -> None:
    seen = []

    def batches() -> Any:
        for number in range(5):
            seen.append(number)
            yield WORD

    fit(model, expand(f"sae({sae(tmp_path, 1, 8)})@1.residual"), {"train": batches()})
    assert len(seen) < 5
