"""Jobs on a Ray cluster of two nodes on this machine: nothing is lost, and nothing done twice."""

import builtins
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import anamorph as am
import far_jobs
from anamorph.auditing import dispatch
from anamorph.auditing.local import TRIES, Failed, Job, Lasting, Needs
from anamorph.auditing.ray import RayEngine
from anamorph.progress import Event, ignore
from commands import environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    before = dict(os.environ)
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    os.environ["PYTHONPATH"] = far_jobs.PATH
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, object_store_memory=100_000_000)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def engine(cluster: Any) -> Iterator[RayEngine]:
    with RayEngine(cluster.address, patience=1.0) as made:
        yield made


def carried(engine: RayEngine, *jobs: Job) -> dict[str, Any]:
    return {job.name: result for job, result in engine.carry("a step", jobs, ignore)}


def test_a_process_is_of_one_cluster(engine: RayEngine, cluster: Any) -> None:
    for address in (None, "auto", cluster.address):
        with RayEngine(address) as other:
            assert carried(other, Job("a", partial(int, 3))) == {"a": 3}
    with pytest.raises(am.AnamorphError, match=f"cluster {cluster.address}, and .* 127.0.0.1:1"):
        RayEngine("127.0.0.1:1").__enter__()
    assert carried(engine, Job("a", partial(int, 3))) == {"a": 3}


def test_every_job_is_done_once(engine: RayEngine) -> None:
    jobs = [Job(f"{number}", partial(divmod, number, 7)) for number in range(200)]
    events = list[Event]()
    done = [(job.name, result) for job, result in engine.carry("a step", jobs, events.append)]
    assert sorted(done) == sorted((f"{number}", divmod(number, 7)) for number in range(200))
    assert [event.done for event in events if event.done] == sorted(
        event.done for event in events if event.done
    )
    assert events[-1][:3] == ("a step", 200, 200)
    assert "3 nodes, 2 processors" in events[-1].note


def test_a_worker_that_dies_is_no_failure(engine: RayEngine, tmp_path: Path) -> None:
    assert carried(engine, Job("a", partial(far_jobs.dies_once, tmp_path))) == {"a": "alive"}


def test_five_failures_are_one_and_the_rest_goes_on(engine: RayEngine, tmp_path: Path) -> None:
    done = carried(
        engine, Job("bad", partial(far_jobs.fails, tmp_path)), Job("good", partial(int, 3))
    )
    assert done["good"] == 3
    failed = done["bad"]
    assert isinstance(failed, Failed) and len(failed.reasons) == TRIES == 5
    assert failed.reasons[-1].startswith("RuntimeError: try 4 (far_jobs.py:")


def test_what_would_fail_again_is_not_tried_again(engine: RayEngine, tmp_path: Path) -> None:
    failed = carried(engine, Job("bad", partial(far_jobs.is_wrong, tmp_path)))["bad"]
    assert failed.reasons == ["The number is not finite."]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_stops_every_job_ends_all(engine: RayEngine, tmp_path: Path) -> None:
    jobs = [Job(f"{n}", partial(far_jobs.is_another, tmp_path)) for n in range(50)]
    with pytest.raises(Lasting, match=r"^On the node .*: the model is another here\.$"):
        list(engine.carry("a step", jobs, ignore))
    assert len(list(tmp_path.iterdir())) < 50


def test_a_slow_job_is_begun_a_second_time(engine: RayEngine, tmp_path: Path) -> None:
    others = [Job(f"{number}", partial(int, number)) for number in range(10)]
    done = carried(engine, Job("slow", partial(far_jobs.slow_once, tmp_path)), *others)
    assert done["slow"] < 60
    assert len(done) == 11


def test_a_slow_job_that_is_wrong_ends(engine: RayEngine, tmp_path: Path) -> None:
    others = [Job(f"{number}", partial(int, number)) for number in range(6)]
    done = carried(engine, Job("slow", partial(far_jobs.slow_and_wrong, tmp_path)), *others)
    assert done["slow"].reasons[-1] == "The number is not finite."
    assert len(list(tmp_path.iterdir())) <= 2


def test_what_may_not_be_under_way_twice_is_not(engine: RayEngine, tmp_path: Path) -> None:
    call = partial(far_jobs.slow_and_wrong, tmp_path)
    others = [Job(f"{number}", partial(int, number)) for number in range(6)]
    done = carried(engine, Job("slow", call, twice=False), *others)
    assert done["slow"].reasons == ["The number is not finite."]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_in_use_is_tried_again_later(
    engine: RayEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "PAUSES", (0.1, 0.1, 0.1, 0.1))
    assert carried(engine, Job("a", partial(far_jobs.locked_twice, tmp_path))) == {"a": "free"}


def test_an_error_without_a_word_has_its_name(engine: RayEngine, tmp_path: Path) -> None:
    failed = carried(engine, Job("a", partial(far_jobs.without_a_word, tmp_path)))["a"]
    assert len(failed.reasons) == TRIES and failed.reasons[0].startswith("MemoryError")


def test_warnings_of_jobs_are_repeated_once(engine: RayEngine) -> None:
    jobs = [Job(f"{number}", partial(far_jobs.warns, number)) for number in range(4)]
    with pytest.warns(UserWarning) as found:
        assert carried(engine, *jobs) == {f"{number}": number for number in range(4)}
    ours = [str(w.message) for w in found if "sequences of 'train'" in str(w.message)]
    assert len(ours) == 1 and not any("another package" in str(w.message) for w in found)


def test_a_gpu_that_nobody_has_is_told(engine: RayEngine) -> None:
    with pytest.raises(Lasting, match="no node of the cluster has one"):
        carried(engine, Job("a", partial(int, 3), Needs(1, 0.25)))


def test_jobs_ask_for_what_is_left(cluster: Any, engine: RayEngine) -> None:
    node = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    jobs = [Job(f"{n}", partial(time.sleep, 0.3), Needs(2)) for n in range(12)]
    done = 0
    for _ in engine.carry("a step", jobs, ignore):
        done += 1
        if done == 2:
            cluster.remove_node(node, allow_graceful=False)
    assert done == 12


def test_results_may_be_more_than_the_store_holds(engine: RayEngine) -> None:
    jobs = [Job(f"{n}", partial(far_jobs.heavy, n)) for n in range(16)]  # 320 of 200 MB
    done = carried(engine, *jobs)
    assert {name: (result[0], len(result)) for name, result in done.items()} == {
        f"{n}": (n, 20_000_000) for n in range(16)
    }


def test_shared_weights_are_read_where_they_lie(engine: RayEngine) -> None:
    shared = engine.share(nn.Parameter(torch.zeros(500, 1000)))
    assert carried(engine, Job("a", partial(far_jobs.read_only, shared))) == {"a": (500_000, True)}


def test_every_node_makes_an_object_once(engine: RayEngine, tmp_path: Path) -> None:
    shared = engine.share_made(partial(far_jobs.noted, tmp_path), 7)
    assert len(list(tmp_path.iterdir())) == 2
    assert carried(engine, Job("a", shared.get))["a"] in (0, 1)
    elsewhere = engine.share_made(partial(dict.get, {}, "a"), 7)  # it is on no node: it travels
    assert carried(engine, Job("a", elsewhere.get)) == {"a": 7}


def test_a_node_may_be_killed(cluster: Any, engine: RayEngine, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1)
    jobs = [Job(f"{n}", partial(time.sleep, 0.05)) for n in range(100)]
    done = 0
    for _, result in engine.carry("a step", jobs, ignore):
        assert result is None
        done += 1
        if done == 20:
            cluster.remove_node(node, allow_graceful=False)
    assert done == 100


def test_without_ray_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name == "ray":
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(am.AnamorphError, match=r"pip install 'anamorph\[ray\]'"):
        RayEngine()


def test_a_cluster_that_is_not_there_is_told() -> None:
    address = "127.0.0.1:1"
    command = f"from anamorph.auditing.ray import RayEngine; RayEngine('{address}').__enter__()"
    done = subprocess.run(
        [sys.executable, "-c", command], env=environment(), capture_output=True, text=True
    )
    assert f"AnamorphError: Cannot connect to the Ray cluster {address}" in done.stderr
