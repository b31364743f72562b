import subprocess
import sys
from pathlib import Path

import pytest

from commands import environment

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LOOK = """
import re
import torch
from anamorph import cli

def look():
    x = torch.ones(2**25)
    print(re.search(r"AnonHugePages: *(\\d+)", open("/proc/self/smaps_rollup").read())[1])

"""


@pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="no huge pages on this machine"
)
@pytest.mark.parametrize("start", ["cli.app = look; cli.main()", "look()"])
def test_large_tensors_of_the_command_lie_in_huge_pages(start: str) -> None:
    """And who imports the package is left to choose."""
    found = subprocess.run(
        [sys.executable, "-c", LOOK + start],
        env={k: v for k, v in environment().items() if k != "THP_MEM_ALLOC_ENABLE"},
        capture_output=True,
        text=True,
        check=True,
    )
    # kB, of the 2^17 that the tensor takes
    assert (int(found.stdout) > 2**16) == ("main" in start) or "[always]" in ENABLED.read_text()
