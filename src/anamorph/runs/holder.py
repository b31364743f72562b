"""Who works in a run folder: told beside the lock that it holds."""

import json
import os
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from anamorph.store import Address, StorePath

LOCK, HOLDER = ".lock", ".holder.json"
STALE = 120.0  # seconds without a sign of life, after which a holder of a folder in a store is dead
LONGEST = 200  # letters of a command that are told


class Holder(NamedTuple):
    """A process that works in a run folder, or did until it was killed.

    Attributes:
        process: its number.
        host: the name of its machine.
        since: when it began, in ISO 8601.
        command: what was called.
    """

    process: int
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        return f"process {self.process} on {self.host} since {self.since} ({self.command})"

    @classmethod
    def this(cls) -> "Holder":
        """This process."""
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        name = Path(sys.argv[0])
        # Arguments of other programs are not for everybody who reads the folder.
        known = name.stem == "anamorph" or name.parts[-2:] == ("anamorph", "__main__.py")
        command = " ".join([name.name, *(sys.argv[1:] if known else ())])
        command = command if len(command) <= LONGEST else f"{command[:LONGEST]} …"
        return cls(os.getpid(), socket.gethostname(), since, command)

    @classmethod
    def read(cls, folder: Address) -> "Holder | None":
        """Who says that it works in a run folder; None if nobody does."""
        try:
            said = json.loads((folder / HOLDER).read_text("utf-8"))
            return cls(*(said[name] for name in cls._fields))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def works(self, folder: Address) -> bool | None:
        """Whether it still holds the folder; None if that cannot be told from here.

        The system lets go of a lock when its process ends, however it ends. Not every file system
        tells one machine of the locks of another. In a store, a holder works that gave a sign of
        life a short while ago; that another does not cannot be told without the store's clock.
        """
        if isinstance(folder, StorePath):
            return _lives(folder / HOLDER)
        lock = FileLock(folder / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return True
        except OSError:  # as in a folder that may only be read
            return None
        lock.release()
        return False if self.host == socket.gethostname() else None


def _lives(file: StorePath) -> bool | None:
    try:
        then: datetime = file.ask("look for", lambda fs: fs.modified(file.key))
    except FileNotFoundError:
        return False
    return True if (datetime.now(UTC) - then).total_seconds() < STALE else None
