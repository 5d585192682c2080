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
from enum import Enum
from signal import Signals
from types import FrameType

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 1.0  # launchers pass a Ctrl-C on to processes that the terminal has sent it to already


class StopReason(Enum):
    SIGNAL = "signal"
    LOSS = "loss no longer a number"


@dataclass(frozen=True)
class StopRequest:
    """Why training has to end, with the signal where it was one."""

    reason: StopReason
    signal: Signals | None = None

    @classmethod
    def of_signal(cls, number: int) -> "StopRequest":
        return cls(StopReason.SIGNAL, Signals(number))

    @property
    def code(self) -> int:
        """Return the exit code that a shell expects, above 0: 128 and the signal, or 1."""
        return 1 if self.signal is None else 128 + self.signal

    @classmethod
    def of_code(cls, code: int) -> "StopRequest | None":
        """Return the request with this `code`, by which processes exchange it; None for 0."""
        if code <= 1:
            return LOSS_DIVERGED if code else None
        return cls.of_signal(code - 128)

    def describe(self) -> str:
        return self.reason.value if self.signal is None else self.signal.name


LOSS_DIVERGED = StopRequest(StopReason.LOSS)


@dataclass(frozen=True)
class Interruption:
    """Why a run ended early, and at which step of its training, if it was in one."""

    request: StopRequest
    step: int = 0
    steps: int = 0

    def describe(self) -> str:
        what = self.request.describe()
        return f"{what} at step {self.step} of {self.steps}" if self.steps else what

    @property
    def exit_code(self) -> int:
        return self.request.code


@dataclass
class Stop:
    """Holds the request to end training, once there is one."""

    request: StopRequest | None = None
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
        """Handle a signal. Data loading workers inherit it: they leave Ctrl-C to the process that reads from them."""
        if os.getpid() != self.process:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        now = time.monotonic()
        if self.gentle and not self.request:
            self.request, self.asked = StopRequest.of_signal(number), now
            log.warning("%s: training ends with this step, and the run is finished with the best weights so far (again: "
                        "stop at once)", signal.Signals(number).name)  # fmt: skip
        elif not self.request or now - self.asked > ECHO_SECONDS:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def listening() -> Iterator[Stop]:
    """Handle `SIGNALS` by a `Stop`; afterwards they are handled as before. Only a main thread may do so."""
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
