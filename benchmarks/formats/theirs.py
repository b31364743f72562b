"""What a package's own reader makes of the folders that `compare.py` wrote.

    python benchmarks/formats/theirs.py PACKAGE FOLDER

Reads FOLDER/points.safetensors (`points` [points, width]) and every folder of FOLDER/PACKAGE, and
writes FOLDER/PACKAGE.safetensors with what each makes of the points. Prints one line of JSON: the
package's version, and what its reader said of the folders that it did not read.
"""

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def lens(folder: Path) -> Callable[[Tensor], Tensor]:
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader, sparsify_disk_loader

    own = (folder / "sae_weights.safetensors").exists()
    loader = sae_lens_disk_loader if own else sparsify_disk_loader
    return SAE.load_from_disk(folder, converter=loader, dtype="float32")


def sparsify(folder: Path) -> Callable[[Tensor], Tensor]:
    from sparsify import SparseCoder

    coder = SparseCoder.load_from_disk(folder)
    return lambda x: coder(x).sae_out


def dictionary(folder: Path) -> Callable[[Tensor], Tensor]:
    from dictionary_learning.utils import load_dictionary

    return load_dictionary(str(folder), "cpu")[0]


def tracer(folder: Path) -> Callable[[Tensor], Tensor]:
    from circuit_tracer.transcoder import cross_layer_transcoder as cross
    from circuit_tracer.transcoder import single_layer_transcoder as single

    if (folder / "W_enc_0.safetensors").exists():
        coder = cross.load_clt(
            str(folder), dtype=torch.float32, device=torch.device("cpu"), lazy_decoder=False
        )
        # the last layer, where every layer reads the same points
        return lambda x: coder(x.expand(coder.n_layers, *x.shape))[-1]
    loaders = {
        "params.npz": single.load_gemma_scope_transcoder,
        "params.safetensors": single.load_gemma_scope_2_transcoder,
        "layer_0.safetensors": single.load_relu_transcoder,
    }
    (name,) = (name for name in loaders if (folder / name).exists())
    return loaders[name](str(folder / name), 0, device=torch.device("cpu"))


PACKAGES = {
    "lens": ("sae-lens", lens),
    "sparsify": ("eai-sparsify", sparsify),
    "dictionary": ("dictionary-learning", dictionary),
    "tracer": ("circuit-tracer", tracer),
}


def main() -> None:
    package, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answer
    name, reader = PACKAGES[package]
    points = load_file(folder / "points.safetensors")["points"]
    made, failed = {}, {}
    for case in sorted(path for path in (folder / package).iterdir() if path.is_dir()):
        try:
            with torch.no_grad():
                made[case.name] = reader(_only(case))(points).float().contiguous()
        except Exception as error:  # whatever it is, it is what the package says of the folder
            failed[case.name] = f"{type(error).__name__}: {error}"[:300]
    save_file(made, folder / f"{package}.safetensors")
    said = {"version": importlib.metadata.version(name), "failed": failed}
    print(json.dumps(said), file=answers, flush=True)


def _only(folder: Path) -> Path:
    """The folder itself, or the one in it: sparsify's are named as a place in a model."""
    inner = [path for path in folder.iterdir() if path.is_dir()]
    return inner[0] if inner else folder


if __name__ == "__main__":
    main()
