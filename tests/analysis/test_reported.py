"""What others report: by hand, and against a decoder that is written out a second time."""

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.special
import torch
from rich.console import Console

import anamorph as am
from anamorph.analysis.findings import read
from anamorph.analysis.reported import lines, recovered, reported
from anamorph.auditing.samples import scored_sequences
from anamorph.cli.markdown import markdown
from anamorph.cli.tables import print_run
from anamorph.models.sites import Site
from anamorph.tasks import Task
from controlled_run import make_controlled
from plain import forward, small_model

MLP, GIVEN = Site(1, None, "mlp"), Site(1, None, "mlp_input")


def row(simplification: str, ce: float, kl: float, **changed: Any) -> list[dict[str, Any]]:
    """The results of a proxy on one split, where the model has a cross entropy of 2."""
    name, sites = simplification.split("@", 1)
    keys = {"seed": None, "split": "iid", "sites": sites, "tokens": 90, "control": None}
    keys |= {"simplification": simplification, "method": name, "facet": None} | changed
    values = {"model_cross_entropy": 2.0, "proxy_cross_entropy": ce, "output_kl": kl}
    return [keys | {"metric": metric, "value": value} for metric, value in values.items()]


def found(*rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    strings = {name: pl.String for name in ("control", "facet")}
    table = pl.DataFrame([each for some in rows for each in some], schema_overrides=strings)
    return {
        name: values
        for name, *values in recovered(table)
        .select("simplification", "ablation", "ce_recovered", "kl_recovered")
        .iter_rows()
    }


def test_by_hand() -> None:
    zero, mean = row("zero@1.mlp", 6, 5), row("mean@1.mlp", 3, 2)
    assert found(row("sae@1.mlp", 3, 0.5), mean, zero) == {
        "sae@1.mlp": ["zero@1.mlp", 3 / 4, 9 / 10]
    }
    assert found(row("sae@1.mlp", 3.5, 0.5), mean) == {"sae@1.mlp": ["mean@1.mlp", -1 / 2, 3 / 4]}
    sae, alike = (
        row("sae(k=4, keep=1)@1.mlp", 3, 0.5),
        row("zero(keep=1)@1.mlp", 6, 5, method="zero"),
    )
    assert found(sae, zero) == {}  # the ablation changes what the proxy does not
    assert found(sae, zero, alike)["sae(k=4, keep=1)@1.mlp"][0] == "zero(keep=1)@1.mlp"
    both = row("sae@1.mlp", 3, 0.5, method="frozen; sae", sites="*.*.pattern;1.mlp")
    frozen = row("zero@1.mlp", 4, 1, method="frozen; zero", sites="*.*.pattern;1.mlp")
    assert found(both, frozen, zero)["sae@1.mlp"] == ["zero@1.mlp", 1 / 2, 1 / 2]


@pytest.mark.parametrize(
    "ablation",
    [
        row("zero@1.mlp", 6, 5, tokens=80),  # which stopped early
        row("zero@0.mlp", 6, 5),
        row("zero@1.mlp", 6, 5, split="far"),
        row("zero@1.mlp", 6, 5, seed=0),
        row("mean@1.mlp", 6, 5, control="oracle"),
    ],
)
def test_of_an_ablation_elsewhere_nothing_is_recovered(ablation: list[dict[str, Any]]) -> None:
    assert "sae@1.mlp" not in found(row("sae@1.mlp", 3, 0.5), ablation)


def test_of_an_ablation_that_costs_nothing_there_is_no_share() -> None:
    assert found(row("sae@1.mlp", 3, 0.5), row("zero@1.mlp", 2, 0)) == {
        "sae@1.mlp": ["zero@1.mlp", None, None]
    }


def test_an_audit_against_numpy(task: Task) -> None:
    model = small_model(task)
    audit = am.audit(model, task, ["linear@1.mlp", "zero@1.mlp"], sequences=6, fit_sequences=30)
    table = recovered(audit.results).filter(pl.col("seed") == 0)
    ((name, fitted),) = [(p, f) for p, f in audit.proxies.items() if p.method == "linear"]
    view = fitted.by_site[MLP]
    given: list[np.ndarray] = []
    edits: dict[str, dict[Site, Any]] = {
        "model": {},
        "zero": {MLP: np.zeros_like},
        "linear": {
            GIVEN: lambda x: (given.append(x), x)[1],
            MLP: lambda x: view(torch.from_numpy(given[-1])).numpy(),
        },
    }
    for split in task.evaluated:
        some = scored_sequences(split, 6)
        bits: dict[str, list[float]] = {which: [] for which in edits}
        apart: dict[str, list[float]] = {which: [] for which in edits}
        for number, tokens in enumerate(some):
            said = {
                which: scipy.special.log_softmax(forward(model, tokens, edit)["logits"], axis=-1)
                for which, edit in edits.items()
            }
            scored = some.scored[some.offsets[number] : some.offsets[number + 1]]
            for place in np.flatnonzero(scored) - 1:
                p = said["model"][place]
                for which, q in said.items():
                    bits[which].append(-q[place][tokens[place + 1]])
                    apart[which].append(float((np.exp(p) * (p - q[place])).sum()))
        ce, kl = ({k: np.mean(v) for k, v in each.items()} for each in (bits, apart))
        (found,) = table.filter(split=split.name).iter_rows(named=True)
        assert (found["simplification"], found["ablation"]) == (str(name), "zero@1.mlp")
        expected = (ce["zero"] - ce["linear"]) / (ce["zero"] - ce["model"])
        assert found["ce_recovered"] == pytest.approx(expected, abs=2e-3)
        assert found["kl_recovered"] == pytest.approx(1 - kl["linear"] / kl["zero"], abs=2e-3)
    y = np.concatenate([forward(model, x, {})[MLP] for x in scored_sequences(task.reference)])
    (zero,) = audit.at_sites(model, task).filter(simplification="zero@1.mlp", role="iid").to_dicts()
    explained = 1 - (y**2).sum() / ((y - y.mean(axis=0)) ** 2).sum()
    assert zero["explained_variance"] == pytest.approx(explained, abs=1e-5)


def test_a_run_with_several_models_and_sites(tmp_path: Path) -> None:
    run = make_controlled(tmp_path / "run")
    sites = pl.read_parquet(run / "seed-0" / "sites.parquet").with_columns(
        l0=pl.when(pl.col("site") == "1.0.key").then(4.0).otherwise(1.0), dead=pl.lit(0.25)
    )
    sites.write_parquet(run / "seed-0" / "sites.parquet")
    (run / "seed-1").mkdir()
    other = sites.with_columns(pl.col("explained_variance") - 0.2, pl.col("l0") + 3)
    other.write_parquet(run / "seed-1" / "sites.parquet")
    spec = (run / "spec.json").read_text()
    (run / "spec.json").write_text(spec.replace('"seeds": [0]', '"seeds": [0, 1]'))
    (told,) = lines(read(run))
    assert {called: texts[0] for called, texts in told.lines.items()} == {
        "explained variance": "0.61",  # the worst site, 0.71 and 0.51 in the two models
        "L0": "4.0",
        "dead features": "25.0\N{NO-BREAK SPACE}%",
        "same prediction": told.lines["same prediction"][0],
    }
    console = Console(file=StringIO(), width=200)
    print_run(read(run), console)
    assert isinstance(console.file, StringIO)
    for text in (console.file.getvalue(), markdown(read(run))):
        (line,) = (x for x in text.splitlines() if " L0 " in x)
        assert line.count("4.0") == len(read(run).splits)
    table = reported(read(run)).filter(pl.col("l0").is_not_null())
    assert table["l0"].to_list() == [4.0] * len(read(run).splits)
