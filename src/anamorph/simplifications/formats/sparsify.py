"""EleutherAI's sparsify: a folder for each place, with `cfg.json` and `sae.safetensors`.

The name of the folder is that of the module whose output is read: `layers.3`, `layers.3.mlp`. A
transcoder reads the input of that module and writes its output.
"""

from pathlib import Path

from anamorph.errors import AnamorphError
from anamorph.simplifications.formats.coder import Encoder, SparseCoder
from anamorph.simplifications.formats.files import Weights, read_settings
from anamorph.simplifications.formats.stored import Stored

WEIGHTS = "sae.safetensors"


def looks(path: Path) -> bool:
    """Whether a folder is of this format."""
    return (path / "cfg.json").is_file() and (path / WEIGHTS).is_file()


def read(path: Path) -> Stored:
    """The coder in a folder.

    Raises:
        AnamorphError: if it is damaged, or of an activation that is not known.
    """
    said = read_settings(path / "cfg.json")
    activation, k = said.get("activation", "topk"), int(said["k"])
    if activation not in ("topk", "groupmax"):
        raise AnamorphError(
            f"{path}: the activation is {activation!r}; expected 'topk' or 'groupmax'."
        )
    transcodes = bool(said.get("transcode", False))
    weights = Weights(path / WEIGHTS)
    bias = weights.take("b_dec")
    coder = SparseCoder(
        Encoder(
            weights.take("encoder.weight").T,
            weights.take("encoder.bias"),
            None if transcodes else bias,
            k=k if activation == "topk" else None,
            groups=k if activation == "groupmax" else None,
        ),
        weights.take("W_dec"),
        bias,
        skip.T if (skip := weights.maybe("W_skip")) is not None else None,
    )
    weights.end()
    module = path.resolve().name
    return Stored(
        coder, f"{module}.input" if transcodes else f"{module}.output", f"{module}.output"
    )
