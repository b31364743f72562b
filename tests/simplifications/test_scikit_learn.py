"""Transformers of scikit-learn as simplifications: against scikit-learn itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.cluster import FeatureAgglomeration
from sklearn.decomposition import NMF, PCA, FastICA, KernelPCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    StandardScaler,
)
from threadpoolctl import threadpool_limits
from torch import Tensor

import anamorph as am
from anamorph.auditing.audit import fit_on_task
from anamorph.auditing.engine import audit_split
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.simplifications import (
    FittedProxies,
    Simplified,
    check_readable,
    check_simplification,
    expand,
    parse,
)
from anamorph.tasks import Task
from plain import small_model

BINS = KBinsDiscretizer(3, encode="ordinal", quantile_method="linear")
ESTIMATORS = [
    FastICA(3),
    KernelPCA(3, kernel="rbf", fit_inverse_transform=True),
    FeatureAgglomeration(3),
    make_pipeline(StandardScaler(), PCA(3)),
    make_pipeline(MinMaxScaler(clip=True), NMF(3, tol=0, max_iter=40)),
    BINS,
]
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture
def points() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return torch.rand(150, 6, generator=generator, dtype=torch.float64) @ mix + 1


@pytest.mark.parametrize("of", ESTIMATORS, ids=str)
def test_every_law_is_kept(of: Any) -> None:
    check_simplification(am.Estimator(of))


@pytest.mark.parametrize("of", ESTIMATORS, ids=str)
def test_it_gives_what_scikit_learn_gives(of: Any, points: Tensor) -> None:
    fitted = am.Estimator(of, seed=3).fit(points)
    steps = [step for _, step in of.steps] if isinstance(of, Pipeline) else [of]
    theirs = [type(step)(**step.get_params()) for step in steps]
    x, made = points.numpy(), points.flip(0).float().numpy().astype(np.float64)
    for step in theirs:
        if "random_state" in step.get_params():
            step.random_state = 3
        x = step.fit(x).transform(x)
    for step in theirs:
        made = step.transform(made)
    for step in reversed(theirs):
        made = step.inverse_transform(made)
    found = fitted(points.flip(0).float().view(3, 50, 6))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.view(150, 6), made, rtol=1e-5, atol=1e-6)
    assert not hasattr(of, "n_features_in_")  # what was given is not fitted


def test_as_many_components_as_dimensions_change_nothing(points: Tensor) -> None:
    for text in ("of=FastICA, n_components=6", "of=StandardScaler+PCA, pca__n_components=6"):
        (proxy,) = parse(f"estimator({text})@0.mlp")
        fitted = proxy.attachments[0].simplification.fit(points)
        torch.testing.assert_close(fitted(points), points, atol=1e-9, rtol=0)


def test_a_point_with_a_nan_becomes_nan_and_leaves_the_others_alone(points: Tensor) -> None:
    fitted = am.Estimator(FastICA(3)).fit(points)
    spoilt = points[:4].clone()
    spoilt[2, 1] = torch.inf
    made = fitted(spoilt)
    assert made[2].isnan().all()
    torch.testing.assert_close(made[[0, 1, 3]], fitted(points[[0, 1, 3]]))


# Text


@pytest.mark.parametrize(
    ("of", "text", "size"),
    [
        (FastICA(3), "of=FastICA, n_components=3", ("n_components", 3.0)),
        (FastICA(np.int64(3), whiten=False), "of=FastICA, n_components=3, whiten=false", 3.0),
        (PCA(), "of=PCA", (None, None)),
        (PCA(0.5), "of=PCA, n_components=0.5", (None, None)),
        (
            Pipeline([("a", StandardScaler(with_std=False)), ("b", PCA(2))]),
            "of=StandardScaler+PCA, standardscaler__with_std=false, pca__n_components=2",
            ("pca__n_components", 2.0),
        ),
    ],
)
def test_text_and_estimator_name_each_other(of: Any, text: str, size: Any) -> None:
    proxy = Simplified((am.Estimator(of, seed=4) @ "1.*.key",))
    assert str(proxy) == f"estimator({text}, seed=4)@1.*.key"
    assert parse(str(proxy)) == [proxy]
    check_readable([proxy])
    (made,) = (p.attachments[0].simplification.of for p in parse(str(proxy)))
    theirs = [x.get_params() for x in (made, of)]
    if not isinstance(of, Pipeline):
        assert theirs[0] == theirs[1]
    name, number = size if isinstance(size, tuple) else ("n_components", size)
    assert (proxy.size_name, proxy.size) == (name, number)


def test_lists_stand_for_one_proxy_each_and_a_family_is_without_the_size() -> None:
    proxies = parse("estimator(of=[FastICA,PCA], n_components=[2,4])@1.*.key")
    assert [p.size for p in proxies] == [2.0, 4.0, 2.0, 4.0]
    assert {p.family for p in proxies} == {
        "estimator(of=FastICA)@1.*.key",
        "estimator(of=PCA)@1.*.key",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("estimator", "estimator needs of, the name of a transformer"),
        ("estimator(of=3)", "estimator needs of, the name of a transformer"),
        ("estimator(of=os)", "can name no transformer 'os'; .* DictionaryLearning, FastICA"),
        ("estimator(of=sklearn.decomposition.FastICA)", "can name no transformer"),
        ("estimator(of=FactorAnalysis)", "can name no transformer 'FactorAnalysis'"),
        ("estimator(of=FastICA, components=3)", "refuses a parameter of FastICA: Invalid"),
        ("estimator(of=SparseCoder)", "SparseCoder of scikit-learn needs more than numbers"),
        ("estimator(of=StandardScaler+PCA, n_components=3)", "such as pca__n_components"),
        ("estimator(of=StandardScaler+PCA, memory=cache)", "memory is not a parameter of a step"),
        ("estimator(of=StandardScaler+PCA, pca=passthrough)", "not a parameter of a step"),
        ("estimator(of=PCA, seed=-1)", "seed must be a whole number"),
        ("estimator(of=PCA, reservoir=0)", "reservoir must be a whole number"),
    ],
)
def test_what_cannot_be_read_says_why(text: str, message: str) -> None:
    with pytest.raises(am.AnamorphError, match=message):
        parse(f"{text}@0.mlp")


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (3, "takes a transformer of scikit-learn, such as FastICA.*got 3"),
        (PCA, "takes a transformer of scikit-learn"),
        (Ridge(), "it has no inverse_transform"),
        (make_pipeline(StandardScaler(), Ridge()), "it has no inverse_transform"),
    ],
)
def test_what_cannot_be_attached(of: Any, message: str) -> None:
    with pytest.raises(am.AnamorphError, match=message):
        am.Estimator(of) @ "0.mlp"


def test_points_that_it_refuses(points: Tensor) -> None:
    with pytest.raises(am.AnamorphError, match=r"NMF, .*Negative values .*of=MinMaxScaler\+NMF"):
        am.Estimator(NMF(2)).fit(points)
    fitted = am.Estimator(NMF(2)).fit(points.abs())
    with pytest.raises(am.AnamorphError, match="Negative values"):
        fitted(-points.abs())
    with pytest.raises(am.AnamorphError, match="n_components=9 must be between 0 and"):
        am.Estimator(PCA(9)).fit(points)
    with pytest.raises(am.AnamorphError, match="there are no points"):
        am.Estimator(PCA(2)).fit(points[:0])


class Halves(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    def __init__(self, by: Any = 2) -> None:
        self.by = by

    def fit(self, x: Any, y: Any = None) -> "Halves":
        self.n_features_in_ = x.shape[1]
        return self

    def transform(self, x: Any) -> Any:
        return x[:, ::2] / self.by

    def inverse_transform(self, x: Any) -> Any:
        return np.repeat(x, 2, axis=1)


def test_an_object_of_ones_own_is_audited_but_has_no_text(task: Task, tmp_path: Path) -> None:
    model = small_model(task)
    own = [am.Estimator(Halves(by)) @ "1.mlp" for by in (2, 4)]
    assert len(set(map(str, own))) == 2 and str(own[0]) == str(am.Estimator(Halves(2)) @ "1.mlp")
    found = am.audit(model, task, own, sequences=5, fit_sequences=10)
    means = [found.results.filter(simplification=str(a), metric="output_kl")["value"] for a in own]
    assert len(means[0]) and not means[0].equals(means[1])
    with pytest.raises(am.AnamorphError, match=r"could not be resumed: .*can name no.*Halves-.*"):
        am.audit_given(model, task, own[0], tmp_path / "run", sequences=5, fit_sequences=10)
    scaled = am.Estimator(FunctionTransformer(np.sqrt, np.square)) @ "1.mlp"
    with pytest.raises(am.AnamorphError, match="could not be resumed"):
        check_readable([Simplified((scaled,))])


# On disk


@pytest.mark.parametrize(
    ("of", "sample"), [(ESTIMATORS[0], False), (ESTIMATORS[3], False), (BINS, True)], ids=str
)
def test_what_a_file_keeps(of: Any, sample: bool, points: Tensor, tmp_path: Path) -> None:
    fitted = am.Estimator(of).fit(points)
    fitted.save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert ("sample_" in names) == sample and ("attributes_" in names) != sample
    loaded = am.Estimator.load(tmp_path / "a.safetensors")
    x = points.flip(0)
    assert torch.equal(loaded(x), fitted(x))
    ours, theirs = (vars(some.estimator_) for some in (loaded, fitted))
    assert ours.keys() == theirs.keys()


def test_only_classes_of_scikit_learn_are_made_of_a_file(points: Tensor) -> None:
    state = am.Estimator(PCA(2)).fit(points).state_dict()
    told = bytes(state["attributes_"].numpy()).replace(b'"PCA"', b'"Popen"')
    state["attributes_"] = torch.frombuffer(bytearray(told), dtype=torch.uint8)
    with pytest.raises(am.AnamorphError, match="class 'Popen', which"):
        am.Estimator(PCA(2)).load_state(state)


SPECS = [
    "estimator(of=FastICA, n_components=2)@1.*.{query,key}",
    "estimator(of=KBinsDiscretizer, encode=ordinal, quantile_method=linear)@1.mlp",
    "estimator(of=PCA, n_components=3, joint=true)+kmeans(clusters=3)@1.*.{query,key}",
    "resample@1.*.value;window(size=3)@1.*.pattern",
    "random(rank=2)@0.residual;topk_attention(k=2)@*.*.pattern",
]


def test_fitted_proxies_come_back_to_the_bit(task: Task, tmp_path: Path) -> None:
    model = small_model(task)
    fitted = fit_on_task(model, expand(SPECS), task, 20)
    fitted.save(tmp_path / "fits.safetensors")
    loaded = FittedProxies.load(tmp_path / "fits.safetensors")
    split = task.splits["unseen_depth"].take(np.arange(6))
    sums = [
        audit_split(model, split, task.candidates, [SimplifiedProxy(f, model) for f in x.values()])
        for x in (fitted, loaded)
    ]
    assert list(sums[0]) == list(sums[1]) == expand(SPECS)
    for proxy, cell in sums[0].items():
        assert torch.equal(cell.sums, sums[1][proxy].sums), proxy


def test_threads_change_no_byte(task: Task) -> None:
    """Law 4: whatever the threads of torch and of NumPy's linear algebra."""
    model = small_model(task)
    split = task.splits["unseen_depth"].take(np.arange(12))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with threadpool_limits(threads):
            fitted = fit_on_task(model, expand(SPECS), task, 20)
            proxies = [SimplifiedProxy(some, model) for some in fitted.values()]
            found.append(audit_split(model, split, task.candidates, proxies))
    for proxy, cell in found[0].items():
        assert torch.equal(cell.sums, found[1][proxy].sums), proxy


def test_a_run_is_gone_on_with(task: Task, tmp_path: Path, quick_report: None) -> None:
    model = small_model(task)
    options: dict[str, Any] = {"sequences": 5, "fit_sequences": 10}
    run = am.audit_given(model, task, SPECS[:2], tmp_path / "run", **options)
    before = run.results
    for name in ("report.html", "results.parquet"):
        (run.path / name).unlink()
    for file in (run.path / "seed-0").rglob("*.parquet"):
        file.unlink()
    again = am.audit_given(model, task, SPECS[:2], run.path, **options)
    assert again.results.equals(before)
    assert set(before["method"]) == {"identity", "FastICA", "KBinsDiscretizer"}
