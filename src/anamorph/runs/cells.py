"""The sums of an audit in a run folder: one file a work, which says what its sums come from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from io import BytesIO
from itertools import product

import polars as pl

from anamorph.auditing.works import Work
from anamorph.errors import RunFolderError
from anamorph.faithfulness.measuring import CellKey
from anamorph.faithfulness.sums import CellSums, SumIndex
from anamorph.files import are_there, at_hand, of_each, parquet_metadata
from anamorph.runs.folder import Run
from anamorph.store import Address

HALVED = "halved"  # in the metadata of a work's file


@dataclass(frozen=True)
class Origin:
    """What the sums of a work come from; every part is a digest.

    Attributes:
        weights: of the model.
        simplifications: of what was fitted, or of another model's weights.
        data: of the split, as far as it was audited, and of the candidates.
        options: of whatever else sums depend on, such as when a cell stops.
    """

    weights: str
    simplifications: str
    data: str
    options: str


def work_file(cells: Mapping[str, CellSums], origin: Origin) -> bytes:
    """The content of a work's file: its sums, by spec string, and what they come from."""
    tables = [x.table().select(pl.lit(name).alias("proxy"), pl.all()) for name, x in cells.items()]
    content = BytesIO()
    pl.concat(tables).write_parquet(
        content,
        compression="zstd",
        row_group_size=len(tables[0]),  # so that one proxy is read without the others
        metadata=asdict(origin) | {HALVED: str(sum(x.halved for x in cells.values()))},
    )
    return content.getvalue()


def halved(path: Address) -> int:
    """How many cells of a work did not fit the memory whole, and were computed in parts."""
    return int(parquet_metadata(path).get(HALVED, 0))


def check_work(path: Address, origin: Origin) -> None:
    """Whether a work that lies there comes from what it would be computed from now.

    Raises:
        RunFolderError: if it does not, or is damaged; names what differs.
    """
    try:
        found = parquet_metadata(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunFolderError(
            f"Cannot read {path} ({error}); delete it, and the same command makes it again."
        ) from error
    different = [name for name, value in asdict(origin).items() if found.get(name) != value]
    if different:
        raise RunFolderError(
            f"{path} holds sums of other {' and '.join(different)} than there are now. Put back "
            "what it was computed from; or delete it, and the same command makes it again."
        )


def check_works(origins: Mapping[Address, Origin]) -> None:
    """As `check_work`, of many; those in a store are read side by side."""
    of_each(lambda path: check_work(path, origins[path]), origins)


def require_works(run: Run, works: Sequence[Work]) -> None:
    """Make sure that all works of all models are there, each asked for by its name.

    Raises:
        RunFolderError: if one is missing; names it.
    """
    paths = [run.work(seed, work.split, work.number) for seed in run.seeds for work in works]
    lost = [path for path, there in zip(paths, are_there(paths), strict=True) if not there]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise RunFolderError(
            f"{lost[0]}{more}, of works that were done, is missing: it was deleted or lost. The "
            "same command makes it again."
        )


class CellFiles(Mapping[CellKey, CellSums]):
    """The cells of a run, read from its works one at a time as they are asked for.

    Args:
        run: where they lie.
        works: of its plan.
        indexes: of every split.
    """

    def __init__(self, run: Run, works: Sequence[Work], indexes: Mapping[str, SumIndex]) -> None:
        self.run, self.indexes = run, indexes
        self.places = {
            proxy: (work.number, place)
            for work in works
            for place, proxy in enumerate(work.proxies)
        }

    def __getitem__(self, key: CellKey) -> CellSums:
        seed, proxy, split = key
        number, place = self.places[proxy]
        path, index = self.run.work(seed, split, number), self.indexes[split]
        again = "Delete it, and the same command makes it again."
        try:
            table = pl.scan_parquet(self.run.copies.of(path), glob=False)
            rows = table.slice(place * len(index), len(index)).collect()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise RunFolderError(f"Cannot read the sums in {path} ({error}). {again}") from error
        if len(rows) != len(index) or "proxy" not in rows.columns or (rows["proxy"] != proxy).any():
            raise RunFolderError(f"{path} does not hold {len(index)} rows of {proxy}. {again}")
        return CellSums.of(rows.drop("proxy"), index, str(path))

    def __iter__(self) -> Iterator[CellKey]:
        for split, proxy, seed in product(self.indexes, self.places, self.run.seeds):
            yield seed, proxy, split

    def __len__(self) -> int:
        return len(self.indexes) * len(self.places) * len(self.run.seeds)


def digest(*parts: object) -> str:
    """A digest of some texts, numbers and mappings."""
    return sha256(repr(parts).encode()).hexdigest()[:32]


def digest_of_file(path: Address) -> str:
    """A digest of a file's bytes.

    Raises:
        RunFolderError: if it cannot be read.
    """
    try:
        with at_hand(path) as at, at.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()[:32]
    except OSError as error:
        raise RunFolderError(f"Cannot read {path}: {error.strerror}.") from error
