"""`anamorph export`: what a run has trained, read again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anamorph as am
from anamorph.models.base import Batch
from anamorph.simplifications import FittedProxies, expand, fit
from anamorph.simplifications.formats.reading import read_coder

TRAINED = "topk_sae(features=12,k=[2,3],batch=64)@0.residual"
TRAINED += ";topk_transcoder(features=12,k=2,batch=64)@1.mlp"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of a model that was given, with what it has fitted."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 20, (12, 16), generator=draw)
    model = am.Decoder(am.DecoderConfig(vocabulary=20, context=16, width=16, mlp=32))
    proxies = expand([TRAINED, "concepts(concepts=4)@1.residual"])
    fitted = fit(model, proxies, {"train": [Batch(tokens, torch.ones_like(tokens).bool())]})
    fitted.save(tmp_path / "run" / "seed-0" / "simplifications.safetensors")
    spec = {key: {} for key in ("study", "task", "simplify", "training", "audit", "threads")}
    (tmp_path / "run" / "spec.json").write_text(
        json.dumps({**spec, "model": {"name": "mine"}, "seeds": [0]})
    )
    return tmp_path / "run"


def test_each_coder_is_written_for_other_packages(run: Path, tmp_path: Path, anamorph: Any) -> None:
    done = anamorph("export", run, tmp_path)
    assert done.code == 0, done.error
    paths = [Path(line) for line in done.out.splitlines()]
    assert len({path.parent for path in paths}) == 2  # one for each k
    assert [path.name for path in paths] == ["blocks.0.hook_resid_post", "layers.1.mlp"] * 2
    fitted = FittedProxies.load(run / "seed-0" / "simplifications.safetensors")
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    coders = [coder for one in fitted.values() for coder in one.by_site.values()][:4]
    for path, coder in zip(paths, coders, strict=True):
        made = read_coder(path, 0).coder()(x)
        torch.testing.assert_close(made, coder(x), rtol=1e-5, atol=1e-5)


def test_a_run_without_any(run: Path, tmp_path: Path) -> None:
    fitted = FittedProxies.load(run / "seed-0" / "simplifications.safetensors")
    (rest,) = [proxy for proxy in fitted if str(proxy).startswith("concepts")]
    others = FittedProxies({rest: fitted[rest].by_site}, 2)
    with pytest.raises(am.AnamorphError, match=r"concepts\(concepts=4\).* topk_transcoder have"):
        others.export(tmp_path, "mine")
