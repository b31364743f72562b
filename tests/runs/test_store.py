"""Files in a store: names, listings, whole writes that are looked for, errors, and no secrets."""

import re
from pathlib import Path, PurePosixPath

import polars as pl
import pytest

import anamorph as am
from anamorph.errors import RunFolderError
from anamorph.files import at_hand, parquet_metadata, read_part, replacing, write_bytes
from anamorph.runs.folder import Run
from anamorph.store import StorePath, address_of, beside
from store_server import BUCKET, Faults, Server

RUN = f"s3://{BUCKET}/run"


def test_what_is_local_stays_a_path(tmp_path: Path) -> None:
    for given in ("runs/one", tmp_path, r"C:\runs\one", "C:/runs/one", "a:b", "runs/s3:/x"):
        assert address_of(given) == Path(given)
    assert address_of(f"file://{tmp_path}") == tmp_path
    assert beside(Path("specs"), "one") == Path("specs/one")
    assert str(beside(Path("specs"), "s3://bucket/one")) == "s3://bucket/one"


@pytest.mark.parametrize(
    "given", ["s3://bucket/a/run", Path("s3://bucket/a/run"), "S3://bucket/a/run/"]
)
def test_names_are_those_of_pathlib(given: str | Path) -> None:
    path, pure = address_of(given), PurePosixPath("/bucket/a/run")
    assert isinstance(path, StorePath) and str(path) == "s3://bucket/a/run"
    for name in ("x.tar.gz", "works/x.parquet", ".holder.json", "*?[x]"):
        ours, theirs = path / name, pure / name
        assert (ours.name, ours.stem, ours.suffix) == (theirs.name, theirs.stem, theirs.suffix)
        assert str(ours.parent) == f"s3:/{theirs.parent}"
        assert str(ours.with_name("y")) == f"s3:/{theirs.with_name('y')}"
    assert path == address_of("s3://bucket/a/run") and len({path, path / "x"}) == 2


@pytest.mark.parametrize(
    "address",
    ["s3://user:hidden@bucket/run", "s3://hidden@bucket/run", "s3://bucket/run?token=hidden",
     "gs://bucket/run#hidden", "s3:/hidden:hidden@bucket/run"],
)  # fmt: skip
def test_a_secret_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(am.AnamorphError, match="credentials are taken from the env") as told:
        am.load_run(address)
    assert "hidden" not in str(told.value)


def test_what_is_missing_for_a_scheme_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anamorph.store.find_spec", lambda name: None)
    with pytest.raises(am.AnamorphError, match=re.escape("pip install 'anamorph[s3]'")):
        address_of("s3://bucket/run")
    with pytest.raises(am.AnamorphError, match=re.escape("pip install 'anamorph[gcs]'")):
        address_of("gs://bucket/run")
    with pytest.raises(am.AnamorphError, match="wonder:// is not known"):
        address_of("wonder://bucket/run")


def test_a_pattern_finds_in_a_store_what_it_finds_in_a_folder(
    store: Server, tmp_path: Path
) -> None:
    files = ["spec.json", "seed-0/works/a-0.parquet", "seed-0/works/a-1.parquet", "seed-1/x.json",
             "seed-1/works/b[1].parquet", "seed-10/works/x/c.parquet", "b[1]/x.json"]  # fmt: skip
    for folder in (tmp_path, address_of(RUN)):
        for name in files:
            write_bytes(folder / name, name.encode())
    for pattern in ("*", "seed-*/works", "seed-0/works/*.parquet", "seed-?/*", "none/*", "b[[]*"):
        here = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(pattern)}
        there = {str(path).removeprefix(f"{RUN}/") for path in address_of(RUN).glob(pattern)}
        assert here == there, pattern
    for name in (*files, "seed-0", "seed", "none", "b[1]"):
        ours, theirs = address_of(RUN) / name, tmp_path / name
        assert (ours.exists(), ours.is_file(), ours.is_dir()) == (
            theirs.exists(), theirs.is_file(), theirs.is_dir())  # fmt: skip
    assert {n: c for n, c in store.contents().items()} == {f"run/{n}": n.encode() for n in files}


def test_a_write_counts_when_it_is_there(store: Server) -> None:
    """Half of all writes get lost, and an older file of the same size lies in their place."""
    path = address_of(RUN) / "x"
    write_bytes(path, b"older")
    store.fail(Faults(lost=0.4, seed=1))
    for n in range(5):
        write_bytes(path, b"new %d" % n)
        assert path.read_bytes() == b"new %d" % n
    assert store.failed["lost"] > 0


def test_a_store_that_fails_five_times_is_an_error_that_says_what(
    store: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    store.fail(Faults(lost=1))
    with pytest.raises(
        RunFolderError, match="Cannot write s3://bucket/run/x: it is not there"
    ) as e:
        write_bytes(address_of(RUN) / "x", b"1")
    assert "tried 5 times" in str(e.value) and "the same command goes on" in str(e.value)
    assert store.requests["PUT"] == 5
    assert store.contents() == {}


def test_what_was_not_written_here_is_not_sent(store: Server) -> None:
    refused = pytest.raises(RunFolderError, match="Cannot write s3://bucket/run/x: ")
    with refused, replacing(f"{RUN}/x"):
        raise OSError("the disk is full")
    assert store.requests["PUT"] == 0


def test_reads_survive_a_busy_store_and_broken_connections(store: Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4000
    path = address_of(RUN) / "x"
    write_bytes(path, content)
    store.fail(Faults(busy=0.2, dropped=0.2, cut=0.2, seed=4))
    for _ in range(4):
        with at_hand(path) as file:
            assert file.read_bytes() == content
        assert path.read_bytes() == content
        assert read_part(path, 10, 300) == content[10:300]
    assert not file.exists()
    assert min(store.failed[kind] for kind in ("busy", "dropped before", "cut")) > 0


def test_the_end_of_a_table_tells_its_metadata(store: Server, tmp_path: Path) -> None:
    for size in (1, 400_000):  # what is said does not fit what is read first, or does
        table = pl.DataFrame({"x": range(1000)})
        table.write_parquet(tmp_path / "x.parquet", metadata={"said": "y" * size})
        write_bytes(address_of(RUN) / "x.parquet", (tmp_path / "x.parquet").read_bytes())
        assert parquet_metadata(address_of(RUN) / "x.parquet")["said"] == "y" * size
    write_bytes(address_of(RUN) / "x.parquet", b"short")
    with pytest.raises(pl.exceptions.PolarsError):
        parquet_metadata(address_of(RUN) / "x.parquet")


def test_works_that_are_not_listed_yet_are_asked_for_by_name(store: Server) -> None:
    run = Run(address_of(RUN), {"seeds": [0]})
    works = [run.work(0, "iid", number) for number in range(30)]
    store.fail(Faults(lag=10**6))
    for path in works[:20]:
        write_bytes(path, b"sums")
    assert run.works() == []
    assert run.stored(0, works) == set(works[:20])
    assert run.works_of(0, "iid") == works[:20]
    store.fail(Faults())
    works[3].unlink()
    assert run.works_of(0, "iid") == works[:3] + works[4:20]
    write_bytes(works[3], b"sums")
    store.fail(Faults())
    assert len(run.works()) == 20
    assert run.stored(0, works[:20]) == set(works[:20])
    assert store.requests["HEAD"] == 0 and store.requests["GET"] == 2  # the listings alone
