"""A decoder written out a second time, in numpy and float64, one sequence at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
import torch

import anamorph as am
from anamorph.models.sites import Site
from anamorph.tasks import Task


def small_model(task: Task, kind: type[am.Decoder] = am.Decoder, **shape: Any) -> am.Decoder:
    """Untrained, with matrices so large that its attention and predictions are decided."""
    torch.manual_seed(1)
    size = {"vocabulary": len(task.vocabulary), "context": 52, "heads": 2, "width": 8, "mlp": 16}
    model = kind(am.DecoderConfig(**size | shape)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.mul_(30 if name == "embedding.weight" else 2)
    return model


def forward(model: am.Decoder, tokens: Sequence[int], edits: dict[Site, Any]) -> dict[Any, Any]:
    """Every site's activation [position, dim] after edits, and the "logits" [position, token]."""
    w = {name: x.double().numpy() for name, x in model.state_dict().items()}
    c, n = model.config, len(tokens)
    dim = c.width // c.heads
    position = np.arange(n)[:, None] / 10_000.0 ** (np.arange(0, c.width, 2) / c.width)
    x = w["embedding.weight"][list(tokens)].copy()
    x[:, 0::2] += np.sin(position)
    x[:, 1::2] += np.cos(position)
    found: dict[Any, Any] = {}

    def tap(site: Site, value: np.ndarray) -> np.ndarray:
        if site in edits:
            value = edits[site](value)
        found[site] = value
        return value

    def norm(x: np.ndarray, name: str, site: Site) -> np.ndarray:
        scale = tap(site, 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5))
        scaled = (x - x.mean(-1, keepdims=True)) * scale
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    for layer in range(c.layers):
        name = f"blocks.{layer}"
        y = norm(x, f"{name}.norm_attention", Site(layer, None, "norm_1"))
        heads = []
        for head in range(c.heads):
            rows = slice(head * dim, (head + 1) * dim)
            query, key, value = (
                tap(Site(layer, head, kind), y @ w[f"{name}.{kind}.weight"][rows].T)
                for kind in ("query", "key", "value")
            )
            pattern = np.zeros((n, n))
            for i in range(n):
                pattern[i, : i + 1] = scipy.special.softmax(key[: i + 1] @ query[i] / dim**0.5)
            pattern = tap(Site(layer, head, "pattern"), pattern)
            heads.append(tap(Site(layer, head, "output"), pattern @ value))
        beside = tap(Site(layer, None, "heads"), np.concatenate(heads, axis=1))
        added = tap(Site(layer, None, "attention"), beside @ w[f"{name}.output.weight"].T)
        x = tap(Site(layer, None, "middle"), x + added)
        given = norm(x, f"{name}.norm_mlp", Site(layer, None, "norm_2"))
        given = tap(Site(layer, None, "mlp_input"), given)
        hidden = given @ w[f"{name}.up.weight"].T + w[f"{name}.up.bias"]
        hidden = hidden * scipy.stats.norm.cdf(hidden)
        mlp = hidden @ w[f"{name}.down.weight"].T + w[f"{name}.down.bias"]
        x = tap(Site(layer, None, "residual"), x + tap(Site(layer, None, "mlp"), mlp))
    final = Site(c.layers - 1, None, "norm_final")
    found["logits"] = norm(x, "norm", final) @ w["unembedding.weight"].T
    return found
