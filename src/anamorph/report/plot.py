"""The report's charts, one by one, for a notebook or a paper: `run.plot`."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import altair as alt
import polars as pl

from anamorph.analysis.findings import Findings
from anamorph.analysis.words import split_label
from anamorph.errors import AnamorphError
from anamorph.report.charts.sections import MAKERS
from anamorph.report.figure import Choice, Figure
from anamorph.report.stills import LIGHT_CONFIG
from anamorph.report.theme import in_light
from anamorph.showing import Card, Cell, Showing

Chart = alt.Chart | alt.LayerChart | alt.FacetChart | alt.VConcatChart
MOST_ROWS = 5_000  # of data, in a chart that has some for every option of its menus
Several = str | Sequence[str]
"""One or several."""


class Plots(Showing):
    """The charts of a run, as Altair charts with their data inside.

    What is not chosen can be chosen in a menu under the chart; where that takes more data than a
    notebook should hold, it is the first that the report has. `chart.save("name.pdf")` writes it,
    as PNG, SVG and HTML too.

    Args:
        run: what was found.
    """

    def __init__(self, run: Findings) -> None:
        self._run = run

    def _card(self) -> Card:
        figures = [make(self._run) for make in MAKERS.values()]
        rows = [
            (name, [Cell(figure.title, number=False), Cell(_menus(figure), number=False)])
            for name, figure in zip(MAKERS, figures, strict=True)
            if figure is not None
        ]
        notes = ['Such as run.plot.verdicts(), run.plot.figure("accuracy").']
        return Card("Charts", heads=["name", "shows", "menus"], rows=rows, notes=notes)

    def verdicts(self) -> Chart:
        """The share of same predictions of every proxy and split, coloured by its verdict.

        Raises:
            AnamorphError: if nothing was judged.
        """
        return self.figure("verdicts")

    def faithfulness(self, split: Several | None = None, metric: str | None = None) -> Chart:
        """A metric against size: a line a split, a panel a family.

        Args:
            split: which to draw; all by default.
            metric: such as `output_jsd`; can be chosen by default.

        Raises:
            AnamorphError: if there is no such split or metric, or no proxy has a size.
        """
        return self.figure("faithfulness", split, metric=metric)

    def gap(self, split: Several | None = None, metric: str | None = None) -> Chart:
        """The generalization gap of every proxy with its intervals, a panel a split.

        Args:
            split: which to draw; every `ood` split by default.
            metric: such as `output_jsd`; can be chosen by default.

        Raises:
            AnamorphError: if there is no such split or metric, or there are no gaps.
        """
        return self.figure("gaps", split, metric=metric)

    def who_is_right(self, split: Several | None = None, family: str | None = None) -> Chart:
        """At which share of positions both are right, one alone, or neither; a panel a split.

        Args:
            split: which to draw; all by default.
            family: of proxies, as the chart's menu calls it, or the spec string of one of them; can
                be chosen by default.

        Raises:
            AnamorphError: if there is no such split or family.
        """
        titles = {proxy.simplification: proxy.title for proxy in self._run.proxies}
        return self.figure("who_is_right", split, family=titles.get(family or "", family))

    def scatter(
        self, site: str | None = None, colour: str | None = None, split: Several | None = None
    ) -> Chart:
        """Keys and queries on their first two components, a point a token, a panel a split.

        Args:
            site: such as `1.0.key`; can be chosen by default.
            colour: a facet, `token` or `position`; can be chosen by default.
            split: which to draw; all by default.

        Raises:
            AnamorphError: if there is no such site, colour or split, or the run has no such points.
        """
        return self.figure("key_query", split, site=site, colouring=colour)

    def attention(
        self, sentence: int | str | None = None, head: str | None = None, proxy: str | None = None
    ) -> Chart:
        """The attention of model and proxy in a sentence, side by side.

        Args:
            sentence: by its place in the chart's menu, from 0, or as the menu calls it.
            head: such as `1.0`.
            proxy: its spec string, or as the menu calls it. What is not given can be chosen.

        Raises:
            AnamorphError: if there is none such, or the run has no attention patterns.
        """
        given = f"s{sentence}" if isinstance(sentence, int) else sentence
        return self.figure("attention", sentence=given, head=head, proxy=proxy)

    def figure(self, name: str, split: Several | None = None, **chosen: str | None) -> Chart:
        """Any figure of the report.

        Args:
            name: as `run.plot` lists them, and `figures/` has them.
            split: which splits to draw; all by default.
            chosen: what is chosen in its menus, by their names.

        Raises:
            AnamorphError: if there is no such figure, menu, option or split, or no data for it.
        """
        if name not in MAKERS:
            raise AnamorphError(f"There is no figure {name!r}; there are: {', '.join(MAKERS)}.")
        figure = MAKERS[name](self._run)
        if figure is None:
            raise AnamorphError(
                f"This run has no data for the figure {name!r}. `run.plot` lists what it has."
            )
        labels = None if split is None else self._labels(figure, split)
        return drawn(figure, labels, {menu: x for menu, x in chosen.items() if x is not None})

    def _labels(self, figure: Figure, split: Several) -> list[str]:
        """Splits as the chart calls them."""
        if "split" not in figure.data.columns:
            raise AnamorphError(f"The figure {figure.name!r} is not drawn by split; leave it out.")
        shown = set(figure.data["split"].unique())
        there = [name for name in self._run.splits if split_label(name) in shown]
        wanted = [split] if isinstance(split, str) else list(split)
        for name in wanted or [""]:
            if name not in there:
                raise AnamorphError(
                    f"The figure {figure.name!r} has no split {name!r}; it has: {', '.join(there)}."
                )
        return [split_label(name) for name in wanted]


def drawn(figure: Figure, splits: Sequence[str] | None, chosen: dict[str, str]) -> Chart:
    """A figure as a chart of Altair, with its data and in the colours themselves.

    Args:
        figure: to be drawn.
        splits: which are drawn, as the chart calls them; None for all.
        chosen: by menu, a value, a text or what it stands for.

    Raises:
        AnamorphError: if there is no such menu or option.
    """
    menus = {choice.name: choice for choice in figure.choices}
    for name in chosen:
        if name not in menus:
            raise AnamorphError(
                f"The figure {figure.name!r} has no menu {name!r}; it has: "
                f"{', '.join(menus) or 'none'}."
            )
    values = {name: _value(menus[name], text) for name, text in chosen.items()}
    data = figure.data if splits is None else figure.data.filter(pl.col("split").is_in(splits))
    for menu in figure.choices:
        if menu.name not in data.columns:
            continue
        if menu.name not in values and len(data) > MOST_ROWS:
            values[menu.name] = menu.options[0][0]
        if menu.name in values:  # the rest could never be drawn
            data = data.filter(pl.col(menu.name).is_in([values[menu.name], *menu.always]))
    fixed = [
        replace(menu, options=[option for option in menu.options if option[0] == values[menu.name]])
        if menu.name in values
        else menu
        for menu in figure.choices
    ]
    shown = replace(figure, data=data, choices=fixed)
    spec = shown.spec(**values) | {"datasets": {"table": shown.records()}, "config": LIGHT_CONFIG}
    if splits is not None:
        spec = _without_others(spec, set(splits))
    chart: Chart = type(figure.chart).from_dict(json.loads(in_light(json.dumps(spec))))
    return chart


def _value(choice: Choice, given: str) -> str:
    """The value of an option that is named by its value, its text, or what it stands for."""
    named = {str(thing): code for thing, code in choice.codes.items()}
    named |= {text: value for value, text in choice.options}
    named |= {value: value for value, _ in choice.options}
    if given not in named:
        texts = {value: text for value, text in choice.options}
        texts |= {code: str(thing) for thing, code in choice.codes.items() if code in texts}
        raise AnamorphError(
            f"There is no {choice.name} {given!r} in this chart; there are: "
            f"{'; '.join(texts.values())}."
        )
    return named[given]


def _without_others(spec: Any, splits: set[str]) -> Any:
    """Take other splits out of the scales of a specification; each keeps its colour and shape."""
    if isinstance(spec, list):
        return [_without_others(part, splits) for part in spec]
    if not isinstance(spec, dict):
        return spec
    spec = {key: _without_others(value, splits) for key, value in spec.items()}
    domain = spec.get("domain")
    if isinstance(domain, list) and splits <= {str(name) for name in domain}:
        kept = [n for n, name in enumerate(domain) if name in splits]
        both = {key: spec[key] for key in ("domain", "range") if isinstance(spec.get(key), list)}
        spec |= {key: [values[n] for n in kept] for key, values in both.items()}
    return spec


def _menus(figure: Figure) -> str:
    """The names of its menus with something to choose, and their first options."""
    return ", ".join(choice.name for choice in figure.choices if len(choice.options) > 1)
