"""One pass that fits all proxies, on a model whose activations are written down here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.decomposition import PCA as ScikitPCA
from torch import Tensor

from anamorph.errors import AnamorphError
from anamorph.models.base import Batch, Edits, LayerKind, Model, Ran, State
from anamorph.models.sites import Site
from anamorph.models.weights import write_weights
from anamorph.simplifications import (
    SIMPLIFICATIONS,
    SVD,
    FittedProxies,
    OneHot,
    Simplification,
    Simplified,
    check_proxies,
    expand,
    fit,
    sites_of,
)
from anamorph.simplifications.statistics import blocks

HEADS, DIM, WIDTH = 2, 4, 6


class TableModel(Model):
    """Two layers whose activations are looked up by token, so that a test can do so too."""

    layers, vocabulary = 2, 50
    sites: list[Site] = []  # noqa: RUF012

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        kinds = ("query", "key", "value")
        self.sites = [Site(i, h, k) for i in range(2) for h in range(HEADS) for k in kinds]
        self.sites += [Site(i, h, "pattern") for i in range(2) for h in range(HEADS)]
        self.sites += [Site(i, None, "mlp") for i in range(2)]
        self.tables = {
            site: torch.from_numpy(rng.normal(size=(50, WIDTH if site.head is None else DIM)))
            for site in self.sites
            if site.kind != "pattern"
        }
        self.layers_run: list[int] = []

    def start(self, batch: Batch) -> State:
        assert torch.is_inference_mode_enabled()
        return State(batch.tokens[None, :, :, None], batch.tokens, batch.mask)

    def layer(
        self,
        index: int,
        state: State,
        edits: Edits | None = None,
        record: Any = (),
        at: Tensor | None = None,
    ) -> Ran:
        self.layers_run.append(index)
        tokens = state.residual[0, :, :, 0]
        recorded: dict[Any, Tensor] = {}
        for key in [key for key in record if key.layer == index]:
            assert key.kind != "pattern"
            tables = [
                t for site, t in self.tables.items() if LayerKind(site.layer, site.kind) == key
            ]
            looked_up = torch.stack([table[tokens] for table in tables], dim=1)
            recorded[key] = (looked_up[:, 0] if key.kind == "mlp" else looked_up)[None]
        return Ran(state, recorded)

    def logits(self, state: State, at: Tensor | None = None) -> Tensor:
        raise AssertionError("a fit needs no logits")


@pytest.fixture
def model() -> TableModel:
    return TableModel()


@pytest.fixture
def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 50, size=length) for length in rng.integers(1, 12, size=23)]


def batches(sequences: list[np.ndarray], size: int) -> Iterator[Batch]:
    for start in range(0, len(sequences), size):
        some = sequences[start : start + size]
        longest = max(map(len, some))
        tokens = torch.full((len(some), longest), 49)
        mask = torch.zeros(len(some), longest, dtype=torch.bool)
        for row, sequence in enumerate(some):
            tokens[row, : len(sequence)] = torch.from_numpy(sequence)
            mask[row, : len(sequence)] = True
        yield Batch(tokens, mask)


def rows(model: TableModel, site: Site, sequences: list[np.ndarray]) -> np.ndarray:
    return model.tables[site][np.concatenate(sequences)].numpy()


def test_each_site_has_a_fit_of_its_own(model: TableModel, sequences: list[np.ndarray]) -> None:
    (proxy,) = proxies = expand("pca(rank=2)@1.*.{query,key}")
    fitted = fit(model, proxies, {"train": batches(sequences, 5)})[proxy]
    expected_sites = {Site(1, h, k) for h in (0, 1) for k in ("query", "key")}
    assert set(fitted.by_site) == expected_sites
    for site in expected_sites:
        x = rows(model, site, sequences)
        pca = ScikitPCA(2, svd_solver="full").fit(x)
        expected = pca.inverse_transform(pca.transform(x))
        np.testing.assert_allclose(fitted.by_site[site](torch.from_numpy(x)), expected, atol=1e-9)


def test_joint_sites_of_a_head_share_a_fit(model: TableModel, sequences: list[np.ndarray]) -> None:
    (proxy,) = proxies = expand("svd(rank=1, joint=true)@*.*.{query,key}")
    by_site = fit(model, proxies, {"train": batches(sequences, 5)})[proxy].by_site
    for layer in (0, 1):
        for head in range(HEADS):
            query, key = Site(layer, head, "query"), Site(layer, head, "key")
            assert by_site[query] is by_site[key]
            x = np.concatenate([rows(model, site, sequences) for site in (query, key)])
            top = np.linalg.svd(x)[2][0]
            np.testing.assert_allclose(by_site[query].components_[0].abs(), np.abs(top), atol=1e-9)


@pytest.mark.parametrize("size", [1, 4, 20])
@pytest.mark.parametrize("joint", ["", ", joint=true"])
def test_the_first_positions_are_not_fitted_on(
    model: TableModel, sequences: list[np.ndarray], joint: str, size: int
) -> None:
    specs = [f"svd(rank=1{keep}{joint})@0.0.{{query,key}}" for keep in (", keep=2", "", ", keep=4")]
    fitted = fit(model, expand(specs), {"train": batches(sequences, size)})
    for (proxy, found), keep in zip(fitted.items(), (2, 0, 4), strict=True):
        later = [sequence[keep:] for sequence in sequences]
        assert len(np.concatenate(later))
        points = {site: rows(model, site, later) for site in found.by_site}
        for site, one in found.by_site.items():
            x = np.concatenate(list(points.values())) if joint else points[site]
            axis = np.linalg.svd(x)[2][0]
            np.testing.assert_allclose(one.components_[0].abs(), np.abs(axis), atol=1e-9)
        assert found.keep == dict.fromkeys(found.by_site, keep) if keep else not found.keep
        assert f"{proxy}".count("keep") == bool(keep)


def test_what_is_not_fitted_stands_beside_what_is(
    model: TableModel, sequences: list[np.ndarray]
) -> None:
    proxies = expand(["pca(rank=1)@0.0.key", "zero@0.0.key"])
    fitted = fit(model, proxies, {"train": batches(sequences, 5)})
    assert [len(one.by_site) for one in fitted.values()] == [1, 1]


def test_nothing_is_left_to_fit_on(model: TableModel, sequences: list[np.ndarray]) -> None:
    with pytest.raises(
        AnamorphError, match=r"no sequence that is fitted on is longer than keep=99"
    ):
        fit(model, expand("svd(rank=1, keep=99)@0.0.key"), {"train": batches(sequences, 4)})


def test_the_fit_does_not_depend_on_the_batch_size(
    model: TableModel, sequences: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 32)  # so that there are several, and a rest
    proxies = expand(
        [
            "svd(rank=2, joint=true)@0.*.{query,key}",
            "kmeans(clusters=5, reservoir=30)@1.mlp",
            "svd(rank=2)+kmeans(clusters=3, joint=true)@1.*.{key,value}",
            "pca(rank=2)@1.*.query",
        ]
    )
    one, many = (fit(model, proxies, {"train": batches(sequences, size)}) for size in (1, 100))
    for proxy in proxies:
        for site, simplification in one[proxy].by_site.items():
            state = many[proxy].by_site[site].state_dict()
            assert all(torch.equal(v, state[k]) for k, v in simplification.state_dict().items())


def test_proxies_are_not_changed_and_what_is_equal_is_learnt_once(
    model: TableModel, sequences: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Mock(side_effect=SVD.learn)
    monkeypatch.setattr(SVD, "learn", lambda *args: learn(*args))
    proxies = expand(["svd(rank=2)@0.0.key", "svd(rank=2)@0.*.key", "svd(rank=1)@0.0.key"])
    fit(model, proxies, {"train": batches(sequences, 5)})
    assert learn.call_count == 3  # rank 2 at head 0 and at head 1, rank 1 at head 0
    assert not hasattr(proxies[0].attachments[0].simplification, "components_")


def test_only_the_layers_that_are_needed_are_run(
    model: TableModel, sequences: list[np.ndarray]
) -> None:
    fit(model, expand("svd(rank=2)@0.*.key"), {"train": batches(sequences, 100)})
    assert model.layers_run == [0]


def test_where_there_is_nothing_to_fit_no_data_is_read(model: TableModel) -> None:
    def unread() -> Iterator[Batch]:
        raise AssertionError("read")
        yield

    proxies = expand(["identity", "onehot@1.*.pattern"])
    fitted = fit(model, proxies, {"train": unread()})
    assert list(fitted) == proxies
    assert [fitted[proxy].first_layer for proxy in proxies] == [2, 1]
    assert list(fitted[proxies[1]].by_site) == [Site(1, 0, "pattern"), Site(1, 1, "pattern")]


def test_save_and_load(model: TableModel, sequences: list[np.ndarray], tmp_path: Path) -> None:
    proxies = expand(
        [
            "identity",
            "svd(rank=[1,2], joint=true)@1.*.{query,key};onehot@1.*.pattern",
            "svd(rank=2)+kmeans(clusters=3)@0.mlp",
        ]
    )
    fitted = fit(model, proxies, {"train": batches(sequences, 5)})
    fitted.save(tmp_path / "all.safetensors")
    loaded = FittedProxies.load(tmp_path / "all.safetensors")
    assert list(loaded) == proxies
    assert loaded.layers == 2
    x = torch.randn(7, DIM, generator=torch.Generator().manual_seed(0))
    for proxy in proxies:
        assert loaded[proxy].first_layer == fitted[proxy].first_layer
        assert list(loaded[proxy].by_site) == list(fitted[proxy].by_site)
        for site, simplification in fitted[proxy].by_site.items():
            given = torch.randn(7, WIDTH) if site.head is None else x
            assert torch.equal(loaded[proxy].by_site[site](given), simplification(given))


def test_a_fit_is_stored_once_however_many_proxies_use_it(
    model: TableModel, sequences: list[np.ndarray], tmp_path: Path
) -> None:
    proxies = expand(
        [
            "svd(rank=2)@0.*.key",
            "svd(rank=2)@0.0.key;onehot@1.*.pattern",
            "svd(rank=2, on=train)@0.1.key",
            "svd(rank=2, on=other)@0.1.key",
            "svd(rank=2, joint=true)@0.1.{query,key}",
        ]
    )
    data = {"train": batches(sequences, 5), "other": batches(sequences[:9], 5)}
    fitted = fit(model, proxies, data)
    fitted.save(tmp_path / "all.safetensors")
    with safe_open(tmp_path / "all.safetensors", framework="pt") as file:
        assert len(list(file.keys())) == 4  # head 0, head 1, head 1 on other, joint at head 1
    for proxies_ in (fitted, FittedProxies.load(tmp_path / "all.safetensors")):
        one, two, three, four, _ = (proxies_[proxy].by_site for proxy in proxies)
        assert one[Site(0, 0, "key")] is two[Site(0, 0, "key")]
        assert one[Site(0, 1, "key")] is three[Site(0, 1, "key")]
        assert one[Site(0, 1, "key")] is not four[Site(0, 1, "key")]


def test_a_file_of_before_fits_were_stored_once(tmp_path: Path) -> None:
    write_weights(tmp_path / "old", {}, {"layers": 2, "placed": {}, "origin": {}})
    with pytest.raises(AnamorphError, match=r"written by an older anamorph.*delete it"):
        FittedProxies.load(tmp_path / "old")


def test_a_proxy_is_fitted_on_the_split_that_it_names(
    model: TableModel, sequences: list[np.ndarray]
) -> None:
    proxies = expand(["svd(rank=1)@0.0.key", "svd(rank=1, on=other)@0.0.key;pca(rank=1)@1.mlp"])
    splits = {"mine": sequences[:15], "other": sequences[15:]}
    data = {name: batches(some, 4) for name, some in splits.items()}
    fitted = fit(model, proxies, data, train="mine")
    site = Site(0, 0, "key")
    for proxy, name in zip(proxies, splits, strict=True):
        axis = np.linalg.svd(rows(model, site, splits[name]))[2][0]
        found = fitted[proxy].by_site[site].components_[0]
        np.testing.assert_allclose(found.abs(), np.abs(axis), atol=1e-9)
    mean = rows(model, Site(1, None, "mlp"), splits["mine"]).mean(axis=0)
    np.testing.assert_allclose(fitted[proxies[1]].by_site[Site(1, None, "mlp")].mean_, mean)


@pytest.mark.parametrize("said", ["on=far", "joint=true"])
@pytest.mark.parametrize("spec", ["zero({})@1.mlp", "onehot({})@1.*.pattern"])
def test_nothing_is_said_of_a_fit_that_there_is_not(
    model: TableModel, sequences: list[np.ndarray], spec: str, said: str
) -> None:
    data = {name: batches(sequences, 5) for name in ("train", "far")}
    with pytest.raises(AnamorphError, match=rf"it is not fitted, so {said} says nothing"):
        check_proxies(model, expand(spec.format(said)), data)


def test_a_split_that_there_is_not(model: TableModel, sequences: list[np.ndarray]) -> None:
    proxies = expand("svd(rank=1, on=far)@0.0.key")
    for look in (fit, check_proxies):
        with pytest.raises(AnamorphError, match=r"no split 'far' to fit on; there are: mine, iid"):
            look(model, proxies, {"mine": batches(sequences, 5), "iid": []}, "mine")


def test_a_file_of_something_else(tmp_path: Path) -> None:
    SVD(rank=1).fit(torch.eye(2)).save(tmp_path / "svd")
    with pytest.raises(AnamorphError, match="holds no fitted proxies"):
        FittedProxies.load(tmp_path / "svd")


def test_sites_of_a_proxy(model: TableModel) -> None:
    (proxy,) = expand("svd(rank=1)@0.1.{query,key};onehot@*.0.pattern")
    assert [sites for _, sites in sites_of(proxy, model.sites)] == [
        [Site(0, 1, "query"), Site(0, 1, "key")],
        [Site(0, 0, "pattern"), Site(1, 0, "pattern")],
    ]
    assert sites_of(Simplified(()), model.sites) == []


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("svd(rank=1)@5.*.key", "no site '5.*.key'"),
        (
            "svd(rank=1)@0.*.pattern",
            r"svd\(rank=1\) cannot be put at 0.0.pattern.*key, middle, mlp",
        ),
        ("onehot@0.0.key", "onehot cannot be put at 0.0.key.*kinds pattern"),
        ("svd(rank=1)@0.*.key;pca(rank=1)@*.1.key", r"two attachments edit 0.1.key.*chain"),
    ],
)
def test_proxies_that_do_not_suit_the_model(model: TableModel, spec: str, message: str) -> None:
    with pytest.raises(AnamorphError, match=message):
        fit(model, expand(spec), {"train": []})


class Given(Simplification):
    """Adds what stands in a file."""

    name = "given"
    kinds = frozenset({"mlp", "pattern"})
    reads_of: ClassVar[list[str]] = []

    def __init__(self, *, path: str) -> None:
        self.path = path

    def learn(self, statistic: object) -> Self:
        assert statistic is None
        self.reads_of.append(self.path)
        if not Path(self.path).exists():
            raise AnamorphError(f"there is no file {self.path}")
        self.added_ = torch.tensor(float(Path(self.path).read_text()))
        return self

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.added_.to(x)


def test_a_given_map_is_loaded_once_and_kept(
    model: TableModel,
    sequences: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SIMPLIFICATIONS, "given", Given)
    monkeypatch.setattr(Given, "reads_of", [])
    file = tmp_path / "maps" / "three"
    proxies = expand([f"given(path={file})@1.mlp", f"given(path={file})@1.mlp;svd(rank=1)@0.0.key"])
    proxies += expand(f"given(path={file})@1.0.pattern")
    for look in (check_proxies, fit):
        with pytest.raises(AnamorphError, match=r"at 1\.mlp: there is no file"):
            look(model, proxies, {"train": batches(sequences, 5)})
    file.parent.mkdir()
    file.write_text("3")
    Given.reads_of.clear()
    fit(model, proxies, {"train": batches(sequences, 5)}).save(tmp_path / "fits")
    assert Given.reads_of == [str(file), str(file)]  # for the MLP, and for the pattern
    file.unlink()
    loaded = FittedProxies.load(tmp_path / "fits")
    for proxy in proxies:
        *_, (_, given) = (x for x in loaded[proxy].by_site.items() if isinstance(x[1], Given))
        assert given(torch.tensor([1.5])).tolist() == [4.5]


class FromTensors(Given):
    """The same, from a safetensors file."""

    def learn(self, statistic: object) -> Self:
        self.added_ = load_file(self.path)["added"]
        return self


def test_what_fails_in_somebodys_learn_says_where(
    model: TableModel,
    sequences: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(SIMPLIFICATIONS, "given", FromTensors)
    file = tmp_path / "map.safetensors"
    proxies = expand(f"given(path={file})@1.mlp")
    data = {"train": batches(sequences, 5)}
    with pytest.raises(AnamorphError, match=r"given\(path=.*\)@1\.mlp, at 1\.mlp: No such file"):
        fit(model, proxies, data)
    file.write_bytes(b"no tensors")
    with pytest.raises(AnamorphError, match=r"@1\.mlp, at 1\.mlp: .*header"):
        fit(model, proxies, data)
    save_file({"bias": torch.zeros(1)}, file)
    with pytest.raises(KeyError) as failed:
        fit(model, proxies, data)
    assert failed.value.__notes__ == [f"This was given(path={file})@1.mlp, at 1.mlp."]


def test_a_chain_of_maps_of_patterns_has_nothing_to_fit(model: TableModel) -> None:
    (proxy,) = proxies = [Simplified(((OneHot() + OneHot()) @ "1.0.pattern",))]
    (chain,) = fit(model, proxies, {"train": []})[proxy].by_site.values()
    assert chain(torch.tensor([0.2, 0.5, 0.3])).tolist() == [0, 1, 0]


def test_a_rank_above_the_dimension_is_found_on_the_first_batch(
    model: TableModel, sequences: list[np.ndarray]
) -> None:
    proxies = expand(["svd(rank=5)@1.mlp", "svd(rank=5)@1.1.key"])
    first = next(batches(sequences, 5))
    with pytest.raises(AnamorphError, match=r"at 1.1.key: .*rank above dimension.*4 dimensions"):
        check_proxies(model, proxies, {"train": [first]})
    check_proxies(model, proxies[:1], {"train": [first]})


def test_clusters_above_points(model: TableModel, sequences: list[np.ndarray]) -> None:
    with pytest.raises(AnamorphError, match=r"at 1.mlp: .*clusters above points"):
        fit(model, expand("kmeans(clusters=51)@1.mlp"), {"train": batches(sequences, 5)})


def test_no_data(model: TableModel) -> None:
    with pytest.raises(AnamorphError, match="no data to fit to"):
        fit(model, expand("svd(rank=1)@1.mlp"), {"train": []})


def test_a_nan_names_site_and_sequence_and_padding_does_not_count(
    model: TableModel, sequences: list[np.ndarray]
) -> None:
    sequences = [np.where(s == 49, 0, s) for s in sequences]
    model.tables[Site(0, 1, "key")][49] = float("nan")  # the padding's token
    fit(model, expand("svd(rank=1)@0.1.key"), {"train": batches(sequences, 5)})
    sequences[17][0] = 49
    with pytest.raises(AnamorphError, match=r"Cannot fit at 0\.1\.key: sequence 17"):
        fit(model, expand("svd(rank=1)@0.1.key"), {"train": batches(sequences, 5)})


def test_joint_sites_stream_a_sequence_at_a_time(
    model: TableModel, sequences: list[np.ndarray]
) -> None:
    (proxy,) = proxies = expand("kmeans(clusters=4, reservoir=20, joint=true)@0.1.{query,key}")
    fitted = fit(model, proxies, {"train": batches(sequences, 6)})[proxy].by_site[Site(0, 1, "key")]
    streamed = [model.tables[Site(0, 1, kind)][s] for s in sequences for kind in ("query", "key")]
    by_hand = proxy.attachments[0].simplification.clone().fit(torch.cat(streamed))
    assert torch.equal(fitted.centers_, by_hand.centers_)


def test_a_batch_of_padding_alone_changes_nothing(
    model: TableModel, sequences: list[np.ndarray]
) -> None:
    (proxy,) = proxies = expand("svd(rank=2, joint=true)@0.0.{query,key};kmeans(clusters=3)@1.mlp")
    empty = Batch(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.bool))
    without = fit(model, proxies, {"train": batches(sequences, 5)})[proxy].by_site
    some = fit(model, proxies, {"train": [empty, *batches(sequences, 5), empty]})[proxy].by_site
    for site, simplification in without.items():
        state = some[site].state_dict()
        assert all(torch.equal(v, state[k]) for k, v in simplification.state_dict().items())


def test_only_the_sites_that_are_asked_for_must_be_finite(
    model: TableModel, sequences: list[np.ndarray]
) -> None:
    model.tables[Site(0, 0, "key")][:] = float("nan")
    fit(model, expand("svd(rank=1)@0.1.key"), {"train": batches(sequences, 5)})
    with pytest.raises(AnamorphError, match=r"Cannot fit at 0\.0\.key: sequence 0"):
        fit(model, expand("svd(rank=1)@0.*.key"), {"train": batches(sequences, 5)})
    # Great numbers whose sum overflows are finite all the same.
    model.tables[Site(0, 1, "key")] = torch.full((50, DIM), 3e38)
    model.tables[Site(0, 0, "key")] = torch.full((50, DIM), 3e38)
    fit(model, expand("pca(rank=1)@0.1.key"), {"train": batches(sequences, 5)})
