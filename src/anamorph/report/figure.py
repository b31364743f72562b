"""A figure: an Altair chart, what a reader may choose in it, and its still versions."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import altair as alt
import polars as pl
import polars.selectors as cs

TABLE = alt.NamedData(name="table")  # what charts name as their data; see `Figure.data`
DETAILED = 6  # proxies that can be chosen where numbers are broken down
VEGA_LITE = alt.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]  # "6.1" of "v6.1.0"


@dataclass(frozen=True)
class Choice:
    """A menu above a figure. The chart's expressions read its value by `name`.

    Where the figure's data have a column of that name, only its rows with the chosen value are
    drawn.

    Attributes:
        name: of the Vega parameter.
        label: before the menu.
        options: value and text of each; the first is shown at first.
        codes: the value of each option by what it stands for; see `coded`.
        always: values that are drawn whatever is chosen, such as the model beside a proxy.
    """

    name: str
    label: str
    options: Sequence[tuple[str, str]]
    codes: Mapping[Any, str] = field(default_factory=dict)
    always: Sequence[str] = ()

    @classmethod
    def coded(cls, name: str, label: str, texts: Mapping[Any, str]) -> "Choice":
        """A menu of things whose names are long, or come from outside: short codes stand for them.

        Args:
            name: of the Vega parameter; codes are its first letter and a number.
            label: before the menu.
            texts: the text of each thing.
        """
        codes = {thing: f"{name[0]}{i}" for i, thing in enumerate(texts)}
        return cls(name, label, list(zip(codes.values(), texts.values(), strict=True)), codes)

    def code(self, column: str = "") -> pl.Expr:
        """The codes of what is in a column, or in that of the menu's name."""
        return pl.col(column or self.name).replace_strict(self.codes, return_dtype=pl.String)

    @property
    def shown(self) -> str:
        """A Vega expression: the text of what is chosen."""
        return lookup(dict(self.options), self.name)

    @property
    def filter(self) -> str:
        """A Vega expression: whether a row is drawn."""
        others = (f" || datum.{self.name} == '{value}'" for value in self.always)
        return f"(datum.{self.name} == {self.name}{''.join(others)})"

    def parameter(self, value: str) -> dict[str, Any]:
        """The Vega-Lite parameter, a menu only if there is something to choose."""
        if len(self.options) < 2:
            return {"name": self.name, "value": value}
        values, labels = zip(*self.options, strict=True)
        menu = {"input": "select", "name": self.label, "options": values, "labels": labels}
        return {"name": self.name, "value": value, "bind": menu}


@dataclass(frozen=True)
class Figure:
    """A figure on the page and in `figures/`.

    Attributes:
        name: of its files, and its anchor on the page.
        title: a line above it.
        caption: what it shows and what to look for.
        chart: of the data `TABLE`; colours are CSS variables, see `theme`.
        data: what the chart draws.
        choices: menus.
        heading: a Vega expression, the line above the panels; may read the menus.
        values: other parameters that the chart's expressions read; an `Expression` is one of menus.
        panel: width in pixels of a panel where panels wrap; the page fits as many in a row as it
            can.
        stills: files beside the one where every menu is at its first option: the suffix of the
            name, and what is chosen there; a menu that is not named is at its first.
    """

    name: str
    title: str
    caption: str
    chart: alt.Chart | alt.LayerChart | alt.FacetChart | alt.VConcatChart
    data: pl.DataFrame
    choices: Sequence[Choice] = ()
    heading: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    panel: int = 0
    stills: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, Mapping[str, str]]:
        """Suffix of every file's name, and what is chosen in it."""
        return {"": {}, **self.stills}

    @property
    def drawn(self) -> alt.TopLevelMixin:
        """The chart, of the rows that are chosen and with its heading."""
        chart = self.chart
        if filters := [c.filter for c in self.choices if c.name in self.data.columns]:
            chart = chart.transform_filter(" && ".join(filters))
        if self.heading:
            chart = chart.properties(title=alt.TitleParams(alt.ExprRef(self.heading)))
        return chart

    def still(self, **chosen: str) -> dict[str, Any]:
        """The Vega-Lite specification with its data and the given choices."""
        shown = self._rounded()
        for choice in self.choices:
            if choice.name in shown.columns:  # the rest is not drawn, and need not be carried
                value = chosen.get(choice.name, choice.options[0][0])
                shown = shown.filter(pl.col(choice.name).is_in([value, *choice.always]))
        return self.spec(**chosen) | {"datasets": {"table": shown.to_dicts()}}

    def records(self) -> list[dict[str, Any]]:
        """The data by row."""
        return self._rounded().to_dicts()

    def columns(self) -> dict[str, Any]:
        """The data by column, text as codes and levels: a fifth of the size of records.

        The page makes records of it. (CSV would do, but its parser needs `eval`.)
        """
        packed: dict[str, Any] = {}
        for column in self._rounded():
            if column.dtype == pl.String:
                levels = column.unique(maintain_order=True)
                codes = column.replace_strict(levels, range(len(levels)), return_dtype=pl.Int32)
                packed[column.name] = {"levels": levels.to_list(), "codes": codes.to_list()}
            else:
                packed[column.name] = column.to_list()
        return packed

    def _rounded(self) -> pl.DataFrame:
        return self.data.with_columns(cs.float().round_sig_figs(5))

    def spec(self, **chosen: str) -> dict[str, Any]:
        """The Vega-Lite specification, without its data, with the given choices."""
        spec: dict[str, Any] = self.drawn.to_dict(validate=False)  # tests/report validates
        spec.pop("config", None)  # the page and the files bring their own
        menus = [c.parameter(chosen.get(c.name, c.options[0][0])) for c in self.choices]
        values = [
            {"name": name, "expr" if isinstance(value, Expression) else "value": value}
            for name, value in self.values.items()
        ]
        # Values may depend on menus, and the chart on both.
        spec["params"] = [*menus, *values, *spec.get("params", [])]
        spec["description"] = f"{self.title}. {self.caption}"
        return spec


class Expression(str):
    """A Vega expression as the value of a parameter."""


def lookup(options: Mapping[str, str], by: str) -> Expression:
    """The entry of `options` that the choice `by` names, as a Vega expression."""
    return Expression(f"({json.dumps(dict(options))})[{by}]")


def slug(text: str) -> str:
    """Fit for a file name: "one-hot attention · layer 1" becomes "one-hot-attention-layer-1"."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")


def natural(levels: Sequence[str]) -> list[str]:
    """Levels in reading order: those that do not start with a number, as given; then by number."""

    def leading(level: str) -> float:
        digits = level[: len(level) - len(level.lstrip("0123456789"))]
        return float(digits) if digits else -1.0

    return sorted(dict.fromkeys(levels), key=leading)
