"""Every format of sparse coders: our reader against the packages' own, on small files.

    python benchmarks/formats/compare.py [--lens PYTHON] [--sparsify PYTHON]
        [--dictionary PYTHON] [--tracer PYTHON]

Each option is an interpreter of an environment with `sae-lens`, `eai-sparsify`,
`dictionary-learning` or `circuit-tracer`. Files with random numbers are written as each package
writes them (what is trained here, as `export` does), and read by us and by them in float32. Shown
is the largest difference of what both write, relative to the largest number written; the bar is
1e-5. `EXPECTED` says where their reader is known to be wrong, and why.
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from anamorph.models.sites import Site
from anamorph.simplifications.formats.reading import read_coder, read_cross_layer
from anamorph.simplifications.methods.topk import TopKSAE, TopKTranscoder

D, F, K, LAYERS, POINTS = 12, 20, 4, 3, 64
TOLERANCE = 1e-5

EXPECTED = {
    "lens/of-sparsify": "its reader of sparsify's files transposes W_dec, which is [features, "
    "width] there, and does not subtract b_dec from what is read if the decoder was normalized",
}
"""Where a package reads a folder in another way than the one that wrote it, and what it does."""

draw = torch.Generator().manual_seed(0)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw)


def plain() -> dict[str, Tensor]:
    """Weights as SAELens, Gemma Scope and some of dictionary_learning hold them."""
    shapes = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
    return {name: numbers(*shape) for name, shape in shapes.items()}


def linear() -> dict[str, Tensor]:
    """Weights as `nn.Linear` holds them: [out, in]."""
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F)}
    return {name: numbers(*shape) for name, shape in shapes.items()}


def lens(folder: Path) -> None:
    threshold = {"threshold": numbers(F).abs()}
    skip = {"W_skip": numbers(D, D)}
    gated = {"b_gate": numbers(F), "r_mag": numbers(F), "b_mag": numbers(F)}
    top = {"k": K, "rescale_acts_by_decoder_norm": False}
    out = {"d_out": D}
    cases: dict[str, tuple[dict, dict]] = {
        "standard": ({}, {}),
        "standard-layer-norm": ({"normalize_activations": "layer_norm"}, {}),
        "standard-length": ({"normalize_activations": "constant_norm_rescale"}, {}),
        "standard-uncentred": ({"apply_b_dec_to_input": False}, {}),
        "topk": (top, {}),
        "topk-by-norm": (top | {"rescale_acts_by_decoder_norm": True}, {}),
        "jumprelu": ({}, threshold),
        "gated": ({}, gated),
        "transcoder": (out, {}),
        "skip_transcoder": (out, skip),
        "jumprelu_transcoder": (out, threshold),
        "jumprelu_skip_transcoder": (out, threshold | skip),
    }
    for name, (said, more) in cases.items():
        weights = plain() | more
        if name == "gated":
            del weights["b_enc"]
        about = {"model_name": "gpt2", "hook_name": "blocks.3.hook_resid_post"}
        settings = {
            "architecture": name.partition("-")[0],
            "d_in": D,
            "d_sae": F,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": "transcoder" not in name,
            "normalize_activations": "none",
            "metadata": about | {"hook_name_out": about["hook_name"]},
        }
        settings |= said
        write(folder / name, "cfg.json", settings, "sae_weights.safetensors", weights)
    sae = TopKSAE(features=F, k=K, batch=64, passes=8).fit(numbers(2_000, D))
    sae.export(folder / "exported", Site(3, None, "residual"), "gpt2")
    one_of_sparsify(folder / "of-sparsify", {"activation": "topk", "normalize_decoder": True})


def one_of_sparsify(folder: Path, said: dict) -> None:
    weights = linear()
    weights["W_dec"] = weights.pop("decoder.weight").T
    weights["b_dec"] = numbers(D)
    if said.get("skip_connection"):
        weights["W_skip"] = numbers(D, D)
    settings = {"d_in": D, "num_latents": F, "k": K} | said
    write(folder / "layers.3", "cfg.json", settings, "sae.safetensors", weights)


def sparsify(folder: Path) -> None:
    for activation in ("topk", "groupmax"):
        one_of_sparsify(folder / activation, {"activation": activation})
    one_of_sparsify(folder / "transcoder", {"transcode": True})
    one_of_sparsify(folder / "skip-transcoder", {"transcode": True, "skip_connection": True})
    x = numbers(2_000, D)
    coder = TopKTranscoder(features=F, k=K, batch=64, passes=8, skip=True).fit(x, x.tanh())
    coder.export(folder / "exported", Site(3, None, "mlp"), "gpt2")


def dictionary(folder: Path) -> None:
    bias, k = {"b_dec": numbers(D)}, {"k": torch.tensor(K)}
    threshold = {"threshold": torch.tensor(0.7)}
    gated = {"r_mag": numbers(F), "gate_bias": numbers(F), "mag_bias": numbers(F)}
    sizes = {"group_sizes": torch.tensor([8, 12])}
    cases = {
        "AutoEncoder": linear() | {"bias": numbers(D)},
        "AutoEncoderNew": linear() | {"decoder.bias": numbers(D)},
        "AutoEncoderTopK": linear() | bias | k | threshold,
        "BatchTopKSAE": linear() | bias | k | threshold,
        "GatedAutoEncoder": linear() | {"decoder_bias": numbers(D)} | gated,
        "JumpReluAutoEncoder": plain() | {"threshold": numbers(F).abs()},
        "MatryoshkaBatchTopKSAE": plain() | k | threshold | sizes,
    }
    del cases["GatedAutoEncoder"]["encoder.bias"]
    for name, weights in cases.items():
        said = {"trainer": {"dict_class": name, "k": K, "submodule_name": "resid_post_layer_3"}}
        write(folder / name, "config.json", said, "ae.pt", weights)


def tracer(folder: Path) -> None:
    def one() -> dict[str, Tensor]:
        return plain() | {"W_enc": numbers(F, D)}

    said = {"model_kind": "transcoder_set", "model_name": "llama"}
    threshold = {"activation_function.threshold": numbers(F).abs()}
    for name, weights in {
        "relu": one(),
        "threshold": one() | threshold,
        "skip": one() | {"W_skip": numbers(D, D)},
    }.items():
        write(folder / name, "config.yaml", said, "layer_0.safetensors", weights)
    jumps = plain() | {"threshold": numbers(F).abs()}
    (folder / "gemma-scope-1").mkdir()
    np.savez(folder / "gemma-scope-1" / "params.npz", **{k: v.numpy() for k, v in jumps.items()})
    lower = {name.lower(): value for name, value in jumps.items()}
    lower["affine_skip_connection"] = numbers(D, D)
    write(folder / "gemma-scope-2", "config.json", {}, "params.safetensors", lower)
    for name, thresholds in (("cross-layer", False), ("cross-layer-thresholds", True)):
        said = {"model_kind": "cross_layer_transcoder", "model_name": "llama"}
        for i in range(LAYERS):
            encode = {f"W_enc_{i}": numbers(F, D), f"b_enc_{i}": numbers(F)}
            encode[f"b_dec_{i}"] = numbers(D)
            if thresholds:
                encode[f"threshold_{i}"] = numbers(F).abs()
            write(folder / name, "config.yaml", said, f"W_enc_{i}.safetensors", encode)
            decode = {f"W_dec_{i}": numbers(F, LAYERS - i, D)}
            write(folder / name, "config.yaml", said, f"W_dec_{i}.safetensors", decode)


def write(folder: Path, settings: str, said: dict, file: str, weights: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(said) if settings.endswith("json") else yaml.safe_dump(said)
    (folder / settings).write_text(text)
    weights = {name: value.contiguous() for name, value in weights.items()}
    if file.endswith(".pt"):
        torch.save(weights, folder / file)
    else:
        save_file(weights, folder / file)


def ours(case: Path) -> Callable[[Tensor], Tensor]:
    """What our reader makes of a folder; of a cross-layer transcoder the last layer."""
    while inner := [path for path in case.iterdir() if path.is_dir()]:
        case = inner[0]
    if (case / "W_enc_0.safetensors").exists():
        coder = read_cross_layer(case, LAYERS - 1).coder()
        return lambda x: coder(*[x] * LAYERS)
    return read_coder(case, 0).coder()


WRITERS = {"lens": lens, "sparsify": sparsify, "dictionary": dictionary, "tracer": tracer}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for package in WRITERS:
        arguments.add_argument(f"--{package}", help="an interpreter that has it")
    pythons = {name: python for name, python in vars(arguments.parse_args()).items() if python}
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        points = 2 * numbers(POINTS, D) + 1
        save_file({"points": points}, folder / "points.safetensors")
        for package, python in pythons.items():
            (folder / package).mkdir()
            WRITERS[package](folder / package)
            command = [python, str(Path(__file__).parent / "theirs.py"), package, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{package} failed:\n{done.stderr[-2000:]}")
            said = json.loads(done.stdout)
            theirs = load_file(folder / f"{package}.safetensors")
            print(f"{package} {said['version']}")
            for case in sorted((folder / package).iterdir()):
                made = ours(case)(points)
                if case.name in said["failed"]:
                    told, fine = f"is not read: {said['failed'][case.name]}", False
                else:
                    gap = float((made - theirs[case.name]).abs().max() / made.abs().max())
                    told, fine = f"{gap:.1e}", gap <= TOLERANCE
                reason = EXPECTED.get(f"{package}/{case.name}")
                print(f"    {case.name:<26}{told}" + (f" ({reason})" if reason else ""))
                if fine == bool(reason):
                    wrong.append(f"{package}/{case.name}")
    if wrong:
        raise SystemExit(f"Not as expected: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
