"""Deferred signals that ask a process to end: SIGINT (Ctrl+C, JupyterLab's stop button), SIGTERM, SIGHUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Schedulers (Slurm, Kubernetes) send SIGTERM, a terminal that closes sends SIGHUP; Windows has no SIGHUP."""


def ended_by(number: int) -> BaseException:
    """Return what is raised after a signal: KeyboardInterrupt, or SystemExit with the code that a shell would give."""
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def signals_unwind() -> Iterator[None]:
    """Raise SystemExit for SIGTERM and SIGHUP in the block where they would end the process without any `finally`."""
    main = threading.current_thread() is threading.main_thread()
    ending = [number for number in ENDING if main and signal.getsignal(number) == signal.SIG_DFL]

    def unwind(number: int, frame: FrameType | None) -> None:
        raise ended_by(number)

    for number in ending:
        signal.signal(number, unwind)
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def interrupts_wait() -> Iterator[Callable[[], BaseException | None]]:
    """Defer the first signal of ENDING in the block, where the yielded function returns what to raise for it, or None.

    A second signal is raised at once. A deferred one is raised when the block ends without an error. The former
    handlers are back then, and one that the program set itself is called for a deferred SIGTERM or SIGHUP. Outside the
    main thread, and for a signal that is ignored (`nohup`), nothing changes.
    """
    main = threading.current_thread() is threading.main_thread()
    former = {number: signal.getsignal(number) for number in ENDING} if main else {}
    former = {number: handler for number, handler in former.items() if handler not in (None, signal.SIG_IGN)}
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            raise ended_by(number)

    for number in former:
        signal.signal(number, note)
    try:
        yield lambda: ended_by(came[0]) if came else None
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for number in came:
            if number != signal.SIGINT and callable(former[number]):
                signal.raise_signal(number)
    if came:
        raise ended_by(came[0])
