"""A run's verdicts as a table of LaTeX, for papers."""

from anamorph.analysis.findings import Findings
from anamorph.analysis.formats import for_latex, latex_of
from anamorph.analysis.summary import evidence, headline
from anamorph.analysis.words import SIGNS, split_label
from anamorph.cli.rows import legend, of_models, of_proxies
from anamorph.runs.folder import Run


def latex(run: Run) -> str:
    """A `tabular`: of every proxy the share of same predictions and the verdict on every split.

    What it needs, a caption and the legend stand above it as comments.
    """
    found = Findings(run.path, run.spec)
    over = f", over {len(found.seeds)} models" if len(found.seeds) > 1 else ""
    said = [
        "Needs \\usepackage{booktabs} and \\usepackage{amssymb}.",
        f"Caption: {for_latex(f'Share of predictions that proxy and model have in common{over}.')}",
        f"{for_latex(evidence(found).sentence)}",
        f"{for_latex(headline(found).sentence)}",
        f"Legend: {for_latex(legend(found))}.",
    ]
    heads = ["proxy", *map(split_label, found.splits)]
    accuracy = of_models(found, "model_accuracy")[None]
    of_model = ["accuracy of the model", *(f"{x.value:.3f}" for x in accuracy)]
    rows = [
        [
            rf"\texttt{{{for_latex(name)}}}",
            *(for_latex(f"{x:.3f} {SIGNS.get(verdict or '', '')}".strip()) for x, verdict in cells),
        ]
        for name, cells in of_proxies(found).items()
    ]
    comments = "".join(f"% {line}\n" for line in said)
    return comments + latex_of("l" * len(heads), [*map(for_latex, heads)], [of_model], rows)
