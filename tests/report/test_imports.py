"""The report reads a run folder, and needs neither a model nor what runs one."""

import ast
import subprocess
import sys
from pathlib import Path

import anamorph

SOURCE = Path(anamorph.__file__).parent
ROOMS = {"analysis", "errors", "faithfulness", "files", "models", "progress", "report"}
ROOMS |= {"registered", "runs", "showing", "store", "tasks"}
HEAVY = ("torch", "sklearn", "scipy", "transformers")
# The rooms as they are, without the package's own face, which names models.
PROBE = """
import sys, types
package = types.ModuleType("anamorph")
package.__path__ = [sys.argv[1]]
sys.modules["anamorph"] = package
import anamorph.report.page
print(*sys.modules)
"""


def test_a_report_is_drawn_without_torch_and_without_the_engine() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, SOURCE], capture_output=True, text=True, check=True
    )
    names = done.stdout.split()
    ours = {name.split(".")[1] for name in names if name.startswith("anamorph.")}
    assert ours <= ROOMS
    assert not [name for name in names if name.split(".")[0] in HEAVY]


def test_claims_import_nothing_from_the_report() -> None:
    for file in (SOURCE / "paper").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("anamorph.report")
