"""Studies along an axis: their folders, what goes on, what fails, and the page of all."""

import json
import pickle
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import transformers

from anamorph.auditing.local import Failed, Job, Local
from anamorph.errors import AnamorphError, RunFolderError
from anamorph.progress import Event, Watch
from anamorph.runs.varied import Varied
from anamorph.studies import varied
from anamorph.studies.changes import read_vary
from anamorph.studies.specification import load_preset
from anamorph.studies.varied import Outcome, combinations, run_varied
from tiny_tokenizers import byte_level

pytestmark = pytest.mark.usefixtures("quick_report", "task_once")

TINY = ["task.train=200", "task.test=20", "audit.sequences=8", "audit.fit_sequences=20"]
TINY += ["training.batch_tokens=256", "training.evaluate_every=10"]
VIEW = "svd(rank=2)@1.*.{query,key}"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_values_are_read_as_toml_or_as_words() -> None:
    assert read_vary(["a.b=1, 2.5,1e3"]) == {"a.b": [1, 2.5, 1000.0]}
    assert read_vary(["model=ckpt-1,x/ckpt 2", "c=true,'a,b'"]) == {
        "model": ["ckpt-1", "x/ckpt 2"],
        "c": [True, "a,b"],
    }
    assert read_vary(["l=[1, 2],[3]"]) == {"l": [[1, 2], [3]]}
    for wrong in ("a", "=1,2", "a="):
        with pytest.raises(AnamorphError, match="expected setting=value,value"):
            read_vary([wrong])
    with pytest.raises(AnamorphError, match="--vary a is given twice"):
        read_vary(["a=1,2", "a=3,4"])


def test_folders_are_named_by_what_is_varied() -> None:
    found = combinations({"training.steps": [100, 300], "model.width": [16, 32]})
    assert list(found) == [
        *("steps-100_width-16", "steps-100_width-32"),
        *("steps-300_width-16", "steps-300_width-32"),
    ]
    assert found["steps-300_width-16"] == {"training.steps": 300, "model.width": 16}
    assert list(combinations({"model": ["/a/ckpt-1", "/a/ckpt-2"]})) == [
        "model-ckpt-1",
        "model-ckpt-2",
    ]
    names = list(combinations({"model": ["/a/1/final", "/a/2/final", "../../etc", "A", "a"]}))
    assert len({name.lower() for name in names}) == 5
    assert all(re.fullmatch(r"[a-z0-9_-]+", name) for name in names)
    assert combinations({}) == {"": {}}
    with pytest.raises(AnamorphError, match="needs two values or more"):
        combinations({"a": [1]})
    with pytest.raises(AnamorphError, match="has 2 twice"):
        combinations({"a": [1, 2, 2]})


def test_a_study_of_two_values_from_beginning_to_end(anamorph: Any, tmp_path: Path) -> None:
    out = tmp_path / "runs/steps"
    command = ["run", "dyck", "--preset", "smoke", "--simplify", VIEW, "--out", out]
    command += [word for setting in TINY for word in ("--set", setting)]
    vary = ["--vary", "training.steps=10,20"]
    done = anamorph(*command, *vary)
    assert done.code == 0, done.error
    assert "Along training.steps from 10 to 20 (2 values), the verdict changes for none" in done.out
    assert f"Page: {out / 'report.html'}" in done.out
    assert sorted(path.name for path in out.iterdir()) == [
        *("along.parquet", "axis.json", "report.html", "steps-10", "steps-20"),
    ]
    for steps in (10, 20):
        spec = json.loads((out / f"steps-{steps}/spec.json").read_text("utf-8"))
        assert spec["training"]["steps"] == steps and spec["preset"] == "smoke"
    table = pl.read_parquet(out / "along.parquet")
    gaps = [pl.read_parquet(out / f"steps-{n}/gaps.parquet") for n in (10, 20)]
    theirs = pl.concat(gaps).filter(pl.col("seed").is_null(), metric="same_prediction")
    ours = table.filter(pl.col("gap").is_not_null(), metric="same_prediction")
    assert ours["gap"].to_list() == theirs["gap"].to_list()
    assert '<a href="steps-10/report.html">' in (out / "report.html").read_text("utf-8")

    before = contents(out)
    assert json.loads(anamorph(*command, *vary, "--json").out).keys() == {"steps-10", "steps-20"}
    assert contents(out) == before, "finished studies are not done again"
    seen = json.loads(anamorph("along", out, "--json").out)
    assert seen["axis"] == "training.steps" and len(seen["table"]) == len(table)
    again = anamorph("along", out / "steps-20", out / "steps-10", "--csv").out
    assert pl.read_csv(again.encode())["gap"].to_list() == table["gap"].to_list()
    text = anamorph("along", out, "--markdown", "--out", tmp_path / "page.html").out
    assert "| view | split | 10 | 20 |" in text
    assert 'href="runs/steps/steps-10/report.html"' in (tmp_path / "page.html").read_text("utf-8")
    assert anamorph("along", out, "--markdown", "--csv").code == 2

    other = anamorph(*command, "--vary", "model.width=8,16")
    assert (
        other.code == 3 and "studies along training.steps, and this is along model" in other.error
    )
    other = anamorph(*command, *vary, "--set", "audit.sequences=9")
    assert other.code == 2 and "2 of 2 studies failed" in other.error
    assert "steps-10: " in other.error and "audit.sequences: there 8, asked 9" in other.error
    assert contents(out) == before


def test_what_fails_is_named_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vary = {"training.steps": [10, 20, 30]}
    specs = {
        name: load_preset("dyck", "smoke", [*TINY, f"training.steps={v['training.steps']}"])
        for name, v in combinations(vary).items()
    }
    done: list[str] = []

    def do(spec: Any, out: Path, how: Any, watch: Watch) -> None:
        watch(Event("training", 0, 1))
        if fails == out.name:
            raise MemoryError("no room") if error is None else AnamorphError(error)
        done.append(out.name)

    class Found:
        table = pl.DataFrame({"a": [1]})

        class axis:
            points = ()

    monkeypatch.setattr(varied, "_do", do)
    monkeypatch.setattr(varied, "along", lambda runs: Found)
    monkeypatch.setattr(varied, "write_page", lambda found, path: None)
    events: list[Event] = []
    fails, error = "steps-20", "It does not fit."
    made = run_varied(vary, specs, tmp_path / "out", watch=events.append)
    assert made.failed == {"steps-20": "It does not fit."} and done == ["steps-10", "steps-30"]
    assert [event.step for event in events] == [f"{name}, training" for name in specs]
    with pytest.raises(AnamorphError, match=r"steps-20: It does not fit"):
        varied.refuse_failed(made)
    error = None
    made = run_varied(vary, specs, tmp_path / "out")
    assert made.failed["steps-20"].startswith("MemoryError: no room (test_varied.py, line ")
    fails = ""
    assert run_varied(vary, specs, tmp_path / "out").failed == {}


def test_studies_can_be_done_elsewhere(tmp_path: Path) -> None:
    """As jobs that are pickled, and end in another order than they began."""
    carried: list[Job] = []

    class Elsewhere(Local):
        def carry(
            self, step: str, jobs: Sequence[Job], watch: Watch
        ) -> Iterator[tuple[Job, Any | Failed]]:
            carried.extend(pickle.loads(pickle.dumps(list(jobs))))
            yield jobs[1], Failed(jobs[1].name, ["It was killed."])
            yield jobs[0], Outcome(jobs[0].name, "Too slow.")

    specs = dict.fromkeys(("steps-10", "steps-20"), load_preset("dyck", "smoke"))
    vary = {"training.steps": [10, 20]}
    made = run_varied(vary, specs, tmp_path / "out", engine=Elsewhere())
    assert not any(job.twice for job in carried), "a run folder is one process's"
    assert [job.needs.threads for job in carried] == [specs["steps-10"].threads] * 2
    assert made.failed == {"steps-10": "Too slow.", "steps-20": "It was killed."}
    assert made.found is None and not (tmp_path / "out/report.html").exists()
    (tmp_path / "out/axis.json").unlink()  # as where the folder is not seen
    with pytest.raises(AnamorphError, match=r"does not see .*--out that all nodes see"):
        carried[0].call()
    assert not (tmp_path / "out/steps-10").exists()


def test_a_folder_of_something_else_and_a_damaged_record(tmp_path: Path) -> None:
    record = Varied({"a": [1, 2]}, {"a-1": {"a": 1}, "a-2": {"a": 2}})
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"exists and holds no axis\.json"):
        record.write(tmp_path)
    record.write(tmp_path / "new")
    assert Varied.read(tmp_path / "new") == record
    Varied({"a": [1, 2, 3]}, {"a-3": {"a": 3}}).write(tmp_path / "new")  # a value more
    for said in ('{"vary": {}}', "{", '{"vary": {"a": [1]}, "studies": {"../x": {"a": 1}}}'):
        (tmp_path / "new/axis.json").write_text(said)
        with pytest.raises(RunFolderError, match=r"axis\.json"):
            Varied.read(tmp_path / "new")


def test_a_file_says_what_is_varied(anamorph: Any, tmp_path: Path) -> None:
    file = tmp_path / "steps.toml"
    file.write_text(
        'preset = "dyck-smoke"\nout = "of-file"\n[vary]\n"training.steps" = [10, "many"]\n'
    )
    done = anamorph("run", file)
    assert done.code == 2 and "training.steps" in done.error and "'many'" in done.error
    assert not (tmp_path / "of-file").exists(), "nothing is begun"
    file.write_text('preset = "dyck-smoke"\nvary = {"training.steps" = 10}\n')
    done = anamorph("run", file)
    assert done.code == 2 and "a list of values each" in done.error


def test_checkpoints_of_a_model_of_ones_own(anamorph: Any, tmp_path: Path) -> None:
    tokenizer = byte_level()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    for step in (100, 20):
        torch.manual_seed(step)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / f"ckpt-{step}")
        tokenizer.save_pretrained(tmp_path / f"ckpt-{step}")
    for name in ("iid", "train", "far"):
        lines = [json.dumps({"text": f"{name} {n} a cat sat on a mat"}) for n in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = [
        f"{role}={tmp_path / name}.jsonl" for role, name in (("iid", "iid"), ("ood:far", "far"))
    ]
    data.append(f"train={tmp_path}/train.jsonl")
    models = ",".join(str(tmp_path / name) for name in ("ckpt-100", "missing", "ckpt-20"))
    out = tmp_path / "out"
    command = ["audit", "--simplify", VIEW, "--length", 12, "--by", "all", "--out", out]
    command += [word for entry in data for word in ("--data", entry)]
    done = anamorph(*command, "--vary", f"model={models}")
    assert done.code == 2 and "1 of 3 studies failed" in done.error
    assert "model-missing: " in done.error
    table = pl.read_parquet(out / "along.parquet")
    assert table["at"].unique(maintain_order=True).to_list() == ["ckpt-100", "ckpt-20"]
    assert "model-missing is not finished, and is left out." in " ".join(done.out.split())
