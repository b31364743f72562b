"""What a task says of itself, and that it is asked for by name alone."""

import json
import subprocess
import sys
from dataclasses import replace

from anamorph.tasks import About, load_task, task_names
from commands import environment

SMALL = {"k": 3, "m": 4, "train": 200, "test": 20, "max_length": 62}


def test_what_is_said_of_dyck_speaks_of_its_own_facets_and_depth() -> None:
    task = load_task("dyck", **SMALL)
    about, facets = task.about, task.reference.facets
    assert about.facts == ("k = 3", "m = 4")
    assert set(about.labels) | set(about.borders) | {about.matched} <= set(facets)
    depth = task.train.facets["depth"]
    assert depth.names[depth.codes.max()] == about.borders["depth"] == "4"
    said = {choice["what"]: choice["choice"] for choice in about.choices}
    assert said["Longest sentence"].startswith("62 brackets")
    assert said["Unseen depth"].startswith("depth 5 to 8")


def test_a_run_keeps_all_but_the_choices() -> None:
    about = load_task("dyck", **SMALL).about
    kept = json.loads(json.dumps({"about": about.describe()}))
    assert about.averages.startswith("In Dyck")
    assert About.of(kept) == replace(about, choices=())
    assert About.of({}) == About()


def test_no_task_is_imported_before_it_is_asked_for() -> None:
    program = (
        "import sys; import anamorph.tasks; "
        "print([m for m in sys.modules if m.startswith('anamorph.tasks.code') or "
        "m.partition('.')[0] in ('tree_sitter', 'tokenizers', 'transformers', 'datasets')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment()
    )
    assert (found.stdout.strip(), found.stderr) == ("[]", "")
    assert {"code", "dyck", "text"} <= {*task_names()}
