"""Every verb; and bad input, which ends in one paragraph and code 2 or 3 and changes nothing."""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors.torch import save_file

import anamorph as am
from anamorph import report, tasks
from anamorph.cli import tables
from anamorph.simplifications import registry
from commands import Done

pytestmark = pytest.mark.usefixtures("quick_report", "task_once")

TINY = [
    *("--preset", "smoke", "--set", "training.steps=4", "--set", "training.checkpoint_every=1"),
    *("--set", "task.test=10", "--set", "audit.sequences=5"),
    *("--set", "simplify=['svd(rank=[1,2])@1.*.key','onehot@1.*.pattern']"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `TINY`; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        page = "report.html"  # figures take long to draw, and have their own tests
        patch.setattr(report, "render", lambda run, _: (run / page).write_text("a report"))
        spec = am.load_preset("dyck", "smoke", [s for s in TINY[2:] if s != "--set"])
        folder = tmp_path_factory.mktemp("tiny") / "run"
        return am.run_study(spec, folder, preset="smoke", workers=1).path


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be spoilt."""
    return Path(shutil.copytree(tiny, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def assert_refused(done: Done, *words: str, code: int = 2) -> None:
    assert done.code == code, done
    assert done.error.startswith("Error: ")
    text = done.error.strip()
    assert "\n\n" not in text  # one paragraph
    assert "Traceback" not in text
    flat = " ".join(text.split())
    for word in words:
        assert word in flat


# What each verb does.


def test_run_goes_through_and_then_says_that_it_is_complete(
    anamorph: Any, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = anamorph("run", "dyck", *TINY, "--out", out)
    assert done.code == 0, done.error
    assert "seed 0: training: done" in done.out
    assert "svd(rank=2)@1.*.key" in done.out
    assert f"Report: {out / 'report.html'}" in done.out
    assert "complete already" not in done.out
    for name in ("results.parquet", "gaps.parquet", "claims.json"):
        assert (out / name).read_bytes() == (tiny / name).read_bytes()
    before = contents(out)
    again = anamorph("run", "dyck", *TINY, "--out", out)
    assert again.code == 0
    assert "complete already" in again.out
    assert contents(out) == before
    (out / "claims.json").unlink()
    assert "holds no claims, so that the report has none" in anamorph("report", out).error
    mended = anamorph("run", "dyck", *TINY, "--out", out)
    assert "complete already" not in mended.out
    assert (out / "claims.json").read_bytes() == (tiny / "claims.json").read_bytes()


def test_train_and_then_run(anamorph: Any, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = anamorph("train", "dyck", *TINY, "--out", out)
    assert done.code == 0, done.error
    assert "Accuracy of the models" in done.out
    assert "there already" not in done.out
    assert "there already" in anamorph("train", "dyck", *TINY, "--out", out).out
    assert not (out / "results.parquet").exists()
    assert anamorph("run", "dyck", *TINY, "--out", out).code == 0
    assert (out / "results.parquet").read_bytes() == (tiny / "results.parquet").read_bytes()


def test_options_that_a_run_cannot_take_are_refused(
    anamorph: Any, tiny: Path, tmp_path: Path
) -> None:
    spec = ("--simplify", "svd(rank=1)@1.*.key", "--out", tmp_path / "x")
    done = anamorph("audit", tiny, *spec, "--until", 0.1, "--by", "all")
    assert_refused(done, "by, until cannot be given with it")
    assert_refused(anamorph("audit", tiny, *spec[2:]), "needs --simplify")
    assert_refused(anamorph("audit", tiny, *spec[:2]), "needs --out")
    assert not (tmp_path / "x").exists()


def test_audit(anamorph: Any, tiny: Path, tmp_path: Path) -> None:
    spec = "pca(rank=[1,2])@1.*.{query,key}"
    done = anamorph("audit", tiny, "--simplify", spec, "--out", tmp_path / "pca")
    assert done.code == 0, done.error
    found = am.load_run(tmp_path / "pca").results["simplification"].unique().to_list()
    assert set(found) == {
        "identity",
        "pca(rank=1)@1.*.{query,key}",
        "pca(rank=2)@1.*.{query,key}",
    }
    assert "complete already" not in done.out
    again = anamorph("audit", tiny, "--simplify", spec, "--out", tmp_path / "pca")
    assert (again.code, "complete already" in again.out) == (0, True)
    models = [r / "seed-0" / "model.safetensors" for r in (tiny, tmp_path / "pca")]
    assert models[0].read_bytes() == models[1].read_bytes()


def test_report(anamorph: Any, run: Path) -> None:
    (run / "report.html").unlink()
    done = anamorph("report", run)
    assert (done.code, done.out.strip()) == (0, f"Report: {run / 'report.html'}")


def test_show(anamorph: Any, tiny: Path) -> None:
    done = anamorph("show", tiny)
    assert done.code == 0
    results = am.load_run(tiny).results.filter(
        pl.col("seed").is_null(), pl.col("facet").is_null(), metric="same_prediction"
    )
    rank_1 = results.filter(simplification="svd(rank=1)@1.*.key", split="unseen_long")
    (line,) = [line for line in done.out.splitlines() if "svd(rank=1)@1.*.key " in line]
    assert f"{rank_1['value'].item():.3f}" in line
    untested = [c["id"] for c in am.load_run(tiny).claims if c["status"] == "not tested here"]
    assert {"C9", "C10"} <= set(untested) and "C1" not in untested
    assert f"Not tested here: {', '.join(untested)}." in " ".join(done.out.split())
    assert "Not testable here: C1, " in done.out  # it was trained for four steps


def test_show_for_documents(anamorph: Any, tiny: Path, run: Path) -> None:
    text = anamorph("show", tiny, "--markdown").out
    assert "Checksum" not in text  # there is no corpus
    assert "Cross-entropy of the models" in text and "| all | " in text
    value = am.load_run(tiny).results.filter(
        pl.col("seed").is_null() & pl.col("facet").is_null(),
        metric="same_prediction",
        simplification="svd(rank=1)@1.*.key",
        split="iid",
    )["value"][0]
    (row,) = [line for line in text.splitlines() if line.startswith("| `svd(rank=1)@1.*.key`")]
    assert row.split(" | ")[1].startswith(f"{value:.3f}")
    assert "Not tested here: " in text and text.count("**not tested here**") == 0
    (run / "claims.json").write_text("[]")
    assert "finding" not in anamorph("show", run, "--markdown").out


def test_show_sums_single_heads_up(anamorph: Any, run: Path) -> None:
    """Made of a run of one model with a head a layer: three, with two heads, edited one by one."""
    spec = json.loads((run / "spec.json").read_text())
    spec["seeds"], spec["model"]["heads"] = [0, 1, 2], 2
    (run / "spec.json").write_text(json.dumps(spec))
    results = pl.read_parquet(run / "results.parquet")
    single = [
        results.filter(simplification="onehot@1.*.pattern", seed=0).with_columns(
            simplification=pl.lit(f"onehot@1.{head}.pattern"),
            sites=pl.lit(f"1.{head}.pattern"),
            seed=pl.lit(seed, pl.Int64),
            value=pl.lit((1 + head + 2 * seed) / 10),
        )
        for head in (0, 1)
        for seed in (0, 1, 2)
    ]
    pl.concat([results, *single]).write_parquet(run / "results.parquet")
    text = anamorph("show", run, "--markdown").out
    (row,) = [line for line in text.splitlines() if "onehot@layer.head.pattern" in line]
    assert row.split(" | ")[1] == "0.350 (0.100 to 0.600)"
    assert "`onehot@1.0.pattern`" not in text


@pytest.mark.parametrize("most", [1, 2])
def test_show_leaves_many_single_heads_to_their_own_tables(
    anamorph: Any, run: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """Made of a run of a model with a head a layer, of which one is said to be two."""
    spec = json.loads((run / "spec.json").read_text())
    spec["model"]["heads"] = 2
    (run / "spec.json").write_text(json.dumps(spec))
    for file in ("results.parquet", "gaps.parquet"):
        rows = pl.read_parquet(run / file)
        of_one = rows.filter(simplification="onehot@1.*.pattern")
        single = [
            of_one.with_columns(
                simplification=pl.lit(f"onehot@1.{head}.pattern"),
                sites=pl.lit(f"1.{head}.pattern"),
            )
            for head in (0, 1)
        ]
        pl.concat([rows, *single]).write_parquet(run / file)
    monkeypatch.setattr(tables, "MOST_HEADS", most)
    text = anamorph("show", run).out
    assert "onehot@1.*.pattern" in text
    assert ("onehot@1.0.pattern" in text) == (most == 2)
    assert ("2 proxies of single heads" in " ".join(text.split())) == (most == 1)
    assert "one-hot attention · pattern: the smallest size" in " ".join(text.split())


def test_show_for_programs(anamorph: Any, tiny: Path) -> None:
    shown = json.loads(anamorph("show", tiny, "--json", "--full").out)
    assert set(shown) == {"claims", "checks", "results", "gaps", "contrasts", "reported"}
    assert shown["checks"]["identity"]["same_prediction"] == 1
    assert len(shown["results"]) == len(am.load_run(tiny).results)


class Blur(am.Simplification):
    """Averages over neighbours.

    More of it.
    """

    name = "blur"
    kinds = frozenset({"value", "query", "mlp_input"})

    def __init__(self, *, radius: int, wrap: bool = True, edge: str = "zero") -> None:
        self.radius, self.wrap, self.edge = radius, wrap, edge

    def statistic(self, dim: int) -> None:
        return None

    def learn(self, statistic: object) -> "Blur":
        return self

    def __call__(self, x: Any) -> Any:
        return x


class Bare(Blur):
    name = "bare"
    kinds = frozenset({"pattern"})

    def __init__(self) -> None:
        pass


def test_list(anamorph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    added = [
        EntryPoint("blur", f"{__name__}:Blur", registry.ENTRY_POINTS),
        EntryPoint("bare", f"{__name__}:Bare", registry.ENTRY_POINTS),
        EntryPoint("broken", "no_such_package:Broken", registry.ENTRY_POINTS),
        EntryPoint("odd", f"{__name__}:tiny", registry.ENTRY_POINTS),
    ]
    monkeypatch.setattr(
        registry,
        "entry_points",
        lambda group, name=None: [e for e in added if name in (None, e.name)],
    )
    mine = EntryPoint("mine", "no_such_package:task", tasks.GROUP)
    monkeypatch.setattr(tasks, "entry_points", lambda group: [mine])
    done = anamorph("list")
    assert done.code == 0
    assert "dyck (presets: demo, paper, smoke, views)" in done.out
    assert "text (no presets: for `anamorph audit --data`)" in done.out
    assert "mine (no presets: for `am.load_task` in Python)" in done.out
    lines = done.out.splitlines()
    names = [line.split()[1].partition("(")[0].rstrip(":") for line in lines if line[0] == "s"]
    assert names == sorted({*registry.SIMPLIFICATIONS, "bare", "blur", "broken", "odd"})
    blur = lines.index("simplification  blur(radius=…, wrap=true, edge=zero)")
    does, at = (line.strip() for line in lines[blur + 1 : blur + 3])
    assert does == "Averages over neighbours."
    assert at == "at: query, value, mlp_input"
    bare = lines.index("simplification  bare")
    assert lines[bare + 1].strip() == "not documented"
    assert "simplification  svd(rank=…)" in lines
    assert "simplification  kmeans(clusters=…, seed=0, reservoir=32768)" in lines
    (broken,) = [line for line in lines if " broken" in line]
    assert "cannot be loaded" in broken and "no_such_package" in broken
    (odd,) = [line for line in lines if " odd" in line]
    assert "not a subclass of Simplification" in odd


def test_data(anamorph: Any, tmp_path: Path) -> None:
    done = anamorph("data", "dyck", *TINY, "--out", tmp_path / "data")
    assert done.code == 0, done.error
    names = {file.name for file in (tmp_path / "data").iterdir()}
    assert {"task.json", "train.parquet", "iid.parquet", "unseen_depth.parquet"} < names
    said = json.loads((tmp_path / "data" / "task.json").read_text())
    iid = pl.read_parquet(tmp_path / "data" / "iid.parquet")
    assert iid["tokens"].list.len().sum() == said["splits"]["iid"]["tokens"]


@pytest.mark.parametrize(
    "verb", ["run", "train", "audit", "report", "show", "list", "data", "sites"]
)
def test_help(anamorph: Any, verb: str) -> None:
    done = anamorph(verb, "--help")
    assert done.code == 0
    assert f"anamorph {verb}" in done.out


# Bad input.


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("simplify=['svd(rank=1)@7.*.key']", "no site '7.*.key'"),
        ("simplify=['svd(rank=1)@1.*.keys']", "no site '1.*.keys'"),
        ("simplify=['svd(rank=1)']", "svd(rank=1)"),
        ("simplify=['onehot@1.*.key']", "onehot cannot be put at 1.0.key"),
        ("simplify=['svd(rank=17)@1.*.key']", "rank above dimension"),
        ("simplify=['svd(rank=-1)@1.*.key']", "rank must be a whole number"),
        ("simplify=['svd(rank=0)@1.*.key']", "rank must be a whole number"),
        ("simplify=['kmeans(clusters=-2)@1.*.key']", "clusters must be a whole number"),
        ("simplify=['nmf(rank=2)@1.*.key']", "no simplification 'nmf'"),
        ("simplify=['identity']", "no simplification"),
        ("simplify=[]", "no simplification"),
        ("training.steps=-1", "steps must be a whole number from 1; got -1"),
        ("training.fast=true", "training.fast"),
        ("model.width=-4", "width must be a whole number above 0"),
        ("model.heads=3", "multiple of heads"),
        ("model.depth=4", "takes no depth"),
        ("model.context=5", "context of at least"),
        ("task.train=-5", "train must be a whole number from 1"),
        ("task={}", "task.name must say which task"),
        ("task={name=3}", "task.name must say which task"),
        ("task=3", "dictionary"),
        ("task.colour=red", "takes no colour"),
        ("audit.sequences=-1", "audit: sequences must be a whole number from 2; got -1"),
        ("audit.thresholds.faithful=7", "from 0 to 1"),
        ("seeds=[0,0]", "differ"),
        ("seeds=[-1]", "seeds"),
        ("nonsense", "expected section.key=value"),
    ],
)
def test_a_bad_setting(anamorph: Any, tmp_path: Path, setting: str, words: str) -> None:
    done = anamorph("run", "dyck", *TINY, "--set", setting, "--out", tmp_path / "run")
    assert_refused(done, words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "dick"), "no presets for 'dick'; tasks with presets are: "),
        (("run", "dyck", "--preset", "tiny"), "its presets are: demo, paper, smoke, views"),
        (("run", "dyck", *TINY, "--seeds", -1), "at least 1 seed"),
        (("run", "dyck", *TINY, "--workers", 0), "workers must be a whole number from 1; got 0"),
        (("data", "dyck", *TINY, "--set", "task.k=0"), "k must be a whole number from 1"),
    ],
)
def test_a_bad_argument(
    anamorph: Any, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    assert_refused(anamorph(*arguments, "--out", tmp_path / "run"), words)
    assert not (tmp_path / "run").exists()


def test_clusters_above_points(anamorph: Any, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    spec = "kmeans(clusters=30000)@1.*.key"
    assert_refused(anamorph("audit", run, "--simplify", spec, "--out", out), "clusters above")
    assert not (out / "results.parquet").exists()
    assert not list(out.rglob("*.tmp"))


def test_another_specification(anamorph: Any, run: Path) -> None:
    before = contents(run)
    done = anamorph("run", "dyck", *TINY, "--set", "training.steps=5", "--out", run)
    assert_refused(done, "another specification", "training", code=3)
    assert contents(run) == before


@pytest.mark.parametrize("verb", ["run", "train", "data", "audit"])
def test_an_output_below_a_file(anamorph: Any, tmp_path: Path, tiny: Path, verb: str) -> None:
    (tmp_path / "file").write_text("mine")
    more = (tiny, "--simplify", "svd(rank=1)@1.*.key") if verb == "audit" else ("dyck", *TINY)
    for out in (tmp_path / "file" / "run", tmp_path / "file"):
        assert_refused(anamorph(verb, *more, "--out", out), str(out), code=3)
    assert contents(tmp_path) == {"file": b"mine"}


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file can grow beyond `room` bytes: to the writer the same as a disk without more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # Python ignores the signal
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("room", "reached"),
    [
        (100, {"run": {".lock"}, "data": set()}),
        (12_000, {"run": {".lock", "plan.json", "spec.json"}, "data": set()}),
    ],
)
@pytest.mark.parametrize("verb", ["run", "data"])
def test_a_full_disk(
    anamorph: Any, tmp_path: Path, verb: str, room: int, reached: dict[str, set[str]]
) -> None:
    out = tmp_path / "out"
    with full_disk(room):
        done = anamorph(verb, "dyck", *TINY, "--out", out)
    assert_refused(done, "Cannot write", "room", code=3)
    assert set(contents(out)) == reached[verb]


def test_a_disk_that_is_full_at_the_results_and_then_is_not(
    anamorph: Any, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert anamorph("train", "dyck", *TINY, "--out", out).code == 0
    with full_disk(64_000):
        done = anamorph("run", "dyck", *TINY, "--out", out)
        assert_refused(done, "Cannot write", "room", code=3)
    assert not list(out.rglob("*.tmp"))
    assert not (out / "report.html").exists()
    assert anamorph("run", "dyck", *TINY, "--out", out).code == 0
    assert (out / "results.parquet").read_bytes() == (tiny / "results.parquet").read_bytes()


def spoilt(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "another kind":
        save_file({"x": am.Decoder.load(file.parent / "model.safetensors").norm.weight}, file)
        return
    made = {"empty": b"", "half": content[: len(content) // 2], "noise": bytes(range(256)) * 9}
    file.write_bytes(made[how])


@pytest.mark.parametrize("how", ["empty", "half", "noise", "another kind"])
@pytest.mark.parametrize(
    "name", ["checkpoint.safetensors", "model.safetensors", "simplifications.safetensors"]
)
def test_a_corrupt_checkpoint(anamorph: Any, run: Path, name: str, how: str) -> None:
    """Of the training, of the model, and of what was fitted to it."""
    (run / "report.html").unlink()
    file = run / "seed-0" / name
    if name.startswith("checkpoint"):
        file.write_bytes((run / "seed-0" / "model.safetensors").read_bytes())
        spoilt(file, how)
        (run / "seed-0" / "model.safetensors").unlink()
    else:
        spoilt(file, how)
    for table in ("results.parquet", *(str(f) for f in run.glob("seed-0/works/iid-*.parquet"))):
        (run / table).unlink()
    before = contents(run)
    assert_refused(anamorph("run", "dyck", *TINY, "--out", run), "Seed 0", str(file), code=3)
    assert contents(run) == before


@pytest.mark.parametrize("how", ["empty", "half", "noise"])
def test_a_truncated_work(anamorph: Any, run: Path, tiny: Path, how: str) -> None:
    (run / "report.html").unlink()
    (file,) = run.glob("seed-0/works/unseen_long-*.parquet")
    spoilt(file, how)
    before = contents(run)
    assert_refused(anamorph("run", "dyck", *TINY, "--out", run), str(file), "elete", code=3)
    assert contents(run) == before
    file.unlink()  # as the message says
    assert anamorph("run", "dyck", *TINY, "--out", run).code == 0
    assert (run / "results.parquet").read_bytes() == (tiny / "results.parquet").read_bytes()


@pytest.mark.parametrize("name", ["results.parquet", "gaps.parquet", "claims.json"])
@pytest.mark.parametrize("how", ["half", "noise"])
def test_a_truncated_table(anamorph: Any, run: Path, tiny: Path, name: str, how: str) -> None:
    spoilt(run / name, how)
    before = contents(run)
    for command in (("show", run), ("run", "dyck", *TINY, "--out", run)):
        assert_refused(anamorph(*command), str(run / name), "delete", code=3)
    assert contents(run) == before
    (run / name).unlink()
    shown = anamorph("show", run)
    assert (shown.code, f"still without {name}." in shown.out) == (0, True)
    assert "The same command goes on" in shown.out
    assert anamorph("run", "dyck", *TINY, "--out", run).code == 0
    assert (run / name).read_bytes() == (tiny / name).read_bytes()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"study": "dyck"}'])
def test_a_damaged_specification(anamorph: Any, run: Path, tmp_path: Path, text: str) -> None:
    (run / "spec.json").write_text(text)
    before = contents(run)
    out = tmp_path / "out"
    for command in (
        ("show", run),
        ("report", run),
        ("run", "dyck", *TINY, "--out", run),
        ("audit", run, "--simplify", "svd(rank=1)@1.*.key", "--out", out),
    ):
        assert_refused(anamorph(*command), "spec.json", code=3)
    assert contents(run) == before
    assert not out.exists()


@pytest.mark.parametrize("verb", ["show", "report", "audit"])
def test_no_run_there(anamorph: Any, tmp_path: Path, verb: str) -> None:
    more = ("--simplify", "svd(rank=1)@1.*.key", "--out", tmp_path / "out")
    done = anamorph(verb, tmp_path / "nothing", *(more if verb == "audit" else ()))
    assert_refused(done, "holds no run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spec", ["svd(rank=1)@1.*.key", "onehot@1.*.pattern"])
def test_a_nan_in_the_weights(anamorph: Any, run: Path, tmp_path: Path, spec: str) -> None:
    file = run / "seed-0" / "model.safetensors"
    model = am.Decoder.load(file)
    model.blocks[1].key.weight.data[3, 3] = float("nan")
    model.save(file)
    out = tmp_path / "out"
    done = anamorph("audit", run, "--simplify", spec, "--out", out)
    assert_refused(done, "the weights of layer 1 differ", "Put the old one back", code=3)
    assert not out.exists()
    (run / "seed-0" / "fingerprints.json").unlink()  # as if it had been trained to that
    done = anamorph("audit", run, "--simplify", spec, "--out", out)
    assert_refused(done, "Seed 0", "plit ", "sequence 0")
    assert ("1.0.key" if "svd" in spec else "pattern on split 'iid'") in done.error
    assert not (out / "results.parquet").exists()
    assert not list(out.rglob("*.tmp")) and not list(out.glob("seed-0/works/*"))


def test_brackets_in_a_message_are_text(anamorph: Any, tmp_path: Path) -> None:
    setting = "simplify=['[bold]x[/bold]@1.*.key']"
    done = anamorph("run", "dyck", *TINY, "--set", setting, "--out", tmp_path / "run")
    assert_refused(done, "[bold]")
