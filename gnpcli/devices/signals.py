"""Signals: which of them stop a run, and how a command answers Ctrl-C at any moment."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from types import FrameType, TracebackType
from typing import Any, NoReturn

STOP_SIGNALS = tuple(
    signal.Signals[name]
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if name in signal.Signals.__members__
)
"""Ctrl-C, what ends a process, what a terminal sends when it is closed, and what Slurm and its
tools send some time before the limit of a job.
"""

GRACE_S = 2.0
"""Seconds after the first signal in which more of them are taken for the same one."""

_WONDERS_S = 0.2
_RAISED_AGAIN_S = 0.05
_SHOW_CURSOR = "\x1b[?25h"

Tell = Callable[[str], None]


@contextlib.contextmanager
def stop_signals(
    tell: Tell | None = None, doing: str = "stopping"
) -> Iterator[list[signal.Signals]]:
    """Collect the `STOP_SIGNALS`, for a loop to act on where it can.

    A signal that is ignored from the start, as `nohup` has it, stays ignored. In a command
    (`command_signals`), Ctrl-C ends the process at once where it comes again after `GRACE_S`. In
    another program a second signal does what it did before. Outside the main thread nothing is
    collected.

    Args:
        tell: Told at once, from another thread, that the first signal has come; None tells nobody.
        doing: What is about to happen, as in "stopping after this step and saving".
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    answer = _Answer(tell or _drop, doing)
    old = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    old = {number: handler for number, handler in old.items() if handler not in _UNTOUCHED}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        if _watch is not None:
            _watch.is_stopping = True
            return
        # A thread: what is interrupted may be printing itself.
        threading.Thread(target=answer.give, args=(number,), daemon=True).start()
        restore()

    def restore() -> None:
        for number, handler in old.items():
            signal.signal(number, handler)

    outer = _watch.answer if _watch is not None else None
    if _watch is not None:
        _watch.answer = answer
    try:
        for number in old:
            signal.signal(number, note)
        yield received
    finally:
        restore()
        if _watch is not None and outer is not None:
            _watch.answer = outer


_UNTOUCHED = (signal.SIG_IGN, None)
"""Handlers that stay: it is ignored, or the handler is not Python's."""


def keep_status() -> None:
    """Ignore the `STOP_SIGNALS` from here on, but for Ctrl-C. For a command that ends in any case.

    What started several processes may end the last of them when the first one has ended, and
    would take a signal for the status of all. ``srun --kill-on-bad-exit=1`` does.
    """
    if threading.current_thread() is threading.main_thread():
        for number in STOP_SIGNALS:
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def command_signals() -> Iterator[None]:
    """Answer Ctrl-C for the life of a command: at once, and never with a traceback.

    Inside the block the first Ctrl-C raises `Stopped` where `stop_signals` does not collect it, and
    the process exits with the status of a shell. A command that does not end soon says so. Ctrl-C
    within the next `GRACE_S` is the same one. A later one ends the process at once, also while it
    is in code that is not Python's. After the block, which is to be the end of the process, Ctrl-C
    ends it silently. Where Ctrl-C is ignored from the start, as in the background of a script, it
    stays ignored.
    """
    global _watch
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _watch = _Watch()
    try:
        yield
    except Stopped:
        _leave()
    except Exception:
        if is_interrupted():
            _leave()
        raise
    finally:
        _watch.close()
        _watch = None


def _leave() -> NoReturn:
    """End the process with the status of a shell, without the clearing away at Python's exit.

    XLA may still be compiling in a thread, and crashes where its client is cleared away under it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # it is full, or closed
            stream.flush()
    os._exit(128 + signal.SIGINT)


def is_interrupted() -> bool:
    """Return whether `Stopped` has been raised.

    An error that comes out after it is its consequence: code that it interrupts may raise another.
    """
    return _watch is not None and _watch.has_raised


class Stopped(BaseException):
    """Ctrl-C, on its way out of a command. Not `KeyboardInterrupt`: others answer that in words."""


class _Answer:
    """What is said to the first signal."""

    def __init__(self, tell: Tell, doing: str):
        self._tell, self._doing = tell, doing

    def give(self, number: int) -> None:
        name = signal.Signals(number).name
        self._tell(
            f"{name}: {self._doing}; Ctrl-C once more after {GRACE_S:.0f} s ends at once, unsaved"
        )


class _Watch:
    """Sees every signal at once, in a thread: the main one may be in code that is not Python's."""

    def __init__(self) -> None:
        self.answer = _Answer(self._tell_if_slow, "stopping")
        self.is_stopping = False
        """Whether the main thread knows of a signal, and acts on it."""
        self.has_raised = False
        self._first_s: float | None = None
        self._is_over = threading.Event()
        self._receiver, self._sender = os.pipe()
        os.set_blocking(self._sender, False)
        self._outer_sender = signal.set_wakeup_fd(self._sender, warn_on_full_buffer=False)
        self._is_deaf = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        if not self._is_deaf:
            signal.signal(signal.SIGINT, self._raise)
        self._outer_unraisable, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        self._outer_print, sys.excepthook = sys.excepthook, self._on_print
        threading.Thread(target=self._look, name="gnp-signals", daemon=True).start()

    def close(self) -> None:
        """Leave what is left of the process to the system's own answer."""
        self._is_over.set()
        if not self._is_deaf:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.set_wakeup_fd(self._outer_sender)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self.is_stopping:
            return
        if _loads_extension(frame):
            self._raise_again()
            return
        self.is_stopping = self.has_raised = True
        raise Stopped

    def _tell_if_slow(self, text: str) -> None:
        """Tell that the command is stopping where a person would wonder; most end at once."""
        if not self._is_over.wait(_WONDERS_S):
            _write(text)

    def _look(self) -> None:
        while True:
            for number in os.read(self._receiver, 64):
                if number in STOP_SIGNALS:
                    self._on(number)

    def _on(self, number: int) -> None:
        now = time.monotonic()
        if self._first_s is None:
            self._first_s = now
            self.answer.give(number)
        elif number == signal.SIGINT and now - self._first_s > GRACE_S:
            # Who sends the others has SIGKILL, and may send them more than once.
            _write(f"{_SHOW_CURSOR if os.isatty(2) else ''}ended at once")
            os._exit(128 + number)

    def _on_unraisable(self, unraisable: Any) -> None:
        """Stand for Python where it could raise nothing, as in a ``__del__``."""
        if isinstance(unraisable.exc_value, Stopped):
            self._raise_again()
        else:
            self._outer_unraisable(unraisable)

    def _on_print(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """Stand for a traceback; code that is not Python's may print one, and go on."""
        if isinstance(error, Stopped):
            self._raise_again()
        else:
            self._outer_print(kind, error, trace)

    def _raise_again(self) -> None:
        self.is_stopping = False
        self._first_s = time.monotonic()
        again = threading.Timer(_RAISED_AGAIN_S, _interrupt_main_thread)
        again.daemon = True
        again.start()


def _loads_extension(frame: FrameType | None) -> bool:
    """Return whether code that is not Python's is being imported, and has called Python.

    An exception that comes back to it there ends the process with `std::terminate`.
    """
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def _interrupt_main_thread() -> None:
    main = threading.main_thread().ident
    if main is not None:
        signal.pthread_kill(main, signal.SIGINT)


_watch: _Watch | None = None


def _write(text: str) -> None:
    """Write a line on stderr, past Python's buffers: another thread may be in the middle of one."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode() if os.isatty(2) else f"{text}\n".encode())


def _drop(text: str) -> None:
    del text
