"""How many processors there are for this process, and giving back what is changed for a while."""

import os
import warnings
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from anamorph.machine.process import as_found, processors
from anamorph.machine.threads import torch_threads


def groups(root: Path, line: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line + "\n")
    for name, content in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {"cpu.max": "400000 100000"}, 4),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {}, 64),
        # systemd's CPUQuota=300% of a slice, and less of a service in it
        ("0::/user.slice/job.scope", {"user.slice/cpu.max": "300000 100000"}, 3),
        (
            "0::/user.slice/job.scope",
            {
                "user.slice/cpu.max": "300000 100000",
                "user.slice/job.scope/cpu.max": "20000 10000",
            },
            2,
        ),
        # version 1, on the host and in a container, where the path is the host's
        (
            "4:cpu,cpuacct:/a",
            {
                "cpu,cpuacct/a/cpu.cfs_quota_us": "600000",
                "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
            },
            6,
        ),
        (
            "4:cpu:/docker/1f",
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("7:memory:/a", {"memory/a/cpu.max": "100000 100000"}, 64),
        ("0::/", {"cpu.max": "nonsense"}, 64),
    ],
)
def test_a_quota_of_control_groups(
    line: str,
    files: dict[str, str],
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert processors(groups(tmp_path, line, files)) == expected


def test_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        assert processors(tmp_path) == processors() == 1
    finally:
        os.sched_setaffinity(0, mine)
    assert processors(tmp_path) == len(mine)
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS, Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert processors(tmp_path) == 12


def test_threads_are_given_back() -> None:
    def of_numpy() -> set[int]:
        return {lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"}

    before = torch.get_num_threads()
    with threadpool_limits(2, user_api="blas"):
        with pytest.raises(KeyError), torch_threads(before + 1):
            assert torch.get_num_threads() == before + 1
            assert of_numpy() == {1}
            raise KeyError
        assert torch.get_num_threads() == before
        assert of_numpy() == {2}


def test_environment_and_warnings_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "1")
    monkeypatch.setenv("CHANGED", "1")
    monkeypatch.setenv("REMOVED", "1")
    monkeypatch.delenv("ADDED", raising=False)
    before, filters, show = dict(os.environ), list(warnings.filters), warnings.showwarning
    with pytest.raises(KeyError), as_found():
        os.environ["CHANGED"] = os.environ["ADDED"] = "2"
        del os.environ["REMOVED"]
        warnings.simplefilter("ignore")
        warnings.showwarning = print  # type: ignore[assignment]
        raise KeyError
    assert dict(os.environ) == before
    assert warnings.filters == filters
    assert warnings.showwarning is show
