"""Commands that the studio runs in processes of their own, one at a time. All that is known of them lies in files.

The page may be closed, and the studio ended: a training goes on, and the next page finds it again.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from hftransfer.core.bars import VARIABLE
from hftransfer.core.errors import UserError
from hftransfer.core.files import read_json, write_json

LINES = 12  # of the log that are shown
STARTED, LOG, PROGRESS = "job.json", "log.txt", "progress.jsonl"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Job:
    """One command that was started: its folder has the arguments, the log and the progress."""

    folder: Path

    @cached_property
    def _started(self) -> dict[str, Any]:
        return read_json(self.folder / STARTED)

    @property
    def arguments(self) -> list[str]:
        return self._started["arguments"]

    @property
    def command(self) -> str:
        """Return what does the same in a terminal, in the studio's folder."""
        return shlex.join(["hftransfer", *self.arguments])

    @property
    def output(self) -> Path | None:
        """Return what the command makes, where it makes a file or folder."""
        made = self._started["output"]
        return Path(made) if made else None

    @property
    def running(self) -> bool:
        """Whether the process that was started is still there: another one may have its number by now."""
        try:
            process = psutil.Process(self._started["pid"])
            same = abs(process.create_time() - self._started["created"]) < 1
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @property
    def state(self) -> str:
        """Return running, done, or failed: a command that ended without its output."""
        if self.running:
            return "running"
        if self.output is not None:
            return "done" if self.output.exists() else "failed"
        return "failed" if any(line.startswith(("Error: ", "Traceback ")) for line in self.log(most=0)) else "done"

    @property
    def seconds(self) -> float:
        """Return how long it has been running, or ran: until it last wrote something."""
        written = [(self.folder / name).stat().st_mtime for name in (LOG, PROGRESS) if (self.folder / name).is_file()]
        return (time.time() if self.running else max(written)) - self._started["created"]

    def log(self, most: int = LINES) -> list[str]:
        """Return the last lines that the command wrote; 0 for all."""
        text = (self.folder / LOG).read_text(encoding="utf-8", errors="replace")
        return [ESCAPES.sub("", line) for line in text.splitlines() if line.strip()][-most:]

    def progress(self) -> list[dict[str, Any]]:
        """Return the lines of `core.bars`; the last one may be half written."""
        path = self.folder / PROGRESS
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def stop(self) -> None:
        """Send Ctrl-C: a training ends with its best weights so far, a second one stops it at once."""
        if self.running:
            os.kill(self._started["pid"], signal.SIGINT)


class Jobs:
    """The commands of one studio; `place` is its folder, in which they run."""

    def __init__(self, place: Path):
        self.place = place
        self.folder = place / "runs" / ".studio" / "jobs"

    def all(self) -> list[Job]:
        """Return every job that was started, in order."""
        return [Job(file.parent) for file in sorted(self.folder.glob(f"*/{STARTED}"))]

    @property
    def last(self) -> Job | None:
        return next(reversed(self.all()), None)

    def start(self, arguments: Sequence[str], output: Path | None = None) -> Job:
        """Start `hftransfer ARGUMENTS`. Raises `UserError` while another job runs, and where the output is there already."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=5):
                self._refuse(output)
                return self._start(list(arguments), output)
        except Timeout:
            raise UserError("Another page is starting a job: try again.") from None

    def _refuse(self, output: Path | None) -> None:
        if self.last and self.last.running:
            raise UserError(f"One job at a time: wait for `{self.last.command}`, or stop it.")
        if output is not None and output.exists():
            raise UserError(f"{output.name} exists already: choose another name.")

    def _start(self, arguments: list[str], output: Path | None) -> Job:
        folder = self.folder / f"{len(self.all()):05d}"
        folder.mkdir(exist_ok=True)
        own = {VARIABLE: str(folder / PROGRESS), "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}
        with open(folder / LOG, "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "hftransfer", *arguments], cwd=self.place, env=os.environ | own,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        created = psutil.Process(process.pid).create_time()
        about = {"arguments": arguments, "output": output and str(output), "pid": process.pid, "created": created}
        write_json(folder / STARTED, about)
        threading.Thread(target=process.wait, daemon=True).start()  # so that it does not stay as a zombie
        return Job(folder)
