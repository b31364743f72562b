"""The paper's claims C1–C10 as a study measures them: rule, direction, size and interval.

Each claim is a function of the tables alone, with a rule that was written down from what the paper
says. It *holds* or *does not hold* by that rule, is *not tested here* where the study lacks what it
needs, and *not testable here* where the model has not learnt its task; and it gives its numbers.
Source of the claims: Friedman et al. 2023, arXiv 2312.03656.

To add a claim of your own, write a `Claim` and name it in `CLAIMS`, behind the paper's, or offer a
list of them from a package of your own by the entry-point group `anamorph.claims`.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from anamorph.analysis.words import UNTESTABLE, UNTESTED, listing
from anamorph.errors import AnamorphError
from anamorph.paper import both, code, dyck
from anamorph.paper.tables import Claim, Finding, Tables, not_learnt
from anamorph.registered import Registered, registered

ENTRY_POINTS = "anamorph.claims"
TASKS = {"dyck": "Dyck languages", "code": "code completion"}
PAPER = sorted((*dyck.CLAIMS, *both.CLAIMS, *code.CLAIMS), key=lambda claim: int(claim.id[1:]))
CLAIMS: tuple[Claim, ...] = (*PAPER,)


def all_claims() -> list[Claim]:
    """The paper's claims, then those of installed packages, then those registered.

    Raises:
        AnamorphError: if what a package offers is not a list of claims with ids of their own.
    """
    claims = list(CLAIMS)
    installed = sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)
    offers: list[EntryPoint | Registered] = [*installed, *registered(ENTRY_POINTS)]
    for entry in offers:
        found = entry.load()
        for claim in found if isinstance(found, list | tuple) else [found]:
            if not isinstance(claim, Claim) or claim.id in {known.id for known in claims}:
                raise AnamorphError(
                    f"The entry point {entry.name!r} ({entry.value}) must be a list of Claims, "
                    "each with an id that is not taken; mend or uninstall the package that offers "
                    "it."
                )
            claims.append(claim)
    return claims


def measure(tables: Tables) -> list[dict[str, Any]]:
    """All claims: id, claim, rule, status, finding, numbers."""
    ignorant = not_learnt(tables)
    found = []
    for claim in all_claims():
        finding: Finding
        if tables.spec["task"]["name"] not in claim.tasks:
            about = listing([TASKS.get(task, task) for task in claim.tasks])
            finding = UNTESTED, f"The claim is about {about}; this study is of another task.", {}
        elif ignorant is not None:
            finding = UNTESTABLE, ignorant, {}
        else:
            finding = claim.judge(tables)
        status, text, numbers = finding
        row = {"id": claim.id, "claim": claim.text, "rule": claim.rule}
        found.append({**row, "status": status, "finding": text, "numbers": numbers})
    return found
