"""What was handed over goes out before the process ends; nobody's handler is taken away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.service.api.http_faults import Faulty, faulty, ok, status

SOURCE = str(Path(__file__).parents[1] / "src")
BEGIN = """
import os, signal, sys, threading
from shadow_advisor_client import AdvisorClient
client = AdvisorClient(sys.argv[1], exit_budget_s=float(sys.argv[2]))
"""
SUBMITS = BEGIN + "for number in range(50): client.submit({'request_id': str(number)})\n"


def run(code: str, url: str, budget_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, url, str(budget_s)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def ids(server: Faulty) -> list[str]:
    return [body["request_id"] for _, _, body, _ in server.requests]


ALL = [str(number) for number in range(50)]


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise KeyError", 1),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
    ],
    ids=["end", "exit", "error", "SIGTERM"],
)
def test_fifty_are_submitted_the_script_ends_and_fifty_arrive(end: str, code: int) -> None:
    with faulty(ok) as server:
        done = run(SUBMITS + end, server.url)
        assert done.returncode == code, done.stderr
        assert ids(server) == ALL


def test_a_service_that_is_down_delays_the_end_by_the_budget_and_the_loss_is_said() -> None:
    with faulty(status(503)) as server:
        done = run(SUBMITS, server.url, 0.2)
        assert done.returncode == 0
        assert "messages that could not be sent" in done.stderr


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_agents_own_handler_is_called_and_stays(place: str) -> None:
    handler = """
def mine(number, frame):
    print("mine")
    sys.exit(5)
signal.signal(signal.SIGTERM, mine)
"""
    first, second = (handler, SUBMITS) if place == "before" else (SUBMITS, handler)
    check = "assert signal.getsignal(signal.SIGTERM) is mine\nos.kill(os.getpid(), signal.SIGTERM)"
    with faulty(ok) as server:
        done = run("import signal, sys\n" + first + second + check, server.url)
        assert (done.returncode, done.stdout) == (5, "mine\n"), done.stderr
        assert ids(server) == ALL


def test_in_another_thread_and_where_it_is_ignored_the_signal_is_left_alone() -> None:
    code = """
import signal, sys, threading
from shadow_advisor_client import AdvisorClient
maker = threading.Thread(target=lambda: AdvisorClient(sys.argv[1]))
maker.start()
maker.join()
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
signal.signal(signal.SIGTERM, signal.SIG_IGN)
client = AdvisorClient(sys.argv[1])
assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
"""
    done = run(code, "http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr


def test_a_signal_handler_may_submit_while_the_agent_submits() -> None:
    """The lock is held by the very thread that handles the signal."""
    code = (
        BEGIN
        + """
signal.signal(signal.SIGALRM, lambda *_: client.submit({'request_id': 'handler'}))
with client._lock:
    signal.raise_signal(signal.SIGALRM)
assert client.stats().queued or client.stats().sent
"""
    )
    with faulty(ok) as server:
        done = run(code, server.url)
        assert done.returncode == 0, done.stderr
        assert ids(server) == ["handler"]


def test_a_child_counts_its_own() -> None:
    code = (
        SUBMITS
        + """
client.report_action(None, {"decision": True})
assert client.stats().dropped == {"refused": 1}
if (child := os.fork()) == 0:
    before = client.stats()
    assert (before.queued, before.sent, before.dropped) == (0, 0, {}), before
    assert before.last_error is None
    client.submit({"request_id": "of the child"})
    client.close(20)
    os._exit(0 if client.stats().sent == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
assert client.stats().dropped == {"refused": 1}
"""
    )
    with faulty(ok) as server:
        done = run(code, server.url)
        assert done.returncode == 0, done.stderr
        assert sorted(ids(server)) == sorted([*ALL, "of the child"])


@pytest.mark.parametrize("answers", [ok, status(422)], ids=["ok", "422"])
def test_sending_imports_nothing(answers: Callable[..., Any]) -> None:
    """A fork in the middle of an import leaves the child half a module: Python finds its codec for
    the names of hosts no more, and the child's first message is lost."""
    code = (
        BEGIN
        + """
before = set(sys.modules)
client.submit({"request_id": "1"})
client.report_action("1", {"decision": True})
client.close(20)
assert set(sys.modules) == before, set(sys.modules) - before
"""
    )
    with faulty(answers) as server:
        done = run(code, server.url)
        assert done.returncode == 0, done.stderr


def test_a_child_leaves_what_its_parent_has_queued_to_the_parent() -> None:
    code = (
        SUBMITS
        + """
child = os.fork()
if child:
    os.waitpid(child, 0)
"""
    )
    with faulty(ok) as server:
        done = run(code, server.url)
        assert done.returncode == 0, done.stderr
        assert sorted(ids(server), key=int) == ALL


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_child_of_multiprocessing_sends_what_waits_before_it_ends(
    start: str, tmp_path: Path
) -> None:
    """Such a child ends by `os._exit`, which nothing registered with `atexit` hears of."""
    script = tmp_path / "bot.py"
    script.write_text("""
import multiprocessing, sys
from shadow_advisor_client import AdvisorClient
client = None
def trade(url, number):
    global client
    client = client or AdvisorClient(url, exit_budget_s=30)
    client.submit({"request_id": str(number)})
if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    client = AdvisorClient(sys.argv[1], exit_budget_s=30)
    children = [context.Process(target=trade, args=(sys.argv[1], n)) for n in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
""")
    with faulty(ok) as server:
        done = subprocess.run(
            [sys.executable, str(script), server.url, start],
            env={**os.environ, "PYTHONPATH": SOURCE},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert sorted(ids(server)) == ["0", "1"]
