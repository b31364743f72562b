"""The metrics: what each is called, what it means, and which are measured.

To add one, write a file with a function of a position, describe it by a `Metric`
(`anamorph.faithfulness.metric`), and say in `BUILT_IN` where it is, or in the entry-point group
`anamorph.metrics` of a package of your own, or register it (`anamorph.register`). It is then in all
results, gaps and reports. Reports describe metrics without torch: a file of ours imports it inside
its function, if at all.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name

import numpy as np
from numpy.typing import NDArray

from anamorph.errors import AnamorphError
from anamorph.faithfulness.metric import Metric
from anamorph.registered import Registered, registered

ENTRY_POINTS = "anamorph.metrics"
"""The entry-point group in which a package names its own: `top5 = "package.module:TOP5"`."""

JUDGED = "same_prediction"
"""The metric whose gaps are judged, and whose interval stops a cell early."""

SUFFIX = "_per_sequence"
"""What the name of a mean over sequences ends in, where results have it beside the pooled mean."""

BUILT_IN: tuple[Metric | str, ...] = (
    Metric(
        "same_prediction",
        "same prediction",
        "share",
        "higher",
        "1 = agrees everywhere",
        "Share of scored positions at which proxy and model choose the same candidate token.",
        per_sequence=True,
        contrasted=True,
    ),
    Metric(
        "attention_jsd",
        "attention divergence (JSD)",
        "bits",
        "lower",
        "0 = same attention",
        "Jensen–Shannon divergence, in [0, 1], between the attention patterns of proxy and model, "
        "averaged over heads.",
        kind="attention",
        bounded=True,
    ),
    Metric(
        "same_attention",
        "same attention target",
        "share",
        "higher",
        "1 = agrees everywhere",
        "Share of heads whose most attended position is the same in proxy and model; positions "
        "that tie within rounding share the agreement.",
        kind="attention",
        contrasted=True,
    ),
    Metric(
        "output_jsd",
        "output divergence (JSD)",
        "bits",
        "lower",
        "0 = same output",
        "Jensen–Shannon divergence, in [0, 1], between the next-token distributions of proxy and "
        "model, over the whole vocabulary.",
        bounded=True,
    ),
    Metric(
        "output_kl",
        "output divergence (KL)",
        "bits",
        "lower",
        "0 = same output",
        "Kullback–Leibler divergence KL(model ‖ proxy) of the next-token distributions; unbounded.",
    ),
    Metric(
        "model_accuracy",
        "model accuracy",
        "share",
        "higher",
        "1 = always right",
        "Share of scored positions at which the model chooses the right candidate.",
        about="model",
        per_sequence=True,
    ),
    Metric(
        "proxy_accuracy",
        "proxy accuracy",
        "share",
        "higher",
        "1 = always right",
        "Share of scored positions at which the proxy chooses the right candidate. It says "
        "nothing of faithfulness: a proxy can be more accurate than the model it stands for.",
        about="proxy",
        per_sequence=True,
    ),
    Metric(
        "model_cross_entropy",
        "model cross entropy",
        "bits",
        "lower",
        "0 = certain and right",
        "Bits that the model needs for the token that came, over the whole vocabulary.",
        about="model",
    ),
    Metric(
        "proxy_cross_entropy",
        "proxy cross entropy",
        "bits",
        "lower",
        "0 = certain and right",
        "Bits that the proxy needs for the token that came, over the whole vocabulary.",
        about="proxy",
    ),
    Metric(
        "proxy_only_right",
        "proxy only right",
        "share",
        None,
        "large = over-generalizes",
        "Share of scored positions at which the proxy is right and the model wrong.",
    ),
    Metric(
        "model_only_right",
        "model only right",
        "share",
        None,
        "large = under-generalizes",
        "Share of scored positions at which the model is right and the proxy wrong.",
    ),
    Metric(
        "different_errors",
        "different errors",
        "share",
        None,
        "large = errs in its own way",
        "Share of scored positions at which both are wrong, and differently.",
    ),
    Metric(
        "flips",
        "flips",
        "share",
        "lower",
        "0 = right and wrong alike",
        "Share of scored positions at which one of model and proxy is right and the other wrong "
        "(Dutta et al. 2024, arXiv 2407.09141).",
    ),
)
"""Our own, in the order in which they are reported; one in a file of its own as `module:NAME`."""


@cache
def all_metrics() -> dict[str, Metric]:
    """Every metric by its name: our own, those of installed packages, and those registered.

    The last two are in alphabetical order each.

    Raises:
        AnamorphError: if what a package offers is not a metric that can be measured.
    """
    ours = (resolve_name(m) if isinstance(m, str) else m for m in BUILT_IN)
    found = {metric.name: metric for metric in ours}
    installed = sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)
    own = sorted(registered(ENTRY_POINTS), key=lambda part: part.name)
    offers: list[EntryPoint | Registered] = [*installed, *own]
    for entry in offers:
        metric = entry.load()
        offered = f"The entry point {entry.name!r} ({entry.value})"
        if not isinstance(metric, Metric) or metric.at is None:
            raise AnamorphError(
                f"{offered} is not a Metric with a function `at`; mend or uninstall the package "
                "that offers it."
            )
        if metric.name != entry.name or metric.name in found or metric.name.endswith(SUFFIX):
            raise AnamorphError(
                f"{offered} names its metric {metric.name!r}; expected the entry point's own name, "
                f"one that is not taken and does not end in {SUFFIX!r}."
            )
        found[metric.name] = metric
    return found


def metric_names(attention: bool = True) -> tuple[str, ...]:
    """The metrics that `position_metrics` gives, with or without those of attention, in order."""
    return tuple(m.name for m in all_metrics().values() if attention or m.kind == "output")


def find_metric(name: str) -> Metric:
    """The metric of a name; also of the name of its mean over sequences.

    A run may have been made where another package is installed. Of a metric that is not known here,
    only the name is described.
    """
    plain = name.removesuffix(SUFFIX)
    unknown = Metric(plain, plain.replace("_", " "), "", None, "", "Not described here.")
    return all_metrics().get(plain, unknown)


def which(names: Sequence[str], holds: Callable[[Metric], bool]) -> NDArray[np.bool_]:
    """[metric] of which of the metrics so named something holds."""
    return np.array([holds(find_metric(name)) for name in names], bool)
