"""Who holds a run folder in a store: one process, until it lets go or gives no sign of life."""

import json
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier

import pytest

from anamorph.errors import RunFolderError
from anamorph.files import write_json
from anamorph.runs.held import Claim, Times, held
from anamorph.runs.holder import HOLDER, Holder
from anamorph.store import Address, StorePath, address_of
from store_server import BUCKET, Faults, Server

QUICK = Times(beat=0.05, stale=60, settle=0.2, look=0)
RUN, FILE = f"s3://{BUCKET}/run", f"run/{HOLDER}"


def in_store(text: str) -> StorePath:
    path = address_of(text)
    assert isinstance(path, StorePath)
    return path


@pytest.mark.parametrize("address", [RUN, "memory://somewhere/run"])
def test_a_second_process_is_refused_and_told_who_holds_it(store: Server, address: str) -> None:
    path = in_store(address)
    with held(path):
        refused = pytest.raises(RunFolderError, match=r"is being worked on by process .* since 2")
        with refused as told, held(path):
            pass
        assert address in str(told.value) and "sign of life" in str(told.value)
        assert Holder.read(path) == Holder.this()._replace(since=Holder.read(path).since)  # type: ignore[union-attr]
        assert Holder.this().works(path) is True
    assert list(path.iterdir()) == []
    with held(path):  # it was let go of
        pass


def test_a_holder_gives_signs_of_life_and_stops(store: Server) -> None:
    with held(in_store(RUN), QUICK):
        until(lambda: len(store.puts[FILE]) >= 4)
    written = len(store.puts[FILE])
    time.sleep(0.2)
    assert len(store.puts[FILE]) == written


def test_a_dead_holder_is_taken_over_by_the_clock_of_the_store(store: Server) -> None:
    path = in_store(RUN)
    Claim(path, "of a process that was killed", Times()).take()
    store.age(FILE, 100)
    with pytest.raises(RunFolderError, match=r"a sign of life 1\d\d s ago"), held(path):
        pass
    store.age(FILE, 21)
    with held(path):
        assert json.loads(store.contents()[FILE])["token"] != "of a process that was killed"
    assert store.contents() == {}  # nor is the file left that tells the time


@pytest.mark.parametrize("address", [f"s3://{BUCKET}/both", "memory://somewhere/both"])
def test_of_two_that_take_over_at_once_one_is_refused(store: Server, address: str) -> None:
    path, at_once = in_store(address), Barrier(2)
    Claim(path, "dead", QUICK).take()
    if path.scheme == "memory":
        path.filesystem.store[f"/{path.key}/{HOLDER}"].modified -= timedelta(seconds=100)
    else:
        store.age("both/" + HOLDER, 100)

    def take(token: str) -> str | None:
        at_once.wait()
        try:
            Claim(path, token, QUICK).take()
        except RunFolderError:
            return None
        return token

    with ThreadPoolExecutor(2) as pool:
        took = [token for token in pool.map(take, ("a", "b")) if token]
    assert took == [json.loads((path / HOLDER).read_text())["token"]]


def test_who_lost_the_folder_writes_nothing_more(store: Server) -> None:
    with held(in_store(RUN), QUICK) as first:
        write_json(first / "kept.json", 1)
        elsewhere: Address = pickle.loads(pickle.dumps(first))  # as a process of a seed has it
        another = json.loads((first / HOLDER).read_text()) | {"token": "another"}
        write_json(in_store(RUN) / HOLDER, another)  # as whoever takes over writes it
        for path in (first, elsewhere):
            with pytest.raises(RunFolderError, match="no longer held by this process"):
                write_json(path / "more.json", 2)
            with pytest.raises(RunFolderError, match="no longer held"):
                (path / "kept.json").unlink()
        time.sleep(0.2)  # several beats, none of which may take it back
    assert sorted(store.contents()) == [FILE, "run/kept.json"]
    assert json.loads(store.contents()[FILE])["token"] == "another"


def test_a_claim_whose_answer_was_lost_is_ones_own(store: Server) -> None:
    for seed in range(6):
        store.fail(Faults(dropped=0.2, lost=0.2, seed=seed))
        with held(in_store(RUN), QUICK._replace(beat=60)) as path:
            write_json(path / "one.json", 1)
    assert set(store.contents()) <= {FILE, "run/one.json"}


def test_a_missing_bucket_is_named(store: Server) -> None:
    with (
        pytest.raises(RunFolderError, match="s3://nobody/run: there is no such bucket"),
        held(in_store("s3://nobody/run")),
    ):
        pass


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
