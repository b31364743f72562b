"""How things are called on the page: metrics, splits, proxies, numbers."""

import re
from collections.abc import Mapping, Sequence

import polars as pl

from anamorph.faithfulness.gaps import SIGNS as SIGNS

HOLDS, FAILS, UNTESTED = "holds", "does not hold", "not tested here"  # of a claim
UNTESTABLE = "not testable here"  # of a claim on a model that has not learnt its task

WORDS = {
    "model": "The original network.",
    "site": "A tensor inside the model that can be read and replaced, written layer.head.kind, "
    "such as 1.0.query; layers and heads count from 0, * stands for all.",
    "simplification": "A map from a site's activations to simpler ones: fitted on data (SVD and "
    "PCA keep a few directions, k-means a few centres) or not (one-hot attention looks at a "
    "single position).",
    "proxy": "The model with simplifications standing at some of its sites, named by a text such "
    "as svd(rank=4)@1.*.{query,key}. A joint fit is shared by the sites of a head.",
    "size": "How much a simplification keeps: directions (rank) or centres (clusters).",
    "control": "A proxy that tells what the number of a view means: the same view fitted on the "
    "split itself (oracle) or on a part of the training data (half), or one that learnt nothing "
    "(random).",
    "split": "Sequences for testing. iid comes from the distribution of the training data; all "
    "others differ from it in a stated way (out of distribution).",
    "scored position": "A place where a prediction counts.",
    "faithfulness": "Agreement of the proxy with the model, whether or not the model is right.",
    "generalization gap": "How much less faithful a proxy is on a split than on iid; positive is "
    "worse for every metric. Given in points (hundredths) for shares.",
    "looks right": "The interval of its same prediction on iid lies at or above the threshold; if "
    "all of it lies below, the proxy does not look right, and if it lies on both sides, that is "
    "open.",
    "faithful": "A proxy that looks right on iid and whose gap lies within the tolerance: all of "
    "the interval, not the number alone. It may be better on the split than on iid.",
    "illusion": "A proxy that looks right on iid and is less faithful on a split, by more than "
    "the tolerance. Where its interval on iid leaves open whether it looks right, its number there "
    "is taken.",
    "under-generalizes": "The proxy mostly fails where the model is right.",
    "over-generalizes": "The proxy is mostly right where the model fails: it makes the model look "
    "better than it is.",
    "degrades": "A proxy that does not look right even on iid, and is worse on the split. Where "
    "its interval on iid leaves open whether it looks right, its number there is taken.",
    "unfaithful": "A proxy that does not look right even on iid, and is not shown to be worse on "
    "the split. Agreement on a split alone does not make up for it.",
    "undecided": "The intervals leave more than one verdict open. Beside it stands how many "
    "sequences of each split would decide, if the values stay as they are.",
    "not testable here": "The model itself has not learnt the task; what its proxies share with "
    "it says nothing about them.",
    "facet": "A label on scored positions, such as depth, to break numbers down.",
    "interval": "95 %, over sequences, as the tokens of one sequence are not independent; over "
    "several models, over these too. Where a cell stopped early it holds at whatever time it "
    "stops (“sequence” in results.parquet).",
    "interval of all gaps at once": "Wider than that of a single gap, so that it holds for the "
    "one that was picked because it is the largest.",
    "p-value": "Of no gap, corrected over all proxies and splits of one metric "
    "(Benjamini–Hochberg).",
}

_METHODS = {
    "svd": "SVD",
    "pca": "PCA",
    "kmeans": "k-means",
    "onehot": "one-hot attention",
    "window": "windowed attention",
    "topk_attention": "top-k attention",
    "zero": "zero ablation",
    "mean": "mean ablation",
    "resample": "resampling",
    "random": "random directions",
    "sae": "SAE",
    "topk_sae": "TopK SAE",
    "topk_transcoder": "TopK transcoder",
    "concepts": "binary concepts",
    "quantize": "quantization",
    "prune": "pruning",
    "low_rank": "low rank",
    "clt": "cross-layer transcoder",
    "model": "another model",
}


def split_label(split: str) -> str:
    """`unseen_depth` becomes "unseen depth"."""
    return split.replace("_", " ")


def facet_label(facet: str, labels: Mapping[str, str]) -> str:
    """What the task calls a facet, if it says so; or `token_kind` becomes "token kind"."""
    return labels.get(facet, facet.replace("_", " "))


def method_label(method: str) -> str:
    """`svd+kmeans` becomes "SVD + k-means"."""
    if method == "identity":
        return "the model itself"
    named = re.sub(r"\w+", lambda name: _METHODS.get(name[0], name[0]), method)
    return named.replace("+", " + ").replace("; ", " and ")


def sites_label(sites: str) -> str:
    """`1.*.{query,key}` becomes "layer 1 query, key"; what has another shape stays as it is."""
    found = re.fullmatch(r"([\w*{},-]+)\.(?:([\w*{},-]+)\.)?([\w*{},]+)", sites)
    if not found:
        return sites
    layer, head, kind = found.groups()
    where = "all layers" if layer == "*" else f"layer {layer.strip('{}').replace(',', ', ')}"
    which = "" if head in (None, "*") else f" head {head.strip('{}').replace(',', ', ')}"
    return f"{where}{which} {kind.strip('{}').replace(',', ', ')}"


def views_of(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of a table of a run without those of controls."""
    return table.filter(pl.col("control").is_null())


def families(rows: pl.DataFrame) -> list[pl.DataFrame]:
    """The rows of every family: alike but for the size, small sizes first.

    Args:
        rows: with columns family and size, a row a proxy.
    """
    rows = rows.sort("size", nulls_last=True, maintain_order=True)
    return [some for _, some in rows.group_by("family", maintain_order=True)]


def size_label(size_name: str) -> str:
    """What a size is called; scikit-learn's `pca__n_components` are "components"."""
    return size_name.rpartition("__")[2].removeprefix("n_")


def sized(size_name: str | None, sizes: Sequence[float | None]) -> str:
    """Sizes with their name: "rank 4 and 8", "64 clusters", "1 cluster"; "" if it has no name.

    Examples:
        >>> sized("pca__n_components", [4])
        '4 components'
    """
    if not size_name:
        return ""
    size_name = size_label(size_name)
    numbers = listing([f"{size:g}" for size in sizes])
    if not size_name.endswith("s"):
        return f"{size_name} {numbers}"
    return f"{numbers} {size_name[:-1] if list(sizes) == [1] else size_name}"


def percent(value: float) -> str:
    """0.98123 becomes "98.1 %"; what is not quite 0 or 1 is never rounded to it."""
    text = f"{100 * value:.1f}"
    if text == "100.0" and value < 1:
        text = f"{100 * value:.3f}" if value < 0.999995 else "almost 100"
    elif text == "0.0" and value > 0:
        text = f"{100 * value:.1g}"
    return f"{text}\N{NO-BREAK SPACE}%"


def threshold(value: float) -> str:
    """0.9 becomes "90 %"."""
    return f"{100 * value:.3g}\N{NO-BREAK SPACE}%"


def sequences(count: int) -> str:
    """1200 becomes "1,200 sequences"."""
    return f"{count:,} sequence{'s' if count != 1 else ''}"


def points(value: float) -> str:
    """0.083 becomes "8.3"."""
    return f"{100 * value:.1f}".replace("-", "\N{MINUS SIGN}")


def number(value: float) -> str:
    """Four digits at most, small ones as powers of ten: 0.0031, 1.2e-07, 0, 1."""
    return f"{value:.4g}"


def listing(items: Sequence[object], last: str = "and") -> str:
    """["a", "b", "c"] becomes "a, b and c"."""
    texts = [str(item) for item in items]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {last} {texts[-1]}"


def some_of(shown: int, total: int, what: str) -> str:
    """A sentence with a space in front, for captions: " Shown are 40 of 81 proxies."; or ""."""
    return f" Shown are {shown} of {total} {what}." if shown < total else ""


def halved_sentence(cells: int) -> str:
    """That something did not fit the memory; empty if all did."""
    if not cells:
        return ""
    what = "1 cell" if cells == 1 else f"{cells:,} cells"
    return (
        f"The memory had no room for all of {what} at once: it was computed in parts, which "
        "changes numbers by rounding alone."
    )


def rounding_sentence(rounding: Mapping[str, float] | None) -> str:
    """What batching alone does, and whether that could turn predictions; empty if not measured."""
    if not rounding:
        return ""
    said = (
        f"A sequence in a batch has the model's logits of the same sequence alone, up to "
        f"{rounding['logits']:.1e}. "
    )
    ties, positions = int(rounding["ties"]), int(rounding["positions"])
    if not ties:
        return said + f"None of {positions:,} predictions looked at is so close to a tie."
    return said + (
        f"At {ties:,} of {positions:,} positions looked at, the two best candidates are a tie up "
        "to that: another batch size, processor or device may predict otherwise there."
    )
