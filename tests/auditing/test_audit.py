"""The audit against a plain loop written here, and the laws that its numbers must keep."""

import copy
import math
import pickle
import resource
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import scipy.spatial.distance
import scipy.special
import scipy.stats
import torch

import anamorph as am
from anamorph.auditing.audit import fit_on_task, with_identity
from anamorph.auditing.engine import Settings, audit_split
from anamorph.auditing.noise import noise_floor, rounding
from anamorph.auditing.proxies import SimplifiedProxy
from anamorph.errors import AnamorphError
from anamorph.faithfulness.sums import CellSums
from anamorph.models.base import Edits, Ran, State
from anamorph.models.sites import Site
from anamorph.simplifications import FittedProxies, FittedProxy, Simplified
from anamorph.tasks import NOT_APPLICABLE, Split, Task
from existing import DEVICES
from plain import forward, small_model

SPECS = [
    "svd(rank=1)@1.*.{query,key}",
    "svd(rank=[2,3], joint=true)@1.*.{query,key}",
    "kmeans(clusters=4)@0.1.{query,key}",
    "pca(rank=2)@*.*.value",
    "onehot@1.*.pattern",
    "onehot@0.0.pattern",
    "svd(rank=1)@*.*.output",
    "pca(rank=3)@0.residual",
    "svd(rank=2)@1.residual",
    "kmeans(clusters=5)@1.mlp",
    "svd(rank=[2,4])@0.mlp",
    "svd(rank=3)@0.*.key;pca(rank=2)@1.0.query;onehot@1.1.pattern;svd(rank=5)@*.mlp",
    "svd(rank=2)+kmeans(clusters=3)@0-1.*.{query,key}",
]


@pytest.fixture(scope="module")
def model(task: Task) -> am.Decoder:
    return small_model(task)


@pytest.fixture(scope="module", params=DEVICES)
def there(model: am.Decoder, request: pytest.FixtureRequest) -> am.Decoder:
    """The model, on each device that there is."""
    return copy.deepcopy(model).to(request.param)


@pytest.fixture(scope="module")
def fitted(task: Task, model: am.Decoder) -> FittedProxies:
    return fit_on_task(model, with_identity(SPECS), task, 100)


@pytest.fixture(scope="module")
def split(task: Task) -> Split:
    return task.splits["unseen_depth"].take(np.arange(12))


def audit(
    model: am.Decoder, task: Task, split: Split, fitted: FittedProxies, **options: Any
) -> dict[Simplified, CellSums]:
    return audit_some(model, task, split, list(fitted.values()), **options)


def audit_some(
    model: am.Decoder, task: Task, split: Split, fitted: Sequence[FittedProxy], **options: Any
) -> dict[Simplified, CellSums]:
    proxies = [SimplifiedProxy(some, model) for some in fitted]
    return audit_split(model, split, task.candidates, proxies, Settings(**options))


# The plain loop: one position at a time, in float64, every formula written out or SciPy's.


def edit_of(spec: str, points: np.ndarray, centres: Any = None) -> Any:
    """One stage of a spec, fitted to points [n, dim] by hand; of k-means the centres are given."""
    name, _, size = spec.partition("(")
    if name == "onehot":
        return lambda x: (x == x.max(axis=1, keepdims=True)).astype(float)
    if name == "kmeans":
        return lambda x: centres[scipy.spatial.distance.cdist(x, centres).argmin(axis=1)]
    mean = points.mean(axis=0) if name == "pca" else np.zeros(points.shape[1])
    rank = int(size.split("=")[1].rstrip(")").split(",")[0])
    axes = np.linalg.svd(points - mean, full_matrices=False)[2][:rank]
    return lambda x: (x - mean) @ axes.T @ axes + mean


def edits_by_hand(model: am.Decoder, task: Task, fitted: Any) -> dict[Site, Any]:
    train = [forward(model, tokens, {}) for tokens in list(task.train)[:100]]
    edits = {}
    for attachment in fitted.proxy.attachments:
        for site, simplification in fitted.by_site.items():
            if site not in am_sites(attachment.sites, model):
                continue
            joint = [s for s in am_sites(attachment.sites, model) if s[:2] == site[:2]]
            used = joint if attachment.joint else [site]
            if site.kind == "pattern":
                edits[site] = edit_of("onehot", np.zeros((1, 1)))
                continue
            points = np.concatenate([run[s] for s in used for run in train])
            stages = getattr(simplification, "stages_", (simplification,))
            made = [
                edit_of(str(stage), points, getattr(stage, "centers_", torch.zeros(0)).numpy())
                for stage in stages
            ]
            edits[site] = lambda x, made=made: apply(made, x)
    return edits


def am_sites(pattern: str, model: am.Decoder) -> list[Site]:
    """What a pattern names, by comparing places one by one."""
    places = pattern.split(".")

    def fits(place: str, value: object) -> bool:
        low, dash, high = place.partition("-")
        if dash:
            return int(low) <= int(str(value)) <= int(high)
        return place == "*" or str(value) in place.strip("{}").split(",")

    return [
        site
        for site in model.sites
        if len(places) == (2 if site.head is None else 3)
        and all(fits(p, v) for p, v in zip(places, (v for v in site if v is not None), strict=True))
    ]


def apply(stages: Sequence[Any], x: np.ndarray) -> np.ndarray:
    for stage in stages:
        x = stage(x)
    return x


def compare(
    model: am.Decoder, split: Split, task: Task, fitted: Any, edits: dict[Site, Any]
) -> dict[tuple[str | None, str | None, int], np.ndarray]:
    """(facet, level, sequence) to the sums of all metrics and the count."""
    heads = sorted({s[:2] for s in edits if s.kind in ("query", "key", "pattern")})
    if not heads:
        first = min((s.layer for s in edits), default=0)
        heads = [(i, h) for i in range(model.layers) for h in range(2) if i >= first]
    sums: dict[Any, Any] = defaultdict(lambda: np.zeros(14))
    for number, tokens in enumerate(split):
        start = split.offsets[number]
        ours, theirs = forward(model, tokens, {}), forward(model, tokens, edits)
        for place in np.flatnonzero(split.scored[start : split.offsets[number + 1]]):
            row = metrics(ours, theirs, int(place), int(tokens[place]), task.candidates, heads)
            sums[None, None, number] += row
            for name, facet in split.facets.items():
                code = facet.codes[start + place]
                if code != NOT_APPLICABLE:
                    sums[name, facet.names[code], number] += row
    return sums


def overlap(p: np.ndarray, q: np.ndarray) -> float:
    """Of the keys attended to most, ties within 1e-4 included: intersection over union."""
    most = [set(np.flatnonzero(x >= x.max() * (1 - 1e-4))) for x in (p, q)]
    return len(most[0] & most[1]) / len(most[0] | most[1])


def metrics(
    ours: Any, theirs: Any, place: int, token: int, candidates: np.ndarray, heads: Any
) -> np.ndarray:
    p, q = (scipy.special.softmax(run["logits"][place - 1]) for run in (ours, theirs))
    said, proxy_said = (candidates[run[candidates].argmax()] for run in (p, q))
    attention = [
        tuple(run[Site(*head, "pattern")][place - 1] for run in (ours, theirs)) for head in heads
    ]
    right, proxy_right = said == token, proxy_said == token
    return np.array(
        [
            said == proxy_said,
            np.mean([jsd(a, b) for a, b in attention]),
            np.mean([overlap(a, b) for a, b in attention]),
            jsd(p, q),
            scipy.stats.entropy(p, q, base=2),
            right,
            proxy_right,
            -math.log2(p[token]),
            -math.log2(q[token]),
            proxy_right and not right,
            right and not proxy_right,
            not right and not proxy_right and said != proxy_said,
            right != proxy_right,
            1,
        ],
        dtype=float,
    )


def jsd(p: np.ndarray, q: np.ndarray) -> float:
    return float(scipy.spatial.distance.jensenshannon(p, q, base=2) ** 2)


@pytest.mark.parametrize("number", range(len(SPECS) + 2))
def test_every_sum_is_that_of_a_plain_loop(
    model: am.Decoder,
    there: am.Decoder,
    task: Task,
    split: Split,
    fitted: FittedProxies,
    number: int,
) -> None:
    proxy = list(fitted)[number]
    cell = audit(there, task, split, fitted)[proxy]
    edits = edits_by_hand(model, task, fitted[proxy])
    assert set(edits) == set(fitted[proxy].by_site)
    expected = compare(model, split, task, fitted[proxy], edits)
    seen = 0
    for group in cell.index.groups:
        for row in range(group.rows.start, group.rows.stop):
            loop = expected[group.facet, group.level, int(cell.index.sequence[row])]
            assert cell.index.tokens[row] == loop[-1]
            got = cell.sums[:, row].numpy()
            np.testing.assert_allclose(got, loop[:-1], atol=3e-5 * loop[-1], err_msg=str(proxy))
            seen += 1
    assert seen == len(expected)


def test_means_and_gaps_are_those_of_the_sums(task: Task, model: am.Decoder) -> None:
    found = am.audit(model, task, [SPECS[0]], sequences=12, fit_sequences=100)
    fitted = fit_on_task(model, with_identity([SPECS[0]]), task, 100)
    mean = {}
    for split in (task.reference, task.splits["unseen_depth"]):
        part = split.take(np.arange(12))
        proxy = list(fitted)[1]
        edits = edits_by_hand(model, task, fitted[proxy])
        sums = compare(model, part, task, fitted[proxy], edits)
        whole = np.array([v for (facet, _, _), v in sums.items() if facet is None])
        mean[split.name] = whole[:, 0].sum() / whole[:, -1].sum()
        rows = found.results.filter(
            pl.col("simplification") == SPECS[0],
            pl.col("split") == split.name,
            pl.col("facet").is_null(),
            pl.col("seed") == 0,
        )
        values = dict(rows.select("metric", "value").iter_rows())
        assert values["same_prediction"] == pytest.approx(mean[split.name], abs=1e-9)
        each = (whole[:, 0] / whole[:, -1]).mean()
        assert values["same_prediction_per_sequence"] == pytest.approx(each, abs=1e-9)
        assert rows["tokens"].unique().to_list() == [whole[:, -1].sum()]
        assert rows["sequences"].unique().to_list() == [len(whole)]
    gap = found.gaps.filter(
        pl.col("split") == "unseen_depth",
        pl.col("metric") == "same_prediction",
        pl.col("seed") == 0,
    )["gap"]
    assert gap.to_list() == [pytest.approx(mean["iid"] - mean["unseen_depth"], abs=1e-9)]


# The laws, by their numbers in the design.


def test_law_1_the_identity_is_the_model(task: Task, there: am.Decoder) -> None:
    rows = am.audit(there, task, ["svd(rank=1)@0.0.key"], fit_sequences=20).results
    identity = rows.filter(pl.col("simplification") == "identity")
    assert identity["split"].n_unique() == 6
    values = {m: set(identity.filter(metric=m)["value"]) for m in identity["metric"].unique()}
    for metric in ("same_prediction", "same_attention", "same_prediction_per_sequence"):
        assert values[metric] == {1.0}
    for metric in ("attention_jsd", "output_jsd", "output_kl", "different_errors"):
        assert values[metric] == {0.0}
    for metric in ("proxy_only_right", "model_only_right", "flips"):
        assert values[metric] == {0.0}
    assert values["model_accuracy"] == values["proxy_accuracy"]
    assert values["model_cross_entropy"] == values["proxy_cross_entropy"]


@pytest.mark.parametrize("specs", [["identity"], ["identity", "onehot@0.0.pattern"]])
def test_law_1_with_and_without_company(
    task: Task, there: am.Decoder, split: Split, specs: list[str]
) -> None:
    fitted = fit_on_task(there, with_identity(specs), task, 5)
    sums = audit(there, task, split, fitted)[Simplified(())].sums[:5].sum(dim=1).tolist()
    scored = int(split.scored.sum()) * (1 + len(split.facets))  # each applies everywhere here
    assert sums == [scored, 0, scored, 0, 0]


@pytest.mark.parametrize(
    "spec",
    [
        "svd(rank=4)@*.*.{query,key,value,output}",
        "pca(rank=4, joint=true)@*.*.{query,key}",
        "pca(rank=8)@*.{residual,mlp}",
    ],
)
def test_law_2_full_rank_is_the_model_up_to_rounding(
    task: Task, there: am.Decoder, split: Split, spec: str
) -> None:
    fitted = fit_on_task(there, with_identity([spec]), task, 100)
    assert_faithful(audit(there, task, split, fitted)[list(fitted)[1]])


def test_the_noise_floor_is_rounding_and_nothing_else(task: Task, there: am.Decoder) -> None:
    floor = noise_floor(there, task)
    assert floor is not None
    assert floor["same_prediction"] > 0.999
    assert 0 < floor["attention_jsd"] < 1e-6
    assert 0 < floor["output_kl"] < 1e-5
    half = noise_floor(copy.deepcopy(there).to(torch.bfloat16), task)
    assert half is not None
    assert half["output_kl"] > 10 * floor["output_kl"]


def test_ties_are_counted_where_rounding_could_turn_a_prediction(
    task: Task, model: am.Decoder
) -> None:
    usual = rounding(model, task)
    assert 0 < usual["logits"] < 1e-4
    scored = [s.scored.sum() for s in [task.reference.take(np.arange(16))]]
    assert usual["positions"] == scored[0] and usual["ties"] == 0
    twin = copy.deepcopy(model)
    with torch.no_grad():  # two candidates alike, and ahead of the others
        first, second = task.candidates[:2]
        twin.unembedding.weight[second] = twin.unembedding.weight[first]
    logits = [forward(twin, t, {})["logits"][:, task.candidates] for t in list(task.reference)[:16]]
    ahead = sum(
        int(np.argmax(logits[i][place - 1]) < 2)
        for i, offset in enumerate(task.reference.offsets[:16])
        for place in np.flatnonzero(task.reference.scored[offset : task.reference.offsets[i + 1]])
    )
    assert rounding(twin, task)["ties"] == ahead > 0


def test_law_2_as_many_clusters_as_points(task: Task, model: am.Decoder) -> None:
    few = Task(task.name, task.spec, task.vocabulary, task.candidates, {"train": as_train(task, 3)})
    points = {tuple(t) for s in few.train for t in prefixes(s)}
    spec = f"kmeans(clusters={len(points)})@0.0.{{query,key}}"
    fitted = fit_on_task(model, with_identity([spec]), few, 3)
    assert_faithful(audit(model, task, few.train, fitted)[list(fitted)[1]])


def as_train(task: Task, sequences: int) -> Split:
    """The first deep test sequences, to be fitted and scored on."""
    s = task.splits["unseen_depth"].take(np.arange(sequences))
    return Split("train", "train", s.tokens, s.offsets, s.scored, s.facets)


def prefixes(sequence: np.ndarray) -> list[tuple[int, int]]:
    """What a key of layer 0 depends on: token and position."""
    return [(int(token), i) for i, token in enumerate(sequence)]


def assert_faithful(cell: CellSums) -> None:
    whole = cell.index.whole
    values = dict(zip(cell.metrics, cell.sums[:, whole].sum(1).tolist(), strict=True))
    scored = cell.index.tokens[whole].sum()
    assert values["same_prediction"] == scored
    assert values["same_attention"] == scored
    for metric in ("attention_jsd", "output_jsd", "output_kl"):
        assert values[metric] / scored < 1e-5


def test_law_3_padding_changes_nothing(
    task: Task, there: am.Decoder, fitted: FittedProxies, split: Split
) -> None:
    together = audit(there, task, split, fitted, batch_tokens=10**6)
    for number in range(len(split)):
        alone = audit(there, task, split.take(np.array([number])), fitted)
        for proxy, cell in alone.items():
            row = cell.index.whole.start
            of_all = np.flatnonzero(together[proxy].index.sequence == number)[0]
            np.testing.assert_allclose(
                cell.sums[:, row], together[proxy].sums[:, of_all], atol=1e-3, err_msg=str(proxy)
            )


@pytest.mark.parametrize(
    "options",
    [{"batch_tokens": 1}, {"batch_tokens": 200}, {"memory": 1}, {"memory": 2**40}],
    ids=str,
)
def test_law_4_batch_size_and_memory_do_not_matter(
    task: Task, there: am.Decoder, fitted: FittedProxies, split: Split, options: dict[str, int]
) -> None:
    assert_alike(
        audit(there, task, split, fitted), audit(there, task, split, fitted, **options), 1e-4
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=["device", "processor"],
)
def test_a_stack_that_does_not_fit_the_memory_is_halved(
    task: Task,
    model: am.Decoder,
    fitted: FittedProxies,
    split: Split,
    monkeypatch: pytest.MonkeyPatch,
    error: RuntimeError,
) -> None:
    usual = audit(model, task, split, fitted, memory=2**40)
    run_stack, largest, refused = SimplifiedProxy.run, 3, []

    def tight(proxy: SimplifiedProxy, run: Any, stack: Sequence[SimplifiedProxy]) -> Any:
        if len(stack) > largest:
            refused.append(len(stack))
            raise error
        return run_stack(proxy, run, stack)

    monkeypatch.setattr(SimplifiedProxy, "run", tight)
    assert_alike(usual, audit(model, task, split, fitted, memory=2**40), 1e-4)
    assert refused
    largest = 0
    with pytest.raises(AnamorphError, match=r"a single proxy .* fewer batch_tokens"):
        audit(model, task, split, fitted)


def test_a_batch_that_does_not_fit_the_memory_is_halved(
    task: Task,
    model: am.Decoder,
    fitted: FittedProxies,
    split: Split,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where not even one proxy fits, and every cell says so; what was done before is kept."""
    whole = audit(model, task, split, fitted)
    assert not any(cell.halved for cell in whole.values())
    run_stack, large = SimplifiedProxy.run, 100
    last = next(iter(fitted))  # the identity, which edits no layer

    def tight(proxy: SimplifiedProxy, run: Any, stack: Sequence[SimplifiedProxy]) -> Any:
        if proxy.spec == last and run.scored.batch.mask.numel() > large:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return run_stack(proxy, run, stack)

    monkeypatch.setattr(SimplifiedProxy, "run", tight)
    cells = audit(model, task, split, fitted, memory=1)  # one by one
    for spec, cell in cells.items():
        torch.testing.assert_close(cell.sums, whole[spec].sums, rtol=0, atol=1e-4)
    assert [spec for spec, cell in cells.items() if cell.halved] == [last]


def test_law_4_neither_order_nor_company_of_proxies_matters(
    task: Task, model: am.Decoder, fitted: FittedProxies, split: Split
) -> None:
    proxies = list(fitted.values())
    usual = audit(model, task, split, fitted)
    backwards = audit_some(model, task, split, proxies[::-1])
    assert_alike(usual, backwards, 1e-4)
    for some in (proxies[3:5], proxies[7:8]):
        found = audit_some(model, task, split, some)
        assert len(found) == len(some)
        assert_alike({p: usual[p] for p in found}, found, 1e-4)


def assert_alike(
    a: dict[Simplified, CellSums], b: dict[Simplified, CellSums], tolerance: float
) -> None:
    assert set(a) == set(b)
    for proxy, cell in a.items():
        np.testing.assert_allclose(
            cell.sums, b[proxy].sums, rtol=1e-5, atol=tolerance, err_msg=str(proxy)
        )


def test_law_5_no_proxy_sees_the_future(
    task: Task, model: am.Decoder, fitted: FittedProxies, split: Split
) -> None:
    """What is scored before some token does not change with the tokens from there on."""
    longest = split.take(np.array([int(split.lengths.argmax())]))
    cut = int(np.flatnonzero(longest.scored)[2])  # the target; it is predicted from cut - 1
    scored = longest.scored & (np.arange(len(longest.tokens)) <= cut)
    changed = longest.tokens.copy()
    changed[cut + 1 :] = np.roll(changed[cut + 1 :], 1)
    changed[cut + 1] = task.candidates[0]
    sums = [
        audit(model, task, Split("x", "ood", tokens, longest.offsets, scored), fitted)
        for tokens in (longest.tokens, changed)
    ]
    assert not np.array_equal(changed, longest.tokens)
    assert_alike(*sums, 1e-5)


class NeverFires(am.Decoder):
    def layer(self, index: int, state: State, edits: Edits | None = None, *a: Any, **k: Any):
        kept = {key: edit for key, edit in (edits or {}).items() if key.kind != "key"}
        return super().layer(index, state, kept, *a, **k)


class FiresTwice(am.Decoder):
    def layer(self, *args: Any, **kwargs: Any) -> Ran:
        super().layer(*args, **kwargs)
        return super().layer(*args, **kwargs)


@pytest.mark.parametrize(("kind", "times"), [(NeverFires, 0), (FiresTwice, 2)])
def test_law_6_an_edit_fires_once_or_it_is_an_error(
    task: Task, split: Split, kind: type[am.Decoder], times: int
) -> None:
    broken = small_model(task, kind)
    fitted = fit_on_task(broken, with_identity(["svd(rank=1)@1.*.key"]), task, 5)
    with pytest.raises(am.AnamorphError, match=f"key in layer 1 fired {times} times.*once"):
        audit(broken, task, split, fitted)


def test_law_7_fitted_on_train_only(task: Task, model: am.Decoder) -> None:
    spoilt = {
        name: s if s.role == "train" else s.take(np.arange(2)) for name, s in task.splits.items()
    }
    other = Task(task.name, task.spec, task.vocabulary, task.candidates, spoilt)
    a, b = (am.audit(model, t, [SPECS[0]]).proxies for t in (task, other))
    for proxy, fitted in a.items():
        for site, simplification in fitted.by_site.items():
            assert torch.equal(simplification.components_, b[proxy].by_site[site].components_)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_law_8_a_number_that_is_none_names_cell_split_and_sequence(
    task: Task, split: Split, bad: float
) -> None:
    model = small_model(task)
    depth = split.facets["depth"].codes
    deepest = split.take(np.flatnonzero(np.add.reduceat(depth > 3, split.offsets[:-1])))
    token = task.candidates[0] - 3  # an opener, from which on a sequence is spoilt
    with torch.no_grad():
        model.embedding.weight[token] = bad
    spoilt = [
        number
        for number, tokens in enumerate(deepest)
        if token in tokens[: np.flatnonzero(deepest.scored[deepest.offsets[number] :])[-1]]
    ]
    clean = small_model(task)
    fitted = fit_on_task(clean, with_identity(["svd(rank=1)@1.0.key"]), task, 5)
    with pytest.raises(am.AnamorphError) as caught:
        audit_some(model, task, deepest, [fitted[list(fitted)[1]]])
    text = str(caught.value)
    assert "svd(rank=1)@1.0.key on split 'unseen_depth'" in text
    assert int(text.split("in sequence ")[1].split(";")[0]) == spoilt[0]


def test_law_8_through_a_fit(task: Task) -> None:
    model = small_model(task)
    with torch.no_grad():
        model.blocks[1].key.weight[0, 0] = float("nan")
    message = r"Cannot fit at 1\.0\.key: sequence 0 of the data.*NaN or infinity"
    with pytest.raises(am.AnamorphError, match=message):
        am.audit(model, task, ["svd(rank=1)@1.*.key"])
    with pytest.raises(am.AnamorphError, match=r"on split 'iid'.*nan in sequence 0"):
        am.audit(model, task, ["onehot@0.*.pattern"])


def test_law_8_a_spoilt_simplification(
    task: Task, model: am.Decoder, fitted: FittedProxies, split: Split
) -> None:
    spoilt = fit_on_task(model, with_identity(["svd(rank=1)@0.0.key"]), task, 5)
    proxy = list(spoilt)[1]
    spoilt[proxy].by_site[Site(0, 0, "key")].components_[0, 0] = float("nan")
    with pytest.raises(am.AnamorphError, match=r"svd\(rank=1\)@0.0.key on split .* sequence \d"):
        audit(model, task, split, spoilt)


def test_law_9_memory_is_flat(task: Task) -> None:
    """Many times the sequences and cells need no more memory than their sums take."""
    model = am.Decoder(am.DecoderConfig(vocabulary=8, context=64, width=64)).eval()
    proxies = with_identity(["svd(rank=[1,2,3,4,5,6,7,8,9,10,11])@0.*.{query,key}"])
    fitted = list(fit_on_task(model, proxies, task, 20).values())

    def growth(sequences: int, some: list[Any]) -> float:
        """Megabytes by which the process grew while it audited, beside the sums."""
        offsets = np.arange(sequences + 1) * 64
        tokens = np.random.default_rng(0).integers(8, size=offsets[-1])
        split = Split(
            "random", "ood", tokens.astype(np.int16), offsets, np.arange(len(tokens)) % 64 > 32
        )
        resident = [memory()]
        proxies = [SimplifiedProxy(x, model) for x in some]
        watch = lambda *_: resident.append(memory())  # noqa: E731
        cells = audit_split(model, split, task.candidates, proxies, watch=watch)
        assert len(resident) > sequences / 64
        sums = sum(8 * cell.sums.numel() for cell in cells.values())
        return max(resident) - resident[0] - sums / 2**20

    growth(64, fitted)  # what is loaded and cached at first use
    # Kept by mistake, one layer's residuals of 600 sequences and 12 proxies would take 118 MB.
    assert growth(600, fitted[:2]) < 30
    assert growth(600, fitted) < 30


def memory() -> float:
    """Resident megabytes of this process."""
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return resident_pages * resource.getpagesize() / 2**20


@pytest.mark.parametrize(
    "spec",
    [
        "__import__('os').system('touch stolen')@1.*.key",
        "svd(rank=__import__('os').getpid())@1.*.key",
        "svd(rank=(lambda: 4)())@1.*.key",
        "svd(rank=2**3)@1.*.key",
        "eval(x=1)@1.*.key",
        "svd.__class__(rank=1)@1.*.key",
        "svd(rank=1)@{__import__('os')}.0.key",
    ],
)
def test_law_10_specs_are_data(
    task: Task, model: am.Decoder, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(am.AnamorphError):
        am.audit(model, task, [spec])
    assert not list(tmp_path.iterdir())


class Thief:
    def __init__(self, loot: Path) -> None:
        self.loot = loot

    def __reduce__(self) -> Any:
        return Path.touch, (self.loot,)


def test_law_10_a_pickle_is_refused(tmp_path: Path) -> None:
    path, loot = tmp_path / "model.safetensors", tmp_path / "stolen"
    for write in (lambda f: pickle.dump(Thief(loot), f), lambda f: torch.save(Thief(loot), f)):
        with path.open("wb") as file:
            write(file)
        for load in (am.Decoder.load, am.SVD.load, FittedProxies.load):
            with pytest.raises(am.AnamorphError, match="as safetensors"):
                load(path)
        assert not loot.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sequences", 1),
        ("sequences", 10.5),
        ("sequences", math.nan),
        ("sequences", True),
        ("fit_sequences", 0),
        ("fit_sequences", -3),
        ("fit_sequences", math.inf),
    ],
)
def test_arguments_out_of_their_range_are_named(
    name: str, value: Any, model: am.Decoder, task: Task
) -> None:
    with pytest.raises(
        AnamorphError, match=f"^{name} must be a whole number from [12]; got {value}"
    ):
        am.audit(model, task, SPECS[:1], **{name: value})


def test_resamples_have_no_effect_and_that_is_said(model: am.Decoder, task: Task) -> None:
    plain = am.audit(model, task, SPECS[:1], sequences=20)
    with pytest.warns(DeprecationWarning, match="resamples has no effect.*leave it out"):
        told = am.audit(model, task, SPECS[:1], sequences=20, resamples=100)
    assert told.results.equals(plain.results) and told.gaps.equals(plain.gaps)


def test_one_spec_as_a_text_is_one_spec(model: am.Decoder, task: Task) -> None:
    one, listed = (
        am.audit(model, task, spec, sequences=5).results  # type: ignore[arg-type]
        for spec in (SPECS[0], [SPECS[0]])
    )
    assert one.equals(listed)


def test_the_callers_autocast_changes_nothing(
    task: Task, model: am.Decoder, fitted: FittedProxies, split: Split
) -> None:
    """It is each thread's own, so that numbers would depend on how many there are."""
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(audit(model, task, split, fitted))
    usual = audit(model, task, split, fitted)
    for proxy, cell in usual.items():
        assert all(torch.equal(cell.sums, other[proxy].sums) for other in found)
