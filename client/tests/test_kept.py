"""What waits in a folder outlives its process, goes out once, and harms nobody who reads it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from time import time

import pytest
from app.domain.canonical import decision_id
from app.local.servers import free_port
from tests.service.api.http_faults import Faulty, faulty, ok

from shadow_advisor_client import AdvisorClient, ConfigurationError
from shadow_advisor_client import kept as kept_module
from shadow_advisor_client.kept import Kept
from shadow_advisor_client.lanes import Message

SOURCE = str(Path(__file__).parents[1] / "src")
NOBODY = f"http://127.0.0.1:{free_port()}"
BEGIN = """
import os, resource, signal, sys
from shadow_advisor_client import AdvisorClient
def client_of(**more):
    return AdvisorClient(sys.argv[1], queue_dir=sys.argv[2], exit_budget_s=0.05, **more)
"""
KILLED = "os.kill(os.getpid(), signal.SIGKILL)\n"


def run(code: str, url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BEGIN + code, url, str(folder)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def submits(names: str) -> str:
    """Code that submits a request, an action and an outcome for each letter."""
    return f"""
client = client_of()
for name in {names!r}:
    known = client.submit({{"request_id": name}})
    client.report_action(known, {{"decision": True}})
    client.report_outcome(known, {{"arm": "agent"}})
"""


def sends(folder: Path, url: str) -> AdvisorClient:
    """The next process, until everything went out."""
    with AdvisorClient(url, queue_dir=folder) as client:
        client.close(60)
    return client


def arrived(server: Faulty) -> list[str]:
    """What came, in order: a request by its id, a report by its last word and that id."""
    names = {str(decision_id(name)): name for name in "abcdefghij"}
    return [
        body["request_id"] if path == "/advise" else f"{names[path[11:47]]}-{path[48:]}"
        for _, path, body, _ in server.requests
    ]


def told(name: str) -> list[str]:
    return [name, f"{name}-agent-action", f"{name}-outcome"]


@pytest.mark.parametrize("end", ["", KILLED], ids=["end", "killed"])
def test_what_was_not_delivered_goes_out_when_the_next_process_starts(
    end: str, tmp_path: Path
) -> None:
    done = run(submits("abc") + end, NOBODY, tmp_path / "queue")
    assert done.returncode == (-signal.SIGKILL if end else 0), done.stderr
    assert "could not be sent" not in done.stderr, "it is not lost"
    with faulty(ok) as server:
        client = sends(tmp_path / "queue", server.url)
        assert sorted(arrived(server)) == sorted([*told("a"), *told("b"), *told("c")])
        for name in "abc":
            assert [each for each in arrived(server) if each[0] == name] == told(name)
    assert (client.stats().sent, client.stats().kept, client.stats().dropped) == (9, 0, {})
    assert list((tmp_path / "queue").iterdir()) == []


def test_what_was_delivered_is_not_sent_again_after_a_kill(tmp_path: Path) -> None:
    with faulty(ok) as server:
        code = """
client = client_of()
known = client.submit({"request_id": "a"})
while client.stats().sent < 1: pass
client._connection = type(client._connection)("http://127.0.0.1:9")
held = client._requests.take
client._requests.take = lambda *_: float("inf")
client.submit({"request_id": "b"})
"""
        done = run(code + KILLED, server.url, tmp_path)
        assert done.returncode == -signal.SIGKILL, done.stderr
        sends(tmp_path, server.url)
        assert arrived(server) == ["a", "b"]


def test_processes_on_one_folder_send_each_message_once(tmp_path: Path) -> None:
    run(submits("ab") + KILLED, NOBODY, tmp_path)
    with faulty(ok) as server:
        code = submits("{0}") + "client.close(60)\nassert client.stats().kept == 0\n"
        running = [
            subprocess.Popen(
                [sys.executable, "-c", BEGIN + code.replace("{0}", name), server.url, tmp_path],
                env={**os.environ, "PYTHONPATH": SOURCE},
            )
            for name in "cdef"
        ]
        assert [process.wait(120) for process in running] == [0, 0, 0, 0]
        expected = [each for name in "abcdef" for each in told(name)]
        assert Counter(arrived(server)) == Counter(expected)
    assert list(tmp_path.iterdir()) == []


def test_what_a_living_process_waits_with_is_its_own(tmp_path: Path) -> None:
    with AdvisorClient(NOBODY, queue_dir=tmp_path, exit_budget_s=0) as first:
        first.submit({"request_id": "a"})
        with faulty(ok) as server:
            second = sends(tmp_path, server.url)
            assert second.stats().sent == 0
        first.close(0)
    with faulty(ok) as server:
        sends(tmp_path, server.url)
        assert arrived(server) == ["a"]


@pytest.mark.parametrize("cut", [1, 30], ids=["newline", "middle"])
def test_a_torn_last_record_is_set_aside_and_counted(tmp_path: Path, cut: int) -> None:
    run(submits("ab") + KILLED, NOBODY, tmp_path)
    (file,) = tmp_path.glob("*.queue")
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    with faulty(ok) as server:
        client = sends(tmp_path, server.url)
        assert sorted(arrived(server)) == sorted([*told("a"), *told("b")])[:-1]
        assert client.stats().set_aside == 1
    (aside,) = tmp_path.iterdir()
    torn = whole[:-cut].splitlines()[-1]
    assert aside.read_bytes() == torn + b"\n"
    assert aside.stat().st_mode & 0o777 == 0o600


def test_a_damaged_record_in_the_middle_costs_itself(tmp_path: Path) -> None:
    run(submits("ab") + KILLED, NOBODY, tmp_path)
    (file,) = tmp_path.glob("*.queue")
    lines = file.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"true", b"tru_")
    file.write_bytes(b"".join(lines))
    with faulty(ok) as server:
        assert sends(tmp_path, server.url).stats().set_aside == 1
        assert set(arrived(server)) == {*told("a"), *told("b")} - {"a-agent-action"}


def test_it_is_bounded_in_bytes_and_what_finds_no_room_is_sent_from_memory(tmp_path: Path) -> None:
    code = """
client = client_of(queue_bytes=2000)
for name in "abcdefghij":
    client.submit({"request_id": name, "text": "x" * 500})
stats = client.stats()
assert (stats.kept, stats.not_kept, stats.queued) == (3, 7, 10), stats
"""
    done = run(code, NOBODY, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "7 messages that could not be sent" in done.stderr
    assert sum(file.stat().st_size for file in tmp_path.glob("*.queue")) <= 2000
    with faulty(ok) as server:
        sends(tmp_path, server.url)
        assert arrived(server) == ["a", "b", "c"]


def test_a_full_disk_is_counted_and_leaves_no_half_lines(tmp_path: Path) -> None:
    code = """
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
client = client_of()
for name in "abcdefghij":
    assert client.submit({"request_id": name, "text": "x" * 500})
stats = client.stats()
assert (stats.kept, stats.not_kept) == (2, 8), stats
assert "queue_dir" in stats.last_error or "Connect" in stats.last_error, stats
"""
    done = run(code, NOBODY, tmp_path)
    assert done.returncode == 0, done.stderr
    with faulty(ok) as server:
        assert sends(tmp_path, server.url).stats().set_aside == 0
        assert arrived(server) == ["a", "b"]


def test_its_files_are_private(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "queue"
    old = os.umask(0)
    try:
        with AdvisorClient(NOBODY, queue_dir=folder, exit_budget_s=0) as client:
            client.submit({"request_id": "a"})
            assert folder.stat().st_mode & 0o777 == 0o700
            modes = {path.suffix: path.stat().st_mode & 0o777 for path in folder.iterdir()}
            assert modes == {".lock": 0o600, ".queue": 0o600}
            client.close(0)
    finally:
        os.umask(old)


def test_a_folder_that_cannot_be_used_is_an_error_where_the_client_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"queue_dir .*file cannot be used"):
        AdvisorClient(NOBODY, queue_dir=tmp_path / "file")


def test_a_child_does_not_hold_what_its_parent_left(tmp_path: Path) -> None:
    """The child lives on after its parent was killed."""
    code = (
        submits("a")
        + """
if os.fork() == 0:
    os.close(1), os.close(2)
    os.read(0, 1)
    os._exit(0)
"""
        + KILLED
    )
    read, write = os.pipe()
    parent = subprocess.Popen(
        [sys.executable, "-c", BEGIN + code, NOBODY, tmp_path],
        env={**os.environ, "PYTHONPATH": SOURCE},
        stdin=read,
    )
    try:
        assert parent.wait(60) == -signal.SIGKILL
        with faulty(ok) as server:
            sends(tmp_path, server.url)
            assert arrived(server) == told("a")
    finally:
        os.close(write)
        os.close(read)


def test_what_is_too_old_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_module, "time", lambda: time() - 8 * 86_400)
    with AdvisorClient(NOBODY, queue_dir=tmp_path, exit_budget_s=0) as client:
        client.submit({"request_id": "a"})
        client.close(0)
    monkeypatch.undo()
    with faulty(ok) as server:
        client = sends(tmp_path, server.url)
        assert (client.stats().dropped, server.requests) == ({"expired": 1}, [])


def test_files_go_with_their_last_message_and_stay_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_module, "FILE_BYTES", 1000)
    kept = Kept(tmp_path, max_bytes=10_000, whose="agent")
    messages = [Message("PUT", "/x", b"y" * 400, 0.0, str(number)) for number in range(9)]
    for message in messages:
        kept.keep(message)
    assert len(list(tmp_path.glob("*.queue"))) == 3, "three lines reach 1000 bytes"
    for message in messages[:3]:
        kept.done(message)
    assert len(list(tmp_path.glob("*.queue"))) == 2
    for message in messages[3:]:
        kept.done(message)
    (current,) = tmp_path.glob("*.queue")
    assert (current.stat().st_size, kept.pending) == (0, 0)
    kept.close()
    assert list(tmp_path.iterdir()) == []


def test_what_one_agent_left_is_not_sent_under_the_name_of_another(tmp_path: Path) -> None:
    mine, others = ("advisor.desk.s" + 40 * "x", "advisor.other.s" + 40 * "x")
    run(f"client_of(token={mine!r}).submit({{'request_id': 'a'}})\n" + KILLED, NOBODY, tmp_path)
    with faulty(ok) as server:
        with AdvisorClient(server.url, queue_dir=tmp_path, token=others) as client:
            client.close(60)
        assert server.requests == []
        assert len(list(tmp_path.glob("*.queue"))) == 1
        with AdvisorClient(server.url, queue_dir=tmp_path, token=mine) as client:
            client.close(60)
        assert arrived(server) == ["a"]
    assert list(tmp_path.iterdir()) == []


def test_what_was_left_before_names_told_whose_it_is_goes_to_the_first_that_starts(
    tmp_path: Path,
) -> None:
    run(submits("a") + KILLED, NOBODY, tmp_path)
    for file in list(tmp_path.iterdir()):
        file.rename(tmp_path / file.name.partition("-")[2])
    with faulty(ok) as server:
        sends(tmp_path, server.url)
        assert arrived(server) == told("a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_somebody_removes_is_noticed_and_what_lay_there_is_counted(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "queue"
    client = AdvisorClient(NOBODY, queue_dir=folder)
    for name in "abc":
        client.submit({"request_id": name})
    assert client.stats().kept == 3
    shutil.rmtree(folder)
    client.submit({"request_id": "d"})
    stats = client.stats()
    assert (stats.kept, stats.not_kept, stats.queued) == (0, 4, 4)
    client.close(0)
    for sender in client._requests.threads:
        sender.join(60)  # What is on its way counts when it has failed.
    assert client.stats().dropped == {"closed": 4}
