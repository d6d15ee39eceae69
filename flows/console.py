"""What the command line prints: results on standard output, all else on standard error, and the exit status."""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
DONE, FAULT, BAD_INPUT, QUARANTINED, INTERRUPTED = 0, 1, 2, 3, 130


class Console:
    """Where the result of a command goes.

    Parameters
    ----------
    as_json : bool
        Print the result as one JSON document. Standard output then carries nothing else, whatever libraries print:
        its file descriptor is pointed at standard error.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._out: IO[str] = sys.stdout
        if as_json:
            sys.stdout.flush()
            self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
            os.dup2(2, 1)

    def result(self, document: Any, text: str) -> None:
        """Print the outcome: `document` with ``--json``, else `text`."""
        print(json.dumps(document, indent=2, allow_nan=False) if self.as_json else text, file=self._out, flush=True)

    def say(self, line: str) -> None:
        """Tell how work goes on."""
        print(line, file=sys.stderr, flush=True)

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar on a terminal, one line elsewhere; gives a callable that takes the steps done since its last call."""
        if not sys.stderr.isatty():
            self.say(title)
            yield lambda steps: None
            return
        from rich.console import Console as Terminal
        from rich.progress import Progress

        with Progress(console=Terminal(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda steps: bar.advance(task, steps)

    @contextmanager
    def gauge(self, title: str) -> Iterator[Callable[[float, str], None]]:
        """A bar on a terminal, nothing elsewhere; gives a callable that takes the share done and what is at hand."""
        if not sys.stderr.isatty():
            yield lambda share, text: None
            return
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Terminal(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=1.0)
            yield lambda share, text: bar.update(task, completed=min(share, 1.0), description=f"{title}: {text}")

    @contextmanager
    def pipeline(self, title: str) -> Iterator[None]:
        """Tell what a flow is at: beside a clock on a terminal, in lines elsewhere."""
        if not sys.stderr.isatty():  # no line before the flow's first one: bad input is found before, and gets one
            with _stages_told(self.say):
                yield
            return
        from rich.console import Console as Terminal
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=Terminal(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None)
            with _stages_told(lambda line: bar.update(task, description=f"{title}: {line}")):
                yield


@contextmanager
def _stages_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Call `tell` with what the flows log.

    Prefect prints the traceback of every failed run; here a failure is told once, by whoever catches it.
    """
    import prefect  # noqa: F401  # configures its loggers as it is imported, and would undo what is set before

    debug = bool(os.environ.get("CMSEG_DEBUG"))
    runs = [logging.getLogger(f"prefect.{kind}_runs") for kind in ("task", "flow")]
    # At the end, on a busy machine, it tells how many events are left to write.
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)

    def worth_printing(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        told = record.exc_info or text.startswith(("Finished in state", "Crash detected"))
        # Tasks mapped over cells run in threads, where Prefect says of every single one that it cannot interrupt it.
        return debug or not (told or "worker thread" in text)

    def emit(record: logging.LogRecord) -> None:
        kept = f"; {_kept_traceback()}" if record.levelno >= logging.ERROR and record.exc_info else ""
        tell(f"{record.getMessage()}{kept}")

    handler = logging.Handler(logging.INFO)
    handler.emit = emit  # type: ignore[method-assign]
    flows = logging.getLogger("cmseg")
    flows.setLevel(logging.INFO)
    flows.addHandler(handler)
    flows.propagate = False
    for logger in runs:
        logger.addFilter(worth_printing)
    try:
        yield
    finally:
        flows.removeHandler(handler)
        for logger in runs:
            logger.removeFilter(worth_printing)


def exit_status(action: Callable[[], int | None], *, debug: bool) -> int:
    """Run a command and turn whatever it raises into one line on standard error and an exit status.

    Parameters
    ----------
    action : callable
        Returns the exit status, or None for done.
    debug : bool
        Print tracebacks.

    Returns
    -------
    int
    """
    from cyclopts import CycloptsError
    from pydantic import ValidationError

    from cmseg_core.errors import InputError
    from cmseg_core.schema import first_problem

    try:
        return action() or DONE
    except KeyboardInterrupt:
        _complain("interrupted; run the same command again to go on", debug)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would complain once more as it flushes
        return DONE
    except (CycloptsError, InputError) as error:
        _complain(str(error), debug)
        return BAD_INPUT
    except ValidationError as error:
        _complain(f"{error.title}: {first_problem(error)}; see docs/settings.md for names and ranges", debug)
        return BAD_INPUT
    except OSError as error:
        if error.errno not in _NO_ROOM:
            return _at_fault(error, debug)
        place = error.filename or "the disk"
        _complain(f"{place}: {os.strerror(error.errno)}; make room, and run the same command again to go on", debug)
        return FAULT
    except Exception as error:  # the last line of defence: a user gets one line, and the traceback goes to a file
        return _at_fault(error, debug)


def _at_fault(error: Exception, debug: bool) -> int:
    where = "" if debug else f"; {_kept_traceback()}"
    _complain(f"a fault of cmseg: {type(error).__name__}: {error}{where}", debug)
    return FAULT


def one_line(text: str) -> str:
    """Any text on one line."""
    return " ".join(text.split())


def wants(tokens: Sequence[str], option: str) -> bool:
    """Whether a flag stands among the arguments, before a ``--`` that ends the options."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    return option in tokens[:end]


def _complain(line: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"cmseg: {one_line(line)}", file=sys.stderr, flush=True)


def _kept_traceback() -> str:
    """Write the traceback to a file of the workspace and say where it lies."""
    folder = Path(os.environ.get("CMSEG_WORKSPACE") or "~/.cmseg").expanduser().absolute() / "logs"
    path = folder / f"fault-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{' '.join(sys.argv)}\n\n{traceback.format_exc()}", encoding="utf-8")
    except OSError:
        return "run it again with --debug to see the traceback"
    return f"the traceback is in {path}"
