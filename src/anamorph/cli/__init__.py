"""The command line: one file a verb, no logic."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from typing import Annotated

import typer
from rich.console import Console

from anamorph.cli.audit import audit
from anamorph.cli.data import data
from anamorph.cli.list import list_
from anamorph.cli.report import report
from anamorph.cli.run import run
from anamorph.cli.show import show
from anamorph.cli.sites import sites
from anamorph.cli.train import train
from anamorph.errors import AnamorphError
from anamorph.machine.process import as_found
from anamorph.version import version

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"

app = typer.Typer(
    help="Does a simplified view of a Transformer still hold away from the data it was fitted on?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for verb in (run, train, audit, report, show, data, sites):
    app.command()(verb)
app.command(name="list")(list_)


def _version(asked: bool) -> None:
    if asked:
        print(version())
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it and exit.")
    ] = False,
) -> None:
    pass


class _Stopped(BaseException):
    """Ctrl-C, or a signal to end; no library on the way takes it for its own."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def main() -> None:
    """Run the command line; bad input ends in one paragraph and exit code 2."""
    with _huge_pages(), as_found(), _stoppable():
        warnings.showwarning = _warn
        try:
            app()
        except AnamorphError as error:
            _say(f"[bold red]Error:[/] {_plain(error)}")
            sys.exit(2)
        except _Stopped as stopped:
            _say("Stopped. The same command goes on from here.")
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
    _say(f"[yellow]Warning:[/] {_plain(message)}")


def _say(text: str) -> None:
    Console(stderr=True).print(text, highlight=False)


def _plain(error: object) -> str:
    return str(error).replace("[", r"\[")
