"""The page on CI and the workflow that is shipped: what they say can be given."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from anamorph.analysis.gates import CHANGED, DIFFERENCE, VERDICTS
from anamorph.cli.verbs import app

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/ci.md").read_text("utf-8")
WORKFLOW = ROOT / "examples/github-actions.yml"


def workflow() -> dict[Any, Any]:
    found = yaml.safe_load(WORKFLOW.read_text("utf-8"))
    assert isinstance(found, dict)
    return found


def steps() -> list[dict[str, Any]]:
    (job,) = workflow()["jobs"].values()
    found = job["steps"]
    assert isinstance(found, list)
    return found


def commands() -> Iterator[list[str]]:
    scripts = [step["run"] for step in steps() if "run" in step]
    scripts += re.findall(r"^```bash\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    for line in "\n".join(scripts).splitlines():
        if "anamorph " in line and "pip" not in line:
            words = shlex.split(line, comments=True)
            stop = next((n for n, word in enumerate(words) if word in (">", "||")), len(words))
            yield words[words.index("anamorph") + 1 : stop]


@pytest.mark.parametrize("words", [*commands()], ids=" ".join)
def test_a_command_has_the_options_that_it_is_given(words: list[str]) -> None:
    command: Any = get_command(app)
    verb = command.commands[words[0]]
    context = verb.make_context(words[0], words[1:])
    for word in context.params.get("fail_on") or ():
        assert word in {*VERDICTS, DIFFERENCE, CHANGED}


def test_the_page_has_the_workflow() -> None:
    assert f"```yaml\n{WORKFLOW.read_text('utf-8')}```\n" in PAGE


def test_the_workflow_audits_compares_and_comments() -> None:
    found = workflow()
    triggers = found[True]  # YAML 1.1 takes `on` for a truth value
    assert {"push", "pull_request"} == set(triggers)
    assert found["env"]["HF_HUB_OFFLINE"] == "1"
    runs = "\n".join(step.get("run", "") for step in steps())
    for part in ("anamorph audit", "anamorph compare", "anamorph show", "gh pr comment"):
        assert part in runs
    for step in steps():
        assert ("run" in step) != ("uses" in step)
        # names of branches and the like are never put into a script
        assert "${{" not in step.get("run", "")


def test_the_page_has_all_words_of_gates() -> None:
    for word in (*VERDICTS, DIFFERENCE, CHANGED):
        assert f"`{word}`" in PAGE or f"`--fail-on {word}`" in PAGE, word
    for code in (0, 1, 2, 3):
        assert f"\n| {code} | " in PAGE
