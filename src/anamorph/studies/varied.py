"""Several studies that differ in one setting, or a few: the gap along an axis, on one page.

Each study has a run folder of its own within that of all. They are independent of each other: one
that fails is named at the end, and the others go on.
"""

import socket
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from anamorph.analysis.along import Along
from anamorph.auditing.local import Engine, Failed, Job, Needs
from anamorph.errors import AnamorphError
from anamorph.files import file_name, write_table
from anamorph.progress import Watch, ignore, within
from anamorph.registered import Plugin, loaded_plugins
from anamorph.report.along import along, write_page
from anamorph.runs.folder import Run
from anamorph.runs.varied import AXIS, PAGE, TABLE, Varied
from anamorph.store import Address, address_of
from anamorph.studies.plugins import load_again
from anamorph.studies.specification import AgainSpec, GivenSpec, StudySpec
from anamorph.studies.study import audit_files, audit_study, run_study

Spec = StudySpec | GivenSpec | AgainSpec


class Outcome(NamedTuple):
    """What became of a study.

    Attributes:
        name: of its run folder.
        error: why it failed; None if it is finished.
    """

    name: str
    error: str | None


class Studies(NamedTuple):
    """What became of all.

    Attributes:
        runs: those that are finished, by the names of their folders.
        failed: why the others are not, likewise.
        found: what the finished ones show along the axis; None if none is finished.
    """

    runs: dict[str, Run]
    failed: dict[str, str]
    found: Along | None


@dataclass(frozen=True)
class _Study:
    """One of the studies, to be done here or elsewhere.

    Attributes:
        spec: what to do.
        out: its run folder.
        how: other arguments of `run_study`.
        plugins: that are loaded.
    """

    spec: Spec
    out: Address
    how: Mapping[str, Any]
    plugins: Sequence[Plugin]

    def __call__(self, watch: Watch) -> Outcome:
        """Do it; whatever goes wrong is told, so that the others go on."""
        name = self.out.name
        try:
            return self.done(watch)
        except AnamorphError as error:
            return Outcome(name, str(error))
        except Exception as error:  # such as that a large model does not fit the memory
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(last.filename).name}, line {last.lineno}"
            return Outcome(name, f"{type(error).__name__}: {error} ({where})")

    def done(self, watch: Watch) -> Outcome:
        """Do it; errors as of `run_study`."""
        load_again(self.plugins)
        self._require_seen()
        _do(self.spec, self.out, self.how, within(self.out.name, watch))
        return Outcome(self.out.name, None)

    def _require_seen(self) -> None:
        if not (self.out.parent / AXIS).exists():
            raise AnamorphError(
                f"{socket.gethostname()} does not see {self.out.parent}, into which the studies "
                "are written. Give an --out that all nodes see, such as a folder that they share "
                "or an address like s3://bucket/studies; or leave --vary out, and do them one by "
                "one."
            )

    @property
    def needs(self) -> Needs:
        """Threads of torch, on which some numbers depend by rounding."""
        threads = self.spec.threads if isinstance(self.spec, StudySpec) else torch.get_num_threads()
        return Needs(threads)


def _one_by_one(studies: Sequence[_Study], watch: Watch) -> Iterator[Outcome]:
    """Do studies in this process."""
    return (study(watch) for study in studies)


def _by(engine: Engine, studies: Sequence[_Study], watch: Watch) -> Iterator[Outcome]:
    """Have an engine do studies, each as one job."""
    jobs = [
        Job(study.out.name, partial(study.done, ignore), study.needs, twice=False)
        for study in studies
    ]
    with engine:
        for job, result in engine.carry("studies", jobs, watch):
            yield Outcome(job.name, result.reasons[-1]) if isinstance(result, Failed) else result


def combinations(vary: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """What the studies are: by the name of the run folder the value of each setting.

    Args:
        vary: the values of each setting, by its name, such as `training.steps`.

    Returns:
        every combination, the last setting changing fastest; of `training.steps` and `model.width`
        such as `steps-100_width-16`.

    Raises:
        AnamorphError: if a setting has fewer than two values, or one twice.
    """
    for key, values in vary.items():
        texts = [repr(value) for value in values]
        if len(values) < 2:
            raise AnamorphError(f"--vary {key} needs two values or more; got {texts}.")
        if twice := [text for text in texts if texts.count(text) > 1]:
            raise AnamorphError(f"--vary {key} has {twice[0]} twice; give each value once.")
    named = [[(key, value, label) for value, label in _labels(vary[key])] for key in vary]
    found = {}
    for parts in product(*named):
        name = "_".join(file_name(f"{key.rpartition('.')[2]}-{x}") for key, _, x in parts)
        found[name] = {key: value for key, value, _ in parts}
    return found


def _labels(values: Sequence[Any]) -> list[tuple[Any, str]]:
    """Values as names have them: paths by their last part, unless two have the same."""
    short = [Path(value).name if isinstance(value, str) else str(value) for value in values]
    whole = len(set(short)) < len(short)
    return [
        (x, str(x) if whole or not name else name) for x, name in zip(values, short, strict=True)
    ]


def run_varied(
    vary: Mapping[str, Sequence[Any]],
    specs: Mapping[str, Spec],
    out: Address | str,
    *,
    preset: str | None = None,
    workers: int | None = 1,
    figures: Sequence[str] | None = None,
    watch: Watch = ignore,
    engine: Engine | None = None,
) -> Studies:
    """Do studies along an axis, or what is left of them, and write their page.

    Args:
        vary: the values of each setting, the axis first.
        specs: what to do, by the names that `combinations` gives.
        out: a folder; each run folder lies in it, beside `axis.json`, `along.parquet` (the numbers
            of all) and `report.html`.
        preset: as of `run_study`, which does what trains models.
        workers: likewise.
        figures: likewise; those of each run.
        watch: told of progress.
        engine: who does the studies, each as one job; this process one after the other if None.

    Raises:
        RunFolderError: if `out` holds something else, or cannot be written to.
    """
    out = address_of(out).absolute()
    Varied({key: list(x) for key, x in vary.items()}, combinations(vary)).write(out)
    workers = workers if engine is None else 1
    how: dict[str, Any] = {"preset": preset, "workers": workers, "figures": figures}
    plugins = loaded_plugins()
    studies = [_Study(spec, out / name, how, plugins) for name, spec in specs.items()]
    carried = _one_by_one(studies, watch) if engine is None else _by(engine, studies, watch)
    ended = {outcome.name: outcome.error for outcome in carried}
    failed = {name: error for name in specs if (error := ended[name]) is not None}
    done = [out / name for name in specs if name not in failed]
    if not done:
        return Studies({}, failed, None)
    found = along([out])
    write_table(out / TABLE, found.table)
    write_page(found, out / PAGE)
    return Studies(
        {point.side.run.path.name: point.side.run for point in found.axis.points}, failed, found
    )


def _do(spec: Spec, out: Address, how: Mapping[str, Any], watch: Watch) -> None:
    figures = how["figures"]
    match spec:
        case StudySpec():
            run_study(spec, out, **how, watch=watch)
        case GivenSpec():
            audit_files(spec, out, figures=figures, watch=watch)
        case AgainSpec():
            audit_study(
                spec.run,
                spec.simplify,
                out,
                device=spec.device,
                matmul=spec.matmul,
                workers=how["workers"],
                figures=figures,
                watch=watch,
            )


def refuse_failed(studies: Studies) -> None:
    """Name the studies that failed.

    Raises:
        AnamorphError: if any did; what to do stands in it.
    """
    if not studies.failed:
        return
    count = len(studies.failed) + len(studies.runs)
    texts = "\n".join(f"{name}: {error}" for name, error in studies.failed.items())
    raise AnamorphError(
        f"{len(studies.failed)} of {count} studies failed; the same command tries them again.\n"
        f"{texts}"
    )
