"""Every format, written by its own package's rules and held against its formula, point by point."""

import json

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from anamorph.errors import AnamorphError
from anamorph.models.sites import Site
from anamorph.simplifications.formats.coder import Encoder, SparseCoder
from anamorph.simplifications.formats.reading import read_coder, read_cross_layer
from anamorph.simplifications.formats.saelens import write as saelens_write
from anamorph.simplifications.formats.stored import site_named

D, F, OUT = 5, 9, 4


@pytest.fixture
def draw():
    random = torch.Generator().manual_seed(3)
    return lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)


def points(draw):
    return 3 * draw(7, D) + 1


def relu(x):
    return np.maximum(x, 0)


def top(x, k):
    """The k largest of a vector, the others zero."""
    kept = np.zeros_like(x)
    for at in sorted(range(len(x)), key=lambda i: -x[i])[:k]:
        kept[at] = x[at]
    return kept


def jump(x, threshold):
    return np.where(x > threshold, x, 0)


def check(stored, x, formula):
    """The coder against a formula of one point, in float64."""
    made = stored.coder().to(torch.float64)(x)
    expected = np.stack([formula(point) for point in x.numpy()])
    np.testing.assert_allclose(made.numpy(), expected, rtol=0, atol=1e-9)
    assert np.abs(expected).max() > 0.1


def saelens(folder, said, **tensors):
    folder.mkdir(exist_ok=True)
    about = {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"}
    settings = {"d_in": D, "d_sae": F, "metadata": about | said.pop("metadata", {})} | said
    (folder / "cfg.json").write_text(json.dumps(settings))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sae_weights.safetensors")
    return folder


def plain(draw, out=D):
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, out), "b_dec": (out,)}
    return {name: draw(*shape) for name, shape in shapes.items()}


def arrays(tensors):
    return (tensors[name].numpy() for name in ("W_enc", "b_enc", "W_dec", "b_dec"))


@pytest.mark.parametrize("centred", [True, False])
def test_saelens_standard(tmp_path, draw, centred):
    w = plain(draw)
    folder = saelens(tmp_path, {"architecture": "standard", "apply_b_dec_to_input": centred}, **w)
    W, b, V, c = arrays(w)
    stored = read_coder(folder, 0)
    check(stored, points(draw), lambda x: relu((x - centred * c) @ W + b) @ V + c)
    assert (stored.reads, stored.writes, stored.model) == (
        *["blocks.3.hook_resid_post"] * 2,
        "gpt2",
    )


@pytest.mark.parametrize("by_norm", [True, False])
def test_saelens_topk(tmp_path, draw, by_norm):
    w = plain(draw)
    said = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": by_norm}
    W, b, V, c = arrays(w)
    norm = np.linalg.norm(V, axis=1) if by_norm else np.ones(F)

    def formula(x):
        return (relu(top(((x - c) @ W + b) * norm, 3)) / norm) @ V + c

    check(read_coder(saelens(tmp_path, said, **w), 0), points(draw), formula)


def test_saelens_jumprelu(tmp_path, draw):
    w = plain(draw) | {"threshold": draw(F).abs()}
    said = {"architecture": "jumprelu", "apply_b_dec_to_input": False}
    W, b, V, c = arrays(w)
    t = w["threshold"].numpy()
    check(
        read_coder(saelens(tmp_path, said, **w), 0),
        points(draw),
        lambda x: (relu(x @ W + b) * (x @ W + b > t)) @ V + c,
    )


def test_saelens_gated(tmp_path, draw):
    w = plain(draw) | {"b_gate": draw(F), "r_mag": draw(F), "b_mag": draw(F)}
    W, _, V, c = arrays(w)
    gate, r, mag = (w.get(name).numpy() for name in ("b_gate", "r_mag", "b_mag"))
    del w["b_enc"]

    def formula(x):
        x = x - c
        return ((x @ W + gate > 0) * relu(x @ (W * np.exp(r)) + mag)) @ V + c

    check(read_coder(saelens(tmp_path, {"architecture": "gated"}, **w), 0), points(draw), formula)


@pytest.mark.parametrize("norm", ["layer_norm", "constant_norm_rescale"])
def test_saelens_norms_are_undone(tmp_path, draw, norm):
    w = plain(draw)
    W, b, V, c = arrays(w)

    def formula(x):
        shift, scale = 0.0, np.linalg.norm(x) / D**0.5
        inner = x / scale
        if norm == "layer_norm":
            shift, scale = x.mean(), np.std(x, ddof=1)
            inner = (x - shift) / (scale + 1e-5)
        return (relu((inner - c) @ W + b) @ V + c) * scale + shift

    said = {"architecture": "standard", "normalize_activations": norm}
    check(read_coder(saelens(tmp_path, said, **w), 0), points(draw), formula)


@pytest.mark.parametrize(
    "kind",
    ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"],
)
def test_saelens_transcoders(tmp_path, draw, kind):
    w = plain(draw, OUT)
    W, b, V, c = arrays(w)
    t, S = np.zeros(F), np.zeros((OUT, D))
    if "skip" in kind:
        w["W_skip"] = draw(OUT, D)
        S = w["W_skip"].numpy()
    if "jumprelu" in kind:
        w["threshold"] = draw(F).abs()
        t = w["threshold"].numpy()
    said = {
        "architecture": kind,
        "apply_b_dec_to_input": False,
        "metadata": {"hook_name": "blocks.2.mlp.hook_in", "hook_name_out": "blocks.2.hook_mlp_out"},
    }
    stored = read_coder(saelens(tmp_path, said, **w), 0)
    check(stored, points(draw), lambda x: relu(jump(x @ W + b, t)) @ V + c + S @ x)
    assert site_named(stored.reads) == Site(2, None, "mlp_input")
    assert site_named(stored.writes) == Site(2, None, "mlp")


def test_saelens_before_version_6(tmp_path, draw):
    w = plain(draw)
    W, b, V, c = arrays(w)
    settings = {
        "d_in": D,
        "d_sae": F,
        "hook_point": "blocks.3.hook_resid_pre",
        "model_name": "gpt2",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 2},
        "normalize_activations": False,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(settings))
    save_file(w, tmp_path / "sae_weights.safetensors")
    stored = read_coder(tmp_path, 0)
    check(stored, points(draw), lambda x: relu(top((x - c) @ W + b, 2)) @ V + c)
    assert site_named(stored.reads) == Site(2, None, "residual")


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "fold_activation_norm_scaling"),
        ({"metadata": {"model_from_pretrained_kwargs": {"fold_ln": True}}}, "fold_ln"),
        ({"architecture": "temporal"}, "temporal"),
        ({"finetuning_scaling_factor": True}, "fine-tuning"),
    ],
)
def test_saelens_what_would_need_more_than_the_file_is_refused(tmp_path, draw, said, message):
    with pytest.raises(AnamorphError, match=message):
        read_coder(saelens(tmp_path, {"architecture": "standard"} | said, **plain(draw)), 0)


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
@pytest.mark.parametrize("transcode", [True, False])
def test_sparsify(tmp_path, draw, activation, transcode):
    folder = tmp_path / "layers.3.mlp"
    folder.mkdir()
    said = {"k": 3, "activation": activation, "d_in": D, "transcode": transcode}
    (folder / "cfg.json").write_text(json.dumps(said))
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "W_dec": (F, D), "b_dec": (D,)}
    w = {name: draw(*shape) for name, shape in shapes.items()} | {"W_skip": draw(D, D)}
    save_file(w, folder / "sae.safetensors")
    E, b, V, c, S = (w[name].numpy() for name in (*shapes, "W_skip"))

    def formula(x):
        features = relu(E @ (x if transcode else x - c) + b)
        if activation == "topk":
            kept = top(features, 3)
        else:
            kept = np.concatenate([top(group, 1) for group in np.split(features, 3)])
        return kept @ V + c + S @ x

    stored = read_coder(folder, 0)
    check(stored, points(draw), formula)
    assert site_named(stored.reads) == Site(3, None, "mlp_input" if transcode else "mlp")
    assert site_named(stored.writes) == Site(3, None, "mlp")


def dictionary_learning(folder, kind, tensors):
    said = {"dict_class": kind, "lm_name": "pythia", "submodule_name": "resid_post_layer_3"}
    (folder / "config.json").write_text(json.dumps({"trainer": said}))
    torch.save(tensors, folder / "ae.pt")
    return folder


@pytest.mark.parametrize(
    "kind", ["AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE"]
)
def test_dictionary_learning(tmp_path, draw, kind):
    bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(kind, "b_dec")
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F), bias: (D,)}
    w = {name: draw(*shape) for name, shape in shapes.items()}
    E, b, V, c = (w[name].numpy() for name in shapes)
    if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
        w |= {"k": torch.tensor(3), "threshold": torch.tensor(0.7, dtype=torch.float64)}

    def formula(x):
        features = relu(E @ (x - c * (kind != "AutoEncoderNew")) + b)
        if kind == "AutoEncoderTopK":
            features = top(features, 3)
        if kind == "BatchTopKSAE":
            features = jump(features, 0.7)
        return V @ features + c

    check(read_coder(dictionary_learning(tmp_path, kind, w), 0), points(draw), formula)


@pytest.mark.parametrize("kind", ["JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"])
def test_dictionary_learning_with_thresholds(tmp_path, draw, kind):
    w = plain(draw)
    W, b, V, c = arrays(w)
    single = kind == "MatryoshkaBatchTopKSAE"
    w["threshold"] = draw(1).abs()[0] if single else draw(F).abs()
    t = w["threshold"].numpy()
    if single:
        w |= {"k": torch.tensor(3), "group_sizes": torch.tensor([4, 5])}

    def formula(x):
        before = (x - c * single) @ W + b
        return relu(jump(before, t)) @ V + c

    check(read_coder(dictionary_learning(tmp_path, kind, w), 0), points(draw), formula)


def test_dictionary_learning_gated(tmp_path, draw):
    shapes = {
        "encoder.weight": (F, D),
        "decoder.weight": (D, F),
        "gate_bias": (F,),
        "r_mag": (F,),
        "mag_bias": (F,),
        "decoder_bias": (D,),
    }
    w = {name: draw(*shape) for name, shape in shapes.items()}
    E, V, gate, r, mag, c = (w[name].numpy() for name in shapes)

    def formula(x):
        coded = E @ (x - c)
        return V @ ((coded + gate > 0) * relu(np.exp(r) * coded + mag)) + c

    stored = read_coder(dictionary_learning(tmp_path, "GatedAutoEncoder", w), 0)
    check(stored, points(draw), formula)


def test_gemma_scope_1(tmp_path, draw):
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_12" / "width_16k" / "average_l0_82"
    folder.mkdir(parents=True)
    w = {name: value.numpy() for name, value in plain(draw).items()}
    t = draw(F).abs().numpy()
    np.savez(folder / "params.npz", threshold=t, **w)
    W, b, V, c = (w[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    stored = read_coder(folder, 0)
    check(stored, points(draw), lambda x: relu(jump(x @ W + b, t)) @ V + c)
    assert site_named(stored.reads) == Site(12, None, "residual")
    assert read_coder(folder / "params.npz", 0).reads == stored.reads


@pytest.mark.parametrize("skips", [True, False])
def test_gemma_scope_2(tmp_path, draw, skips):
    said = {
        "hf_hook_point_in": "model.layers.7.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.7.post_feedforward_layernorm.output",
        "model_name": "google/gemma-3-270m",
    }
    (tmp_path / "config.json").write_text(json.dumps(said))
    w = {name.lower(): value for name, value in plain(draw, OUT).items()}
    W, b, V, c = (w[name].numpy() for name in ("w_enc", "b_enc", "w_dec", "b_dec"))
    w["threshold"] = draw(F).abs()
    t, S = w["threshold"].numpy(), np.zeros((D, OUT))
    if skips:
        w["affine_skip_connection"] = draw(D, OUT)
        S = w["affine_skip_connection"].numpy()
    save_file(w, tmp_path / "params.safetensors")
    stored = read_coder(tmp_path, 0)
    check(stored, points(draw), lambda x: relu(jump(x @ W + b, t)) @ V + c + x @ S)
    assert site_named(stored.reads) == Site(7, None, "mlp_input")
    assert site_named(stored.writes) == Site(7, None, "mlp")


def tracer(folder, kind, **said):
    settings = {"model_kind": kind, "model_name": "llama", "feature_input_hook": "mlp.hook_in"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | said))


@pytest.mark.parametrize("activation", ["relu", "topk", "threshold"])
def test_circuit_tracer_a_layer_each(tmp_path, draw, activation):
    said = {"relu": {"activation": "relu"}, "topk": {"activation": "topk", "k": 3}}
    tracer(tmp_path, "transcoder_set", **said.get(activation, {}))
    shapes = {"W_enc": (F, D), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,), "W_skip": (D, D)}
    w = {name: draw(*shape) for name, shape in shapes.items()}
    E, b, V, c, S = (w[name].numpy() for name in shapes)
    if activation == "threshold":
        w["activation_function.threshold"] = draw(F)  # some are below zero
        t = w["activation_function.threshold"].numpy()
    for layer in (0, 1):
        save_file(w, tmp_path / f"layer_{layer}.safetensors")

    def formula(x):
        before = E @ x + b
        if activation == "relu":
            features = relu(before)
        else:  # neither clips at zero: see activation_functions.py there
            features = top(before, 3) if activation == "topk" else jump(before, t)
        return features @ V + c + S @ x

    stored = read_coder(tmp_path, 1)
    check(stored, points(draw), formula)
    assert site_named(stored.reads) == Site(1, None, "mlp_input")
    with pytest.raises(AnamorphError, match=r"no layer_2\.safetensors; it has: layer_0"):
        read_coder(tmp_path, 2).coder()


@pytest.mark.parametrize("jumps", [True, False])
def test_circuit_tracer_across_layers(tmp_path, draw, jumps):
    layers = 3
    tracer(tmp_path, "cross_layer_transcoder")
    encoders, decoders = [], []
    for i in range(layers):
        encode = {f"W_enc_{i}": draw(F, D), f"b_enc_{i}": draw(F), f"b_dec_{i}": draw(D)}
        if jumps:
            encode[f"threshold_{i}"] = draw(F).abs()
        save_file(encode, tmp_path / f"W_enc_{i}.safetensors")
        encoders.append({k.rpartition("_")[0]: v.numpy() for k, v in encode.items()})
        decode = draw(F, layers - i, D)
        save_file({f"W_dec_{i}": decode}, tmp_path / f"W_dec_{i}.safetensors")
        decoders.append(decode.numpy())
    read = tuple(points(draw) for _ in range(layers))
    clt = read_cross_layer(tmp_path, 0).coder()
    for layer in range(layers):
        written = clt(*read[: layer + 1]).numpy()
        for point in range(len(read[0])):
            expected = encoders[layer]["b_dec"].copy()
            for i in range(layer + 1):
                w = encoders[i]
                before = w["W_enc"] @ read[i][point].numpy() + w["b_enc"]
                features = jump(before, w["threshold"]) if jumps else relu(before)
                for feature in range(F):
                    expected += features[feature] * decoders[i][feature, layer - i]
            np.testing.assert_allclose(written[point], expected, rtol=0, atol=1e-9)
    with pytest.raises(AnamorphError, match=r"Use clt\(PATH\)"):
        read_coder(tmp_path, 0)


@pytest.mark.parametrize("skips", [True, False])
def test_gemma_scope_2_across_layers(tmp_path, draw, skips):
    layers, files = 3, []
    for i in range(layers):
        w = {"w_enc": draw(D, F), "b_enc": draw(F), "threshold": draw(F).abs(), "b_dec": draw(D)}
        w["w_dec"] = draw(F, layers, D)
        w |= {"affine_skip_connection": draw(D, D)} if skips else {}
        save_file(w, tmp_path / f"params_layer_{i}.safetensors")
        files.append({name: value.numpy() for name, value in w.items()})
    read = tuple(points(draw) for _ in range(layers))
    stored = read_cross_layer(tmp_path, 2)
    assert (site_named(stored.reads), site_named(stored.writes)) == (
        Site(2, None, "mlp_input"),
        Site(2, None, "mlp"),
    )
    for layer in range(layers):
        written = stored.coder()(*read[: layer + 1]).numpy()
        for point in range(len(read[0])):
            expected = files[layer]["b_dec"].copy()
            if skips:
                expected += read[layer][point].numpy() @ files[layer]["affine_skip_connection"]
            for w, x in zip(files[: layer + 1], read, strict=False):
                features = jump(x[point].numpy() @ w["w_enc"] + w["b_enc"], w["threshold"])
                expected += relu(features) @ w["w_dec"][:, layer]
            np.testing.assert_allclose(written[point], expected, rtol=0, atol=1e-9)
    with pytest.raises(AnamorphError, match=r"It is a cross-layer transcoder: use clt\(PATH\)"):
        read_coder(tmp_path, 0)


def test_a_folder_with_a_folder_a_layer(tmp_path, draw):
    for name in ("layers.1.mlp", "layers.11.mlp", "notes.2"):
        (tmp_path / name).mkdir()
    for layer, name in ((1, "layers.1.mlp"), (11, "layers.11.mlp")):
        about = {"hook_name": f"blocks.{layer}.hook_mlp_out"}
        saelens(tmp_path / name, {"architecture": "standard", "metadata": about}, **plain(draw))
    for layer in (1, 11):
        assert read_coder(tmp_path, layer).writes == f"blocks.{layer}.hook_mlp_out"
    with pytest.raises(AnamorphError, match="no format that is known"):
        read_coder(tmp_path, 2)
    saelens(tmp_path / "1_again", {"architecture": "standard"}, **plain(draw))
    with pytest.raises(AnamorphError, match=r"several for layer 1: 1_again, layers\.1\.mlp; name"):
        read_coder(tmp_path, 1)


class Code:
    """Something that a pickle would run."""

    def __reduce__(self):
        return print, ("run",)


def test_code_in_a_file_is_not_run(tmp_path, capsys):
    with pytest.raises(AnamorphError, match="run as code"):
        read_coder(dictionary_learning(tmp_path, "AutoEncoder", {"encoder.weight": Code()})).coder()
    assert capsys.readouterr().out == ""


def test_what_cannot_be_read(tmp_path, draw):
    with pytest.raises(AnamorphError, match="There is no folder"):
        read_coder(tmp_path / "absent", 0)
    with pytest.raises(
        AnamorphError, match=r"no format that is known; known are, SAELens: cfg\.json"
    ):
        read_coder(tmp_path, 0)

    folder = saelens(tmp_path / "short", {"architecture": "standard"}, **plain(draw))
    file = folder / "sae_weights.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AnamorphError, match="damaged"):
        read_coder(folder).coder()

    w = plain(draw)
    w["W_dec"] = w["W_dec"].T
    folder = saelens(tmp_path / "turned", {"architecture": "standard"}, **w)
    with pytest.raises(AnamorphError, match=r"decoder weight is \[5, 9\]; .* must be \[9, 5\]"):
        read_coder(folder).coder()

    w = plain(draw)
    w["W_enc"][0, 0] = torch.nan
    with pytest.raises(AnamorphError, match="encoder weight holds a NaN"):
        read_coder(saelens(tmp_path / "nan", {"architecture": "standard"}, **w)).coder()

    folder = saelens(
        tmp_path / "more", {"architecture": "standard"}, **plain(draw), W_skip=draw(D, D)
    )
    with pytest.raises(AnamorphError, match="also holds W_skip"):
        read_coder(folder).coder()

    w = plain(draw)
    del w["b_enc"]
    with pytest.raises(AnamorphError, match="has no b_enc; what is left in it is: nothing"):
        read_coder(saelens(tmp_path / "less", {"architecture": "standard"}, **w)).coder()


def test_a_nan_in_a_point_stays_one(tmp_path, draw):
    w = plain(draw) | {"threshold": draw(F).abs()}
    coder = read_coder(saelens(tmp_path, {"architecture": "jumprelu"}, **w), 0).coder()
    x = points(draw)
    x[1, 2] = torch.nan
    made = coder(x)
    assert made[1].isnan().all() and not made[[0, 2]].isnan().any()


def test_what_is_written_for_saelens_reads_back(tmp_path, draw):
    bias = draw(D)
    encoders = {
        "standard": Encoder(draw(D, F), draw(F), bias),
        "topk": Encoder(draw(D, F), draw(F), bias, k=2),
        "jumprelu": Encoder(draw(D, F), draw(F), threshold=draw(F).abs()),
    }
    x = points(draw)
    for name, encoder in encoders.items():
        coder = SparseCoder(encoder, draw(F, D), bias).to(torch.float32)
        saelens_write(tmp_path / name, coder, reads="blocks.1.hook_mlp_out", model="m")
        stored = read_coder(tmp_path / name, 0)
        assert json.loads((tmp_path / name / "cfg.json").read_text())["architecture"] == name
        assert torch.equal(stored.coder()(x.float()), coder(x.float()))
        assert (stored.reads, stored.writes, stored.model) == (*["blocks.1.hook_mlp_out"] * 2, "m")
    skips = SparseCoder(Encoder(draw(D, F), draw(F)), draw(F, OUT), draw(OUT), draw(D, OUT))
    at = {"reads": "blocks.1.mlp.hook_in", "writes": "blocks.1.hook_mlp_out"}
    saelens_write(tmp_path / "skip", skips.to(torch.float32), **at, model="m")
    stored = read_coder(tmp_path / "skip", 0)
    torch.testing.assert_close(stored.coder()(x.float()), skips(x).float())
    assert stored.writes == at["writes"]
    with pytest.raises(AnamorphError, match="SAELens has no form"):
        groups = SparseCoder(Encoder(draw(D, F), draw(F), groups=3), draw(F, D), bias)
        saelens_write(tmp_path / "groups", groups, reads="blocks.1.hook_mlp_out", model="m")
