"""What the bench of the chain adds up."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

from app.domain.record.event import Event
from bench.record.chain import numbered
from bench.serving.service import a_decision, cpu_s


def test_cpu_is_that_of_processes_and_of_what_they_waited_for() -> None:
    before = cpu_s([os.getpid()])
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
    took = os.times()
    assert cpu_s([os.getpid()]) > before
    assert abs(cpu_s([os.getpid()]) - sum(took[:4])) < 0.5
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    assert cpu_s([gone.pid]) == 0.0


def test_what_is_timed_is_a_chain() -> None:
    base = Event.of_decision(a_decision(0))
    made = numbered([base._replace(key=str(number)) for number in range(4)])
    assert [link.seq for link in made] == [1, 2, 3, 4]
    assert all(after.previous == before.hash() for before, after in pairwise(made))
