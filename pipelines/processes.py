"""Every process of a run, wherever it went: measured together, and stopped together.

Ray's daemons leave their parent's session, and outlive it. The kernel hands such orphans to the nearest ancestor that
declared itself a subreaper instead of to init, so that "my descendants" stays the complete answer. Linux only;
elsewhere orphans are not found.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
TERMINATE_WAIT_S = 4.0
LAST_WORDS = "gripline.delivery"
"""The process that tells the tracker how a stage ended. It ends by itself once its stage is gone."""
KILL_WAIT_S = 10.0


def adopt_orphans() -> None:
    """From now on, descendants whose parent dies become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def terminate_with_parent() -> None:
    """From now on, this process gets SIGTERM when the process that started it dies, however that happens."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def descendants() -> list[psutil.Process]:
    """All living processes below this one, zombies left out."""
    return [process for process in psutil.Process().children(recursive=True) if _is_alive(process)]


def stop_descendants() -> int:
    """SIGTERM to all, SIGKILL to those that stay; returns when none is left. Returns how many had to be killed."""
    for process in descendants():
        if LAST_WORDS not in _command(process):
            _signal(process, signal.SIGTERM)
    _wait(TERMINATE_WAIT_S)
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_WAIT_S
    while (left := descendants()) and time.monotonic() < deadline:
        for process in left:
            killed.add(process.pid)
            _signal(process, signal.SIGKILL)
        _wait(0.5)
    _reap()
    return len(killed)


class MemoryMeter:
    """Peak memory of this process and all descendants, as proportional set size: shared pages count once.

    Reading it walks page tables, so samples are spaced to cost at most two per cent of one core.
    """

    def __init__(self, every_s: float = 1.0) -> None:
        self.peak_mb = 0.0
        self._every_s = every_s
        self._next_s = 0.0

    def sample(self) -> None:
        """Take a sample if one is due."""
        started = time.monotonic()
        if started < self._next_s:
            return
        total = sum(_pss_bytes(process.pid) for process in [psutil.Process(), *descendants()])
        self.peak_mb = max(self.peak_mb, total / 2**20)
        cost_s = time.monotonic() - started
        self._next_s = started + max(self._every_s, 50 * cost_s)


def _pss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as source:
            for line in source:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # it ended meanwhile
    return 0


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it ended meanwhile
        return []


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _wait(timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while descendants() and time.monotonic() < deadline:
        time.sleep(0.05)


def _reap() -> None:
    """Collect the exit codes of adopted children, so that none stays behind as a zombie."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) was refused")
