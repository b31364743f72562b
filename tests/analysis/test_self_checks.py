"""What a run says of itself, against the numbers that went in."""

import polars as pl

from anamorph.analysis.checks import self_checks, worst_floor


def test_self_checks_take_the_worst_of_every_split_and_seed() -> None:
    shown = {"same_prediction": 1.0, "same_attention": 1.0, "attention_jsd": 0.0}
    shown |= {"output_jsd": 0.0, "output_kl": 0.0}
    rows = [
        {"facet": facet, "method": method, "split": split, "metric": metric, "value": mean}
        for facet in (None, "depth")
        for method in ("identity", "svd")
        for split in ("iid", "unseen_long")
        for metric, mean in shown.items()
    ]
    for row in rows:
        if row["method"] == "svd" or row["facet"]:
            row["value"] = 0.5
        elif (row["split"], row["metric"]) == ("unseen_long", "output_kl"):
            row["value"] = 1e-7
    results = pl.DataFrame(rows, schema_overrides={"facet": pl.String})
    floor = {"simplification": "svd(rank=4)@0.*.{query,key}", **shown}
    worse = floor | {"same_prediction": 0.999, "model_accuracy": 0.1}
    floors = [floor, worse, floor | {"output_kl": 1e-6}]
    rounded = [{"logits": x, "positions": 10, "ties": t} for x, t in ((1e-6, 0), (3e-6, 2), (0, 1))]
    noise = [{"floor": f, "rounding": r} for f, r in zip(floors, rounded, strict=True)]
    found = self_checks(results, noise)
    assert found["rounding"] == {"logits": 3e-6, "positions": 30, "ties": 3}
    assert found["identity"] == shown | {"output_kl": 1e-7}
    assert found["noise_floor"] == floor | {"same_prediction": 0.999, "output_kl": 1e-6}
    assert self_checks(results, [{**noise[0], "floor": None}])["noise_floor"] is None
    assert worst_floor(noise) == shown | {"same_prediction": 0.999, "output_kl": 1e-6}
    assert worst_floor([{"floor": None}]) == {}
