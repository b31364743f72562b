"""Large sources are extracted in processes side by side, whatever the calling script looks like."""

import subprocess
import sys
from pathlib import Path

import pytest

from anamorph.corpora import corpus, from_folders
from commands import environment

SCRIPT = """
import sys
from pathlib import Path
from anamorph.corpora import from_folders
print(from_folders([("python", "train", Path(sys.argv[1]))], Path(sys.argv[2])).checksum)
"""


def test_a_script_without_a_main_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for repo in ("one", "two", "three"):
        (tmp_path / "py" / repo).mkdir(parents=True)
        text = "".join(f"def {repo}{i}(a):\n    b = a + {i}\n    return b\n\n\n" for i in range(9))
        filler = ("text" * 20 + "\n") * (corpus.SMALL // 160)
        (tmp_path / "py" / repo / "a.py").write_text(f'{text}x = """\n{filler}"""\n')
    done = subprocess.run(
        [sys.executable, "-", tmp_path / "py", tmp_path / "apart"],
        input=SCRIPT,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(corpus, "SMALL", 2**40)
    here = from_folders([("python", "train", tmp_path / "py")], tmp_path / "here")
    assert done.stdout == f"{here.checksum}\n"
    assert len(here.functions["python"]) == 27
