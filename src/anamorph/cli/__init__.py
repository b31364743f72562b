"""The command line: one file a verb, no logic."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

from rich.console import Console
from rich.text import Text

from anamorph.cli.layout import wrapped
from anamorph.cli.verbs import app
from anamorph.errors import AnamorphError, RunFolderError
from anamorph.machine.process import as_found

GO_ON = ("run", "train", "audit")  # verbs that keep what they have done
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"


class _Stopped(BaseException):
    """Ctrl-C, or a signal to end; no library on the way takes it for its own."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def main() -> None:
    """Run the command line; an error ends in one paragraph and an exit code, see docs/ci.md."""
    with _huge_pages(), as_found(), _stoppable():
        warnings.showwarning = _warn
        try:
            app()
        except AnamorphError as error:
            _say("[bold red]Error:[/]", error)
            sys.exit(3 if isinstance(error, RunFolderError) else 2)
        except _Stopped as stopped:
            goes_on = sys.argv[1:2] in ([verb] for verb in GO_ON) and "--dry-run" not in sys.argv
            _say("Stopped.", "The same command goes on from here." if goes_on else "")
            sys.exit(128 + stopped.signum)


@contextmanager
def _huge_pages() -> Iterator[None]:
    """Have torch ask for huge pages, unless the environment says whether it shall.

    Large tensors come and go with every stack of proxies. In huge pages, an audit is about a tenth
    faster (Linux, CPU). Torch looks for this at its first allocation, so nothing comes before.
    """
    if HUGE_PAGES in os.environ:
        yield
        return
    os.environ[HUGE_PAGES] = "1"
    try:
        yield
    finally:
        os.environ.pop(HUGE_PAGES, None)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end the work in good order, unless they are ignored, as by nohup."""

    def stop(signum: int, frame: object) -> None:
        raise _Stopped(signum)

    signals = (signal.SIGINT, signal.SIGTERM) if current_thread() is main_thread() else ()
    before = {
        signum: signal.signal(signum, stop)
        for signum in signals
        if signal.getsignal(signum) not in (signal.SIG_IGN, None)  # None: somebody's, not Python's
    }
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _warn(message: Warning | str, *_: object, **__: object) -> None:
    _say("[yellow]Warning:[/]", message)


def _say(mark: str, message: object) -> None:
    """Print a message behind a mark, which is markup; paths and specs in it stay whole."""
    console, head = Console(stderr=True, highlight=False, emoji=False), Text.from_markup(mark)
    text = Text(wrapped(f"{head.plain} {message}", console.width))
    for span in head.spans:
        text.stylize(span.style, span.start, span.end)
    console.print(text, soft_wrap=True)
