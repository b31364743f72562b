"""Works: the fixed groups of cells that are computed, stored and resumed whole.

How the sums of a cell round depends on what they are computed beside. What is computed together
therefore follows from the specification alone, and is done whole or not at all: so a run that was
killed and resumed equals one that was not, to the byte.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Any

import polars as pl

from anamorph.auditing.engine import attention_heads
from anamorph.errors import AnamorphError
from anamorph.faithfulness.measuring import CellKey
from anamorph.faithfulness.sums import CellSums, SumIndex
from anamorph.files import replacing
from anamorph.models.base import Model
from anamorph.runs.folder import Run
from anamorph.simplifications import Simplified, sites_of

PROXIES = 64  # in a work, at most: the model itself runs once for all of them


def plan(proxies: Sequence[Simplified], model: Model) -> list[tuple[Simplified, ...]]:
    """Which proxies are audited together on every split.

    Args:
        proxies: all of a specification.
        model: whose sites they stand at.

    Returns:
        every proxy once: by their first edited layer and the heads they are compared on, so that
        those that can run in one stack stand together, then in the order in which they were given.
    """
    sites = model.sites

    def place(proxy: Simplified) -> tuple[Any, ...]:
        edited = [site for _, some in sites_of(proxy, sites) for site in some]
        first = min((site.layer for site in edited), default=model.layers)
        return first, attention_heads(edited, first, sites)

    ordered = sorted(proxies, key=place)
    size = ceil(len(ordered) / max(1, ceil(len(ordered) / PROXIES)))
    return [tuple(ordered[i : i + size]) for i in range(0, len(ordered), max(1, size))]


@dataclass(frozen=True)
class Origin:
    """What the sums of a work come from; every part is a digest.

    Attributes:
        weights: of the model.
        simplifications: of what was fitted.
        data: of the split, as far as it was audited, and of the candidates.
        options: of whatever else sums depend on, such as when a cell stops.
    """

    weights: str
    simplifications: str
    data: str
    options: str


def write_work(path: Path, cells: Mapping[Simplified, CellSums], origin: Origin) -> None:
    """Write the sums of a work to one file that appears whole or not at all."""
    tables = [
        sums.table().select(pl.lit(str(proxy)).alias("proxy"), pl.all())
        for proxy, sums in cells.items()
    ]
    with replacing(path) as temporary:
        pl.concat(tables).write_parquet(
            temporary,
            compression="zstd",
            row_group_size=len(tables[0]),  # so that one proxy is read without the others
            metadata=asdict(origin),
        )


def check_work(path: Path, origin: Origin) -> None:
    """Whether a work that lies there comes from what it would be computed from now.

    Raises:
        AnamorphError: if it does not, or is damaged; names what differs.
    """
    try:
        found = pl.read_parquet_metadata(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise AnamorphError(
            f"Cannot read {path} ({error}); delete it, and the same command makes it again."
        ) from error
    different = [name for name, value in asdict(origin).items() if found.get(name) != value]
    if different:
        raise AnamorphError(
            f"{path} holds sums of other {' and '.join(different)} than there are now. Put back "
            "what it was computed from; or delete it, and the same command makes it again."
        )


class CellFiles(Mapping[CellKey, CellSums]):
    """The cells of a run, read from its works one at a time as they are asked for.

    Args:
        run: where they lie.
        works: the proxies of every work, as `plan` gives them.
        indexes: of every split.
    """

    def __init__(
        self,
        run: Run,
        works: Sequence[Sequence[Simplified]],
        indexes: Mapping[str, SumIndex],
    ) -> None:
        self.run, self.indexes = run, indexes
        self.places = {
            str(proxy): (number, place)
            for number, some in enumerate(works)
            for place, proxy in enumerate(some)
        }

    def __getitem__(self, key: CellKey) -> CellSums:
        seed, proxy, split = key
        number, place = self.places[proxy]
        path, index = self.run.work(seed, split, number), self.indexes[split]
        again = "Delete it, and the same command makes it again."
        try:
            rows = pl.scan_parquet(path, glob=False).slice(place * len(index), len(index)).collect()
        except (OSError, pl.exceptions.PolarsError) as error:
            raise AnamorphError(f"Cannot read the sums in {path} ({error}). {again}") from error
        if len(rows) != len(index) or "proxy" not in rows.columns or (rows["proxy"] != proxy).any():
            raise AnamorphError(f"{path} does not hold {len(index)} rows of {proxy}. {again}")
        return CellSums.of(rows.drop("proxy"), index, str(path))

    def __iter__(self) -> Iterator[CellKey]:
        for split in self.indexes:
            for proxy in self.places:
                for seed in self.run.spec["seeds"]:
                    yield seed, proxy, split

    def __len__(self) -> int:
        return len(self.indexes) * len(self.places) * len(self.run.spec["seeds"])


def digest(*parts: object) -> str:
    """A digest of some texts, numbers and mappings."""
    return sha256(repr(parts).encode()).hexdigest()[:32]


def digest_of_file(path: Path) -> str:
    """A digest of a file's bytes.

    Raises:
        AnamorphError: if it cannot be read.
    """
    found = sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                found.update(block)
    except OSError as error:
        raise AnamorphError(f"Cannot read {path}: {error.strerror}.") from error
    return found.hexdigest()[:32]
