"""A folder of several studies that differ in what was varied: a run folder each, and `axis.json`.

`axis.json` holds `vary`, the values by the name of each setting that was varied, the axis first;
and `studies`, by the name of each run folder its own values of them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from anamorph.errors import RunFolderError
from anamorph.files import write_json
from anamorph.runs.folder import read_json
from anamorph.store import Address

AXIS = "axis.json"
TABLE, PAGE = "along.parquet", "report.html"


class Varied(NamedTuple):
    """What was varied, and in which run folders.

    Attributes:
        vary: the values of each setting, by its name, such as `training.steps`.
        studies: by the name of the run folder the value of each setting.
    """

    vary: dict[str, list[Any]]
    studies: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, folder: Address) -> "Varied":
        """What `axis.json` in a folder says.

        Raises:
            RunFolderError: if it is damaged.
        """
        said = read_json(folder / AXIS, dict)
        vary, studies = said.get("vary"), said.get("studies")
        if not (_full(vary, list) and _full(studies, dict)) or not all(
            Path(name).name == name and values.keys() == vary.keys()
            for name, values in studies.items()
        ):
            raise RunFolderError(
                f"{folder / AXIS} does not say what was varied and in which folders; it is "
                "damaged. Delete the folder, or give its runs themselves."
            )
        return cls(vary, studies)

    def write(self, folder: Address) -> None:
        """Write `axis.json`, unless the folder holds something else.

        Values may differ from those that are there: others can be added.

        Raises:
            RunFolderError: if other settings were varied in the folder, it holds other files, or it
                cannot be written to.
        """
        if (folder / AXIS).exists():
            there = list(Varied.read(folder).vary)
            if there != list(self.vary):
                raise RunFolderError(
                    f"{folder} holds studies along {', '.join(there)}, and this is along "
                    f"{', '.join(self.vary)}. Give another --out, or delete that folder."
                )
        elif folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise RunFolderError(
                f"{folder} exists and holds no {AXIS}; give an empty or new folder for the studies."
            )
        write_json(folder / AXIS, self._asdict())


def _full(table: Any, kind: type) -> TypeGuard[dict[str, Any]]:
    """Whether something is a table with entries, all of one kind."""
    return (
        isinstance(table, dict) and all(isinstance(x, kind) for x in table.values()) and bool(table)
    )


def is_varied(folder: Address) -> bool:
    """Whether a folder holds several studies along an axis."""
    return (folder / AXIS).exists()


def setting_text(value: object) -> str:
    """A value of a setting as it is shown: 20000 becomes "20,000"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"


def settings_text(values: Mapping[str, object]) -> str:
    """Several settings in words: "model.width 16, task.k 4"; "" for none."""
    return ", ".join(f"{key} {setting_text(value)}" for key, value in values.items())
