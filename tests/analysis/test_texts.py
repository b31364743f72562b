from pathlib import Path

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special

import anamorph as am
from anamorph.analysis.texts import OTHER, SHOWN, functions, glyphs
from anamorph.auditing.audit import fit_on_task
from anamorph.simplifications import Simplified, expand
from anamorph.tasks import load_task
from plain import forward, small_model
from sources import write_sources


@pytest.mark.parametrize("unit", ["characters", "bytes"])
def test_predictions_are_those_of_a_plain_forward(tmp_path: Path, unit: str) -> None:
    corpus = write_sources(tmp_path, functions=60)
    task = load_task(
        "code", corpus=corpus, language="c", test=30, context=40, unit=unit, cache=str(tmp_path)
    )
    model = small_model(task, positions="sinusoidal")
    proxies = expand(["svd(rank=1)@*.*.{query,key}", "onehot@1.*.pattern"])
    fitted = fit_on_task(model, [Simplified(()), *proxies], task, 10)
    table = functions(model, task, list(fitted.values()))
    assert sorted(set(table["simplification"])) == sorted(map(str, proxies))
    assert table.group_by("split", "simplification").len()["len"].max() <= SHOWN
    split = task.splits["python"]
    rows = table.filter(split="python", simplification=str(proxies[0]))
    for row in rows.head(5).iter_rows(named=True):
        tokens = list(split)[row["sequence"]].tolist()
        names = [task.vocabulary[t] for t in tokens[1:]]
        if unit == "characters":
            assert row["text"] == "".join(n if len(n) == 1 else "␀" for n in names)
        else:
            assert row["text"] == "".join(chr(int(n, 16)) if n < "80" else "␀" for n in names)
        logits = forward(model, tokens, {})["logits"][:-1]
        own = scipy.special.softmax(logits, -1)
        edits = {site: plain_of(f) for site, f in fitted[proxies[0]].by_site.items()}
        other = scipy.special.softmax(forward(model, tokens, edits)["logits"][:-1], -1)
        jsd = scipy.spatial.distance.jensenshannon(own, other, base=2, axis=-1) ** 2
        assert row["jsd"] == pytest.approx(jsd, abs=1e-4)
        percent = np.sort(own, -1)[:, :-4:-1].ravel() * 100
        assert row["model_p"] == pytest.approx(percent, abs=0.51)
        best = [task.vocabulary[i] for i in own.argmax(-1)]
        if unit == "characters":
            assert list(row["model"])[::3] == [n if len(n) == 1 else "␀" for n in best]


def plain_of(fitted: am.Simplification):  # type: ignore[no-untyped-def]
    rows = fitted.components_.numpy()
    return lambda x: x @ rows.T @ rows


def test_sequences_of_numbers_are_no_text_and_bytes_are() -> None:
    assert glyphs([str(number) for number in range(97)]) == []
    of_bytes = glyphs(["START", *(f"{byte:02x}" for byte in range(256))])
    assert of_bytes[1 + 0xC3] == OTHER
    assert "".join(of_bytes[1 + byte] for byte in b"if (a)") == "if (a)"
    assert glyphs(["START", "UNKNOWN", "a", "b", "é"])[2:] == ["a", "b", "é"]
