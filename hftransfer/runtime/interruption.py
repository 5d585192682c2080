"""Ending a run before its time: Ctrl-C, SIGTERM (preemption), or a loss that is no longer a number.

While a run trains, the first signal is a request: the loop ends after the step at hand, and the run is finished with the
best weights so far. At any other time, and at the second signal, the process stops at once.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOSS = 1  # the reason that is no signal; any number below the first signal of SIGNALS
ECHO_SECONDS = 1.0  # launchers pass a Ctrl-C on to processes that the terminal has sent it to already


@dataclass(frozen=True)
class Interruption:
    """Why a run ended early (a signal number, or `LOSS`), and at which step of its training, if it was in one."""

    reason: int
    step: int = 0
    steps: int = 0

    def describe(self) -> str:
        what = "loss no longer a number" if self.reason == LOSS else signal.Signals(self.reason).name
        return f"{what} at step {self.step} of {self.steps}" if self.steps else what

    @property
    def exit_code(self) -> int:
        """What a shell expects: 128 and the signal, or 1."""
        return 1 if self.reason == LOSS else 128 + self.reason


@dataclass
class Stop:
    """A request to end training: `reason` is 0 until there is one."""

    reason: int = 0
    gentle: bool = False
    asked: float = 0.0
    process: int = field(default_factory=os.getpid)

    @contextmanager
    def gently(self) -> Iterator[None]:
        """While this lasts, the first signal only asks."""
        self.gentle = True
        try:
            yield
        finally:
            self.gentle = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler. Data loading workers inherit it: they leave Ctrl-C to the process that reads from them."""
        if os.getpid() != self.process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        now = time.monotonic()
        if self.gentle and not self.reason:
            self.reason, self.asked = number, now
            log.warning("%s: training ends with this step, and the run is finished with the best weights so far (again: "
                        "stop at once)", signal.Signals(number).name)  # fmt: skip
        elif not self.reason or now - self.asked > ECHO_SECONDS:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def listening() -> Iterator[Stop]:
    """Handles `SIGNALS` by a `Stop`; afterwards they are handled as before. Only a main thread may do so."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.receive) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
