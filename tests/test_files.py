"""Files appear whole or not at all, also when the disk is full or the folder is none.

Tests may run as root, whom permissions do not stop: so a regular file stands where a folder is
needed, and a limit on the size of files (`RLIMIT_FSIZE`) stands for a full disk.
"""

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from anamorph.errors import AnamorphError
from anamorph.files import replacing, write_json
from anamorph.models.weights import read_weights, write_weights


@contextmanager
def full_disk(room: int = 4096) -> Iterator[None]:
    """No file may grow beyond `room` bytes: the write that does so fails in the kernel."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_file_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file.txt"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent, "a rename is atomic only within a file system"
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_writer_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_existing_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("before")
    with path.open() as reader, replacing(path) as temporary:
        temporary.write_text("after")
        assert path.read_text() == "before"
        assert reader.read() == "before", "a reader keeps what it has opened"
    assert path.read_text() == "after"


def test_two_files_in_one_folder_do_not_meet(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.txt") as first, replacing(tmp_path / "b.txt") as second:
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "a.txt").read_text() == "1"
    assert (tmp_path / "b.txt").read_text() == "2"


@pytest.mark.parametrize("below", ["run.txt", "deep/er/run.txt"])
def test_a_folder_that_cannot_be_is_an_error(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / below
    with pytest.raises(AnamorphError) as error, replacing(path):
        pytest.fail("nothing should be written")  # pragma: no cover
    assert str(path) in str(error.value) and "folder that is writable" in str(error.value)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file.txt" / "inside").mkdir(parents=True)
    refused = pytest.raises(AnamorphError, match=r"Cannot write .*file\.txt")
    with refused, replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("x")
    assert [f.name for f in tmp_path.iterdir()] == ["file.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refused = pytest.raises(AnamorphError, match="Permission denied")
    with refused, replacing(tmp_path / "file.txt") as temporary:
        temporary.write_text("x")


def text(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("x" * 100_000)


def table(path: Path) -> None:
    with replacing(path) as temporary:
        pl.DataFrame({"x": torch.rand(50_000).numpy()}).write_parquet(temporary)


def weights(path: Path) -> None:
    write_weights(path, {"x": torch.rand(50_000)}, {})


@pytest.mark.parametrize("write", [text, table, weights])
def test_a_full_disk_is_an_error_that_leaves_what_was(write: object, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    assert callable(write)
    with full_disk(), pytest.raises(AnamorphError, match=r"Cannot write .* has room"):
        write(path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write(path)  # and with room it works
    assert path.stat().st_size > 50_000


def test_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    tensors = {
        "a": torch.randn(3, 4, dtype=torch.float64),
        "b.c": torch.tensor(2.5),
        "half": torch.randn(5).bfloat16(),
        "turned": torch.arange(6).reshape(2, 3).T,  # not contiguous
        "none": torch.zeros(0, 3),
    }
    metadata = {"text": "“quotes” and <tags>", "nested": {"list": [1, 2.5, None, True]}}
    write_weights(tmp_path / "w", tensors, metadata)
    found, about = read_weights(tmp_path / "w")
    assert about == metadata
    assert found.keys() == tensors.keys()
    for name, x in tensors.items():
        assert found[name].dtype == x.dtype and torch.equal(found[name], x)


@pytest.mark.parametrize("left", [0, 4, 20, -1])
def test_truncated_weights_are_an_error(left: int, tmp_path: Path) -> None:
    write_weights(tmp_path / "w", {"x": torch.rand(100)}, {"a": 1})
    whole = (tmp_path / "w").read_bytes()
    (tmp_path / "w").write_bytes(whole[:left])
    with pytest.raises(AnamorphError, match=r"Cannot read .* damaged or of another kind"):
        read_weights(tmp_path / "w")


def test_the_same_weights_are_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(2), "b": torch.zeros(3)}
    metadata = {name: name for name in "abcdefgh"}
    for place in range(8):
        write_weights(tmp_path / str(place), tensors, metadata)
    assert len({(tmp_path / str(place)).read_bytes() for place in range(8)}) == 1
    assert read_weights(tmp_path / "0")[1] == metadata


def test_metadata_with_an_entry_for_each_value_can_be_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "old", {"layers": "2", "name": '"x"'})
    assert read_weights(tmp_path / "old")[1] == {"layers": 2, "name": "x"}


def test_json_keeps_names_of_files_that_are_no_text(tmp_path: Path) -> None:
    said = {"file": os.fsdecode(b"r\xff"), "word": "é"}
    write_json(tmp_path / "a.json", said)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == said
    assert "é" in (tmp_path / "a.json").read_text("utf-8")
