"""What a notebook and a terminal show of a run."""

from anamorph.analysis.findings import Findings
from anamorph.analysis.summary import evidence, headline, notices
from anamorph.errors import AnamorphError
from anamorph.faithfulness.matrix import Matrix
from anamorph.runs.folder import Run
from anamorph.runs.underway import underway
from anamorph.showing import Card


def card(run: Run) -> Card:
    """What was found, the verdicts, on what evidence, and where the rest is.

    Of a run that is not finished, or is damaged, it says that.
    """
    what = f"Run {run.path} ({run.spec.get('study', 'unnamed')})"
    going = underway(run)
    if going and {"results.parquet", "gaps.parquet"} & {*going.missing}:
        asked = [("simplify", "; ".join(map(str, run.spec.get("simplify", ()))))]
        asked.append(("models", f"{len(run.seeds)}"))
        return Card(what, asked, notes=going.sentences)
    try:
        found = Findings(run.path, run.spec)
        lines = [headline(found).sentence, *(f"{n.title}. {n.text}" for n in notices(found))]
        notes = [evidence(found).sentence]
        matrix = Matrix.of(run.results, run.gaps)
    except AnamorphError as error:  # a run must be shown even so
        return Card(what, lines=[f"Its tables cannot be read. {error}"])
    tables = ".results, .gaps and .contrasts are its tables, .plot has its charts"
    report = f"; the report: {run.report}" if run.report.exists() else ""
    return matrix.card(what, *notes, f"{tables}{report}", lines=lines)
