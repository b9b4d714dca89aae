"""What waits goes out before the process ends: at its regular end, and on SIGTERM.

SIGTERM is taken only where nobody handles it, and then ends the process as it would have. A handler
that the agent installed stays as it is, before or after: it ends the process regularly, or it calls
the one that it found. A child of `multiprocessing` ends without the first: it has an end of its own
there. A process that ends by `os._exit` or SIGKILL sends nothing more.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from time import monotonic
from typing import Protocol
from weakref import WeakSet


class Closable(Protocol):
    """What waits for somebody to send it."""

    exit_budget_s: float

    def close(self, timeout_s: float) -> None: ...


# What is referred to from nowhere else has nothing to send: its thread would refer to it.
_open: WeakSet[Closable] = WeakSet()


def send_before_leaving(client: Closable) -> None:
    """Have a client closed, within its budget, when the process ends."""
    _open.add(client)
    send_before_a_child_ends()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


def send_before_a_child_ends() -> None:
    """`multiprocessing` ends its children by `os._exit`, after what was registered with it."""
    process, util = map(sys.modules.get, ("multiprocessing.process", "multiprocessing.util"))
    child = process is not None and process.parent_process() is not None
    if child and util is not None and _told.get("pid") != os.getpid():
        _told["pid"] = os.getpid()
        util.Finalize(None, _close_all, exitpriority=0)


_told: dict[str, int] = {}


@atexit.register
def _close_all() -> None:
    """Every open client, all of them within the longest budget."""
    begin = monotonic()
    for client in list(_open):
        client.close(max(begin + client.exit_budget_s - monotonic(), 0.0))
        _open.discard(client)


def _terminated(number: int, frame: object) -> None:
    _close_all()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
