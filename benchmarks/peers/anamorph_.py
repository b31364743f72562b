"""anamorph's own entry: its engine on a task made of the tokens, with the given projectors."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from work import cells, load_model

from anamorph.auditing.engine import Settings, audit_split
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.faithfulness.metrics import metric_names
from anamorph.models.huggingface.model import HuggingFace
from anamorph.models.sites import Site
from anamorph.simplifications import SVD, FittedProxies, parse
from anamorph.tasks import Split

METRICS = metric_names()

PACKAGE = "anamorph"
BATCH_TOKENS = 1_024  # as by default


def setting(
    weights: Path, tokens: Tensor, projectors: Tensor
) -> tuple[HuggingFace, Split, list[SimplifiedProxy]]:
    """The model, a split of all tokens, and the cells in their order."""
    model = HuggingFace(load_model(weights).to(tokens.device, projectors.dtype))
    sequences = tokens.flatten(0, 1).cpu().numpy()
    scored = np.ones(sequences.shape, bool)
    scored[:, 0] = False
    split = Split(
        "race",
        "ood",
        sequences.ravel().astype(np.int32),
        np.arange(len(sequences) + 1) * sequences.shape[1],
        scored.ravel(),
    )
    placed = {}
    for cell in cells(projectors):
        both = projectors[cell.layer, cell.head, cell.rank].double().cpu()
        rank = round(float(both[0].trace()))
        (proxy,) = parse(f"svd(rank={rank})@{cell.layer}.{cell.head}.{{query,key}}")
        placed[proxy] = {}
        for kind, projector in zip(("query", "key"), both, strict=True):
            simplification = SVD(rank=rank)
            axes = torch.linalg.eigh(projector).eigenvectors[:, -rank:]
            simplification.components_ = axes.T.contiguous()
            placed[proxy][Site(cell.layer, cell.head, kind)] = simplification
    fitted = FittedProxies(placed, model.layers).values()
    return model, split, [SimplifiedProxy(some, model) for some in fitted]


def prepare(weights: Path, tokens: Tensor, projectors: Tensor) -> Callable[[], Tensor]:
    """What `work.Sweep` is to the others: a call gives [cell, metric] over all tokens."""
    model, split, proxies = setting(weights, tokens, projectors)
    candidates = np.arange(model.vocabulary)
    wanted = [
        METRICS.index(name)
        for name in ("output_jsd", "same_prediction", "proxy_cross_entropy", "model_cross_entropy")
    ]

    def sweep() -> Tensor:
        found = audit_split(model, split, candidates, proxies, Settings(BATCH_TOKENS))
        sums = torch.stack([found[p.spec].sums[wanted].sum(1) for p in proxies])  # [cell, 4]
        means = sums / int(split.scored.sum())
        return torch.stack([means[:, 0], means[:, 1], means[:, 2] - means[:, 3]], dim=1).float()

    return sweep


VARIANTS = {"engine": prepare}
