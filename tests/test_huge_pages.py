import subprocess
import sys
from pathlib import Path

import pytest

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
LOOK = """
import re
import anamorph
import torch

x = torch.ones(2**25)
print(re.search(r"AnonHugePages: *(\\d+)", open("/proc/self/smaps_rollup").read())[1])
"""


@pytest.mark.skipif(
    not ENABLED.exists() or "[never]" in ENABLED.read_text(), reason="no huge pages on this machine"
)
def test_large_tensors_lie_in_huge_pages() -> None:
    found = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert int(found.stdout) > 2**16  # kB, of the 2^17 that the tensor takes
