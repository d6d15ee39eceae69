"""Logs are begun anew while their service goes on to write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from deployments import processes
from deployments.logs import rotate

TALKER = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


def test_a_log_that_has_grown_is_begun_anew(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    with log.open("ab") as output:  # as a service writes it
        service = subprocess.Popen([sys.executable, "-c", TALKER], stdin=subprocess.PIPE, stdout=output, text=True)
    assert service.stdin is not None

    def say(text: str) -> None:
        before = log.stat().st_size
        service.stdin.write(f"{text}\n")
        service.stdin.flush()
        while log.stat().st_size == before:
            pass

    say("first")
    assert not rotate(log, 6) and not rotate(tmp_path / "absent.log")
    assert rotate(log, 5)
    say("second")
    assert (log.read_text(), (tmp_path / "service.log.1").read_text()) == ("second\n", "first\n")
    assert rotate(log, 5)
    assert (log.read_text(), (tmp_path / "service.log.1").read_text()) == ("", "second\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["service.log", "service.log.1"]
    assert (tmp_path / "service.log.1").stat().st_mode & 0o077 == 0
    service.stdin.close()
    service.wait()


def test_services_append_to_their_logs(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    log.write_text("before\n")
    running = processes.start([sys.executable, "-c", "print('after')"], folder=tmp_path, log=log)
    assert running.wait() == 0 and log.read_text() == "before\nafter\n"
