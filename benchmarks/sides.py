"""A side of a comparison: a separate process that does one unit of work on request.

Both sides are alive at the same time and work in turns, so pairs are interleaved, the peak memory of
each is separate, and neither pays for the other's imports. `python -m benchmarks.sides MODULE:FUNCTION
SETTINGS` is the child: it calls the function with `Turns` and the settings (JSON). The function
prepares, warms up, and calls `turns.next()` after the warm-up and after every unit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from warp_nb.measure.machine import peak_rss_mb

ROOT = Path(__file__).resolve().parents[1]
MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024


class Over(Exception):
    """Raised in a side by `Turns.next` when no more units are wanted."""


class Turns:
    """The side's end of the connection: it reports the last unit and waits for the request of the next."""

    def __init__(self, source: TextIO, sink: TextIO) -> None:
        self.source, self.sink = source, sink
        self.wait: Callable[[], None] = lambda: None
        """Called before the clock is read: a side on a GPU sets it to `torch.cuda.synchronize`."""
        self.started = time.perf_counter()

    def next(self, **figures: Any) -> None:
        """Answer with seconds since the last return, peak memory so far (bytes) and `figures`; return when asked."""
        self.wait()
        answer = {"seconds": time.perf_counter() - self.started, "peak_rss": peak_rss(), **figures}
        print(json.dumps(answer), file=self.sink, flush=True)
        if not self.source.readline():
            raise Over
        os.sync()  # what the other side wrote is on the disk before the clock starts
        self.begin()

    def begin(self) -> None:
        """Restart the clock of the unit: the work before it was a warm-up."""
        self.wait()
        self.started = time.perf_counter()

    def at_step(self, step: int, *, warmup: int, settle: int, steps: int, **figures: Any) -> None:
        """Let the steps of an endless run be units, called after each with its number from 1.

        The side is ready after `warmup` steps. A unit is `settle` steps, which bring back the memory that the other
        side displaced, and `steps` that are timed.
        """
        if step < warmup:
            return
        place = (step - warmup) % (settle + steps)
        if place == 0:
            self.next(**figures)
        if place == settle:
            self.begin()


class Side:
    """The parent's end of the connection. `warmup` is the first answer, sent when the side is ready."""

    def __init__(self, function: str, **settings: Any) -> None:
        self.function, self.errors = function, tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by close()
        command = [sys.executable, "-m", "benchmarks.sides", function, json.dumps(settings)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)
        assert self.process.stdin and self.process.stdout
        self.questions, self.answers = self.process.stdin, self.process.stdout
        try:
            self.warmup = self._answer()
        except BaseException:
            self.process.kill()
            self.close()
            raise

    def unit(self) -> dict[str, Any]:
        """Request one unit; return its seconds, the peak memory since the start, and the side's figures."""
        self.questions.write("\n")
        self.questions.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.answers.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"side {self.function} ended with exit code {code}:\n{self.errors.read()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Tell the side to stop and wait until it ends."""
        with suppress(BrokenPipeError):
            self.questions.close()
        self.process.wait()
        self.answers.close()
        self.errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.process.kill()
        self.close()


def interleave(
    ours: Side, theirs: Side, count: int, say: Callable[[str], None], title: str = "pair"
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run `count` pairs of units: ours, theirs, ours, theirs …; call `say` for every pair, with `title`."""
    mine, other = [], []
    for pair in range(1, count + 1):
        mine.append(ours.unit())
        other.append(theirs.unit())
        say(f"{title} {pair}/{count}: ours {mine[-1]['seconds']:.2f} s, theirs {other[-1]['seconds']:.2f} s")
    return mine, other


def once(function: str, **settings: Any) -> dict[str, Any]:
    """Return a side's first answer, for work that is not a pair."""
    with Side(function, **settings) as side:
        return side.warmup


def fresh(*command: str) -> dict[str, float]:
    """Run a program; return seconds and peak memory (bytes, of the largest process that it waited for).

    Linux counts this process's own peak as the program's, so it must stay small: sides import torch, it does not.
    Raises RuntimeError with the end of the program's output when it fails.
    """
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = code = os.waitstatus_to_exitcode(status)
        if code:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with exit code {code}:\n{errors.read()[-2000:]}")
    return {"seconds": seconds, "peak_rss": usage.ru_maxrss * MAXRSS_BYTES}


def peak_rss() -> int:
    """Return the largest resident memory of this process so far, bytes."""
    return round(1e6 * peak_rss_mb())


def forget_peak() -> None:
    """Reset `peak_rss` to the current resident memory, where the system can (Linux)."""
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    """Run the child: standard output is reserved for the answers, all other output goes to standard error."""
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    sink = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, _, function = name.partition(":")
    with suppress(Over):
        getattr(import_module(module), function)(Turns(sys.stdin, sink), **settings)


if __name__ == "__main__":
    main()
