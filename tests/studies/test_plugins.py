"""Parts of one's own, from a file that is named: used, told apart, refused; never run unasked."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import anamorph as am
from anamorph.errors import AnamorphError
from anamorph.faithfulness.metric import Metric
from anamorph.faithfulness.metrics import all_metrics
from anamorph.registered import loaded_plugins
from anamorph.simplifications import simplification_names
from anamorph.studies.plugins import plugged
from anamorph.tasks import OwnFacet, Task
from commands import SOURCE
from synthetic_run import make_run

PARTS = """
import torch
import anamorph as am
from anamorph.faithfulness.metric import Metric
from anamorph.tasks import OwnFacet


@am.register
class Round(am.Simplification):
    name = "round"
    size_name = "step"

    def __init__(self, *, step):
        self.step = step

    def __call__(self, x):
        return torch.round(x / self.step) * self.step


def sure(model, logits):
    return (logits.softmax(-1).amax(-1) > 0.5).float()


am.register(
    Metric("sure", "sure", "share", None, "1 = always", "It is sure.", sure, about="proxy"),
    OwnFacet("parity", ("even", "odd"), lambda split, names: split.tokens % 2),
)
"""
LIAR = """
import anamorph as am


@am.register
class Cut(am.Simplification):
    name = "cut"

    def __call__(self, x):
        return x[..., :-1]
"""
SMALL = [
    *("run", "dyck", "--preset", "smoke", "--set", "training.steps=5", "--set", "task.train=100"),
    *("--set", "task.test=20", "--set", "audit.sequences=10"),
]
ROUND = ("--simplify", "round(step=0.5)@1.*.key")


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with plugged([]):
        yield


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return written(tmp_path / "parts.py", PARTS)


def written(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


@pytest.mark.usefixtures("quick_report")
def test_a_run_uses_a_plugin_and_belongs_to_it(anamorph: Any, parts: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = anamorph(*SMALL, *ROUND, "--plugin", parts, "--out", out)
    assert done.code == 0, done.error
    assert f"Plugin {parts} was run, and adds: simplification round, metric sure" in done.error
    said = json.loads((out / "spec.json").read_text())["plugins"]
    assert [plugin["path"] for plugin in said] == [str(parts)]
    run = am.load_run(out)
    assert run.spec["simplify"] == ["round(step=0.5)@1.*.key"]
    whole = pl.col("facet").is_null()
    assert len(run.results.filter(whole, metric="sure", method="round", split="iid")) == 2
    rows = run.results.filter(facet="parity", metric="model_accuracy", split="iid", seed=0)
    tokens = rows.filter(method="identity").select("level", "tokens").rows()
    pairs = run.results.filter(whole, metric="model_accuracy", split="iid", seed=0)["tokens"]
    assert sum(count for _, count in tokens) == pairs[0] and dict(tokens).keys() <= {"even", "odd"}
    assert loaded_plugins() == [] and "round" not in simplification_names()  # the verb is over

    forgotten = anamorph(*SMALL, *ROUND, "--out", out)
    assert forgotten.code == 2 and "needs --plugin FILE" in " ".join(forgotten.error.split())
    again = ("audit", out, "--simplify", "svd(rank=2)@1.*.key", "--out", tmp_path / "again")
    refused = anamorph(*again)
    assert refused.code == 2 and not (tmp_path / "again").exists()
    assert f"give it again: --plugin {parts}" in " ".join(refused.error.split())
    moved = written(tmp_path / "elsewhere.py", PARTS)
    done = anamorph(*again, "--plugin", moved)
    assert done.code == 0, done.error
    results = pl.read_parquet(tmp_path / "again" / "results.parquet")
    assert "sure" in results["metric"] and "parity" in results["facet"]


@pytest.mark.usefixtures("quick_report")
def test_what_a_changed_plugin_made_is_not_mixed(
    anamorph: Any, parts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = (*SMALL, *ROUND, "--plugin", parts, "--out", out)
    assert anamorph(*command).code == 0
    before = am.load_run(out).results
    model = (out / "seed-0/model.safetensors").stat().st_mtime_ns
    written(parts, PARTS.replace("return torch.round", "return 0 * torch.round"))
    refused = anamorph(*command)
    said = " ".join(refused.error.split())
    assert refused.code == 2 and "the plugin parts.py differs from what it was" in said
    assert am.load_run(out).results.equals(before)
    named = said.partition("Delete ")[2].partition(", and the same")[0].split(", ")
    for path in map(Path, named):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = anamorph(*command)
    assert done.code == 0, done.error
    assert (out / "seed-0/model.safetensors").stat().st_mtime_ns == model  # not trained again
    now = am.load_run(out)
    kl = {"metric": "output_kl", "method": "round", "split": "iid"}
    assert now.results.filter(**kl)["value"].max() > before.filter(**kl)["value"].max()
    told = json.loads((out / "spec.json").read_text())
    with plugged([parts]):
        assert told["plugins"] == [plugin.described() for plugin in loaded_plugins()]
    assert anamorph(*command).code == 0  # complete, and of this plugin


@pytest.mark.usefixtures("quick_report")
def test_one_that_lies_can_be_mended(anamorph: Any, tmp_path: Path) -> None:
    liar, out = written(tmp_path / "liar.py", LIAR), tmp_path / "run"
    command = (*SMALL, "--simplify", "cut@1.*.key", "--plugin", liar, "--out", out)
    failed = anamorph(*command)
    assert failed.code == 2
    assert "cut, at 1.0.key: it must give [10, " in " ".join(failed.error.split())
    model = (out / "seed-0/model.safetensors").stat().st_mtime_ns
    written(liar, LIAR.replace("x[..., :-1]", "0 * x"))
    refused = anamorph(*command)
    assert refused.code == 2 and "simplifications.safetensors" in refused.error
    (out / "seed-0/simplifications.safetensors").unlink()
    done = anamorph(*command)
    assert done.code == 0, done.error
    assert (out / "seed-0/model.safetensors").stat().st_mtime_ns == model


@pytest.mark.usefixtures("quick_report")
def test_a_metric_that_lies_is_named(anamorph: Any, tmp_path: Path) -> None:
    lies = PARTS.replace(".float()\n\n\nam.register", ".float().mean(0)\n\n\nam.register")
    plugin = written(tmp_path / "parts.py", lies)
    failed = anamorph(*SMALL, *ROUND, "--plugin", plugin, "--out", tmp_path / "run")
    assert failed.code == 2 and "The metric 'sure' gives a tensor of shape" in failed.error


HEAD = "import anamorph as am\n"
HALF = "class Half(am.Simplification):\n    name = {!r}\n    def __call__(self, x): return x / 2\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\ny = (\n", r"failed in line 2: SyntaxError: '\(' was never closed\."),
        (HEAD + "\nnothing\n", r"failed in line 3: NameError: name 'nothing' is not defined\."),
        (HEAD + "import sys\nsys.exit(3)\n", r"failed in line 3: SystemExit: 3\."),
        ("x = 1\n", "registers nothing"),
        (HEAD + HALF.format("half"), "registers nothing"),
        (HEAD + "@am.register\n" + HALF.format("svd"), "'svd' already, of anamorph itself"),
        (HEAD + ("@am.register\n" + HALF.format("half")) * 2, "'half' already, of this file"),
        (HEAD + "@am.register\n" + HALF.format("a b"), "its name is 'a b'"),
        (HEAD + "am.register(3)\n", "Cannot register 3; expected a subclass of Simplification"),
        (HEAD + "@am.register\ndef dyck(*, k=1): ...\n", "a task 'dyck' already"),
        (None, "Cannot read the plugin"),
    ],
)
def test_one_that_cannot_be_used_says_where_it_failed(
    anamorph: Any, tmp_path: Path, text: str | None, said: str
) -> None:
    path = tmp_path / "bad.py"
    if text is not None:
        written(path, text)
    with pytest.raises(AnamorphError, match=said):
        am.load_plugin(path)
    assert "half" not in simplification_names()
    done = anamorph(*SMALL, "--plugin", path, "--out", tmp_path / "run")
    assert done.code == 2 and str(path) in done.error.replace("\n", "")
    assert not (tmp_path / "run").exists()


def test_two_files_cannot_register_one_name(parts: Path, tmp_path: Path) -> None:
    assert am.load_plugin(parts) == ["simplification round", "metric sure", "facet parity"]
    assert am.load_plugin(parts) == ["simplification round", "metric sure", "facet parity"]
    other = written(tmp_path / "other.py", HEAD + "@am.register\n" + HALF.format("round"))
    with pytest.raises(AnamorphError, match=f"'round' already, of the plugin {parts}"):
        am.load_plugin(other)
    assert len(loaded_plugins()) == 1 and "sure" in all_metrics()
    written(parts, PARTS + "\n")
    with pytest.raises(AnamorphError, match="has changed since"):
        am.load_plugin(parts)


def test_a_notebook_registers_again(task: Task) -> None:
    class Half(am.Simplification):
        name = "half"

        def __call__(self, x: Any) -> Any:
            return x / 2

    first = am.register(Half)
    assert first is Half and am.sweep("half@0.residual", am.Decoder(CONFIG).sites, "all")
    again = am.register(type("Half", (Half,), {"name": "half"}))
    (proxy,) = am.sweep("half@0.residual", am.Decoder(CONFIG).sites, "all")
    assert type(proxy.attachments[0].simplification) is again  # type: ignore[attr-defined]


CONFIG = am.DecoderConfig(4, 8)


def test_what_gives_no_tensor_is_named(task: Task) -> None:
    model = am.Decoder(am.DecoderConfig(len(task.vocabulary), 64, width=8, mlp=8)).eval()

    class Nothing(am.Simplification):
        name = "nothing"

        def __call__(self, x: Any) -> Any:
            return None

    with pytest.raises(
        AnamorphError, match=r"nothing, at 1\.0\.key: it must give a tensor; it gave"
    ):
        am.audit(model, task, Nothing() @ "1.*.key", sequences=5)
    am.register(Metric("one", "one", "share", None, "1", "It is 1.", lambda model, logits: 1.0))
    with pytest.raises(AnamorphError, match="The metric 'one' gives a float; expected a tensor"):
        am.audit(model, task, am.SVD(rank=2) @ "1.*.key", sequences=5)


def test_a_facet_of_ones_own_labels_every_token(task: Task) -> None:
    names = task.vocabulary
    opening = {n for n, name in enumerate(names) if name.startswith("(")}
    assert opening
    am.register(
        OwnFacet(
            "opens",
            ("no", "yes"),
            lambda split, names: np.array([names[t].startswith("(") for t in split.tokens], int),
            tasks=("dyck",),
            label="an opening bracket",
        ),
        OwnFacet("elsewhere", ("x",), lambda split, names: split.tokens * 0, tasks=("code",)),
    )
    labelled = am.load_task(**task.spec)
    for name, split in labelled.splits.items():
        codes = [int(token in opening) for sequence in task.splits[name] for token in sequence]
        assert split.facets["opens"].codes.tolist() == codes and "elsewhere" not in split.facets
    assert labelled.about.labels["opens"] == "an opening bracket"
    assert labelled.fingerprints() != task.fingerprints()
    am.register(OwnFacet("opens", ("no",), lambda split, names: split.tokens, tasks=("dyck",)))
    with pytest.raises(AnamorphError, match=r"facet 'opens', at the split 'train': .* from 0 to"):
        am.load_task(**task.spec)


@pytest.mark.usefixtures("quick_report")
def test_other_processes_load_it_too(parts: Path, tmp_path: Path) -> None:
    """Two processes, a seed each, give the numbers of one."""
    am.load_plugin(parts)
    settings = [word for word in SMALL if "=" in word]
    spec = am.load_preset("dyck", "smoke", settings, seeds=2, simplify=ROUND[1:])
    apart = am.run_study(spec, tmp_path / "apart", workers=2)
    together = am.run_study(spec, tmp_path / "together", workers=1)
    assert "sure" in apart.results["metric"] and apart.results.equals(together.results)


HOSTILE = "open({!r}, 'a').write(__file__ + chr(10))\n"
NAMES = (
    *("sitecustomize", "usercustomize", "conftest", "plugin", "parts", "anamorph_plugin", "setup"),
    *("torch", "polars", "modeling_mine", "__init__", "__main__"),
)
VERBS = """
import sys
from anamorph.cli import main
for line in open(sys.argv[1]).read().splitlines():
    sys.argv[:] = ["anamorph", *line.split("|")]
    try:
        main()
    except SystemExit as ended:
        print(line, ended.code or 0)
"""


def test_without_plugin_no_file_is_executed(tmp_path: Path) -> None:
    """Whatever lies in the folder, in that of a run or of a model, and whatever a file says."""
    ran, model, copied = tmp_path / "ran", tmp_path / "model", make_run(tmp_path / "run")
    model.mkdir()
    for folder in (tmp_path, copied, model):
        for name in NAMES:
            written(folder / f"{name}.py", HOSTILE.format(str(ran)))
    mine = {"model_type": "mine", "architectures": ["Mine"]}
    automatic = {"auto_map": {"AutoConfig": "modeling_mine.C", "AutoModel": "modeling_mine.M"}}
    written(model / "config.json", json.dumps(mine | automatic))
    spec = json.loads((copied / "spec.json").read_text())
    spec["threads"] = 1
    spec["plugins"] = [{"path": str(tmp_path / "parts.py"), "fingerprint": "0" * 32}]
    written(copied / "spec.json", json.dumps(spec))
    written(tmp_path / "a.toml", f'plugin = "{tmp_path}/parts.py"\npreset = "dyck-smoke"\n')
    written(tmp_path / "iid.jsonl", '{"text": "a"}\n')
    simplify = "--simplify|svd(rank=1)@0.residual|--out|new"
    verbs = {
        f"show|{copied}": 0,
        "list": 0,
        f"sites|{copied}": 2,
        f"audit|{copied}|{simplify}": 2,
        f"run|{copied}/spec.json|--out|new": 2,
        f"audit|{copied}/spec.json|--out|new": 2,
        f"run|a.toml|--plugin-dir|{tmp_path}": 2,
        "run|a.toml": 2,
        "audit|a.toml": 2,
        f"sites|{model}": 2,
        f"audit|--model|{model}|--data|iid=iid.jsonl|{simplify}": 2,
    }
    lines = written(tmp_path / "verbs.txt", "\n".join(verbs))
    done = subprocess.run(
        [sys.executable, "-P", "-c", VERBS, lines],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(SOURCE), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    codes = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines() if "|" in line)
    codes = {line: int(code) for line, code in codes.items() if line in verbs}
    expected = {line: code for line, code in verbs.items() if code}
    assert {k: v for k, v in codes.items() if v} == expected, (done.stdout[-2000:], done.stderr)
    said = " ".join(done.stderr.split())
    assert said.count("which is not loaded because a file says so") == 3
    assert said.count("but a file cannot have code executed") == 2
    assert not ran.exists() and not (tmp_path / "new").exists()
    am_plugin = written(tmp_path / "asked.py", HOSTILE.format(str(ran)))
    with pytest.raises(AnamorphError, match="registers nothing"):
        am.load_plugin(am_plugin)
    assert ran.read_text() == f"{am_plugin}\n"  # the trap works
