"""Threads of OpenMP beside other processes."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from sca_kernels import share_cores, threads

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")


def test_a_crowd_is_noticed_soon_and_forgotten_after_a_calm_while():
    crowd = threads._Crowd()
    assert not any(crowd.look(share) for share in (0.01, 0.4, 0.01, 0.01, 0.01))  # a moment is no crowd
    assert [crowd.look(0.5) for _ in range(3)][-1]
    assert all(crowd.look(0.5) for _ in range(threads.CALM))
    seen = [crowd.look(0.2 if look % 10 == 0 else 0.01) for look in range(2 * threads.CALM)]
    assert seen[0]
    assert not seen[-1]  # nor is one a crowd that goes on
    assert seen == sorted(seen, reverse=True)


@linux
def test_threads_tell_how_long_they_waited_for_a_core():
    waited = threads._seconds_waited()
    assert str(os.getpid()) in waited
    assert all(seconds >= 0 for seconds in waited.values())


@linux
def test_it_watches_once_and_changes_no_setting():
    before = torch.get_num_threads(), dict(os.environ)
    assert share_cores()
    assert share_cores()
    assert [thread.name for thread in threading.enumerate()].count("share_cores") == 1
    assert (torch.get_num_threads(), dict(os.environ)) == before


TEAM = """
import os, threading, time, torch
from sca_kernels import threads

def settled(expected):
    for _ in range(200):
        if len(os.listdir("/proc/self/task")) == expected:
            return True
        time.sleep(0.05)

torch.set_num_threads(2)
torch.empty(1 << 20).fill_(1.0)
alone = len(os.listdir("/proc/self/task"))
release = threading.Event()
holder = threading.Thread(target=threads._hold_team, args=(release,))
holder.start()
assert settled(alone + 1 + len(os.sched_getaffinity(0)))
assert torch.get_num_threads() == 2
release.set()
holder.join()
assert settled(alone)
"""


@linux
def test_a_team_of_more_threads_than_cores_is_held_until_released():
    if "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("needs a torch with OpenMP")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    subprocess.run([sys.executable, "-c", TEAM], check=True, env=environment, timeout=60)


ENGAGED = """
import os, threading, time, torch
from sca_kernels import threads

seconds = iter(range(10**9))
threads._seconds_waited = lambda: {"1": next(seconds)}
threads.PERIOD, threads.CALM = 0.01, 10
assert threads.share_cores()
for _ in range(500):
    if "share_cores team" in {thread.name for thread in threading.enumerate()}:
        break
    time.sleep(0.01)
else:
    raise AssertionError("nobody holds a team")
threads._seconds_waited = lambda: {"1": 10**9}
for _ in range(500):
    if "share_cores team" not in {thread.name for thread in threading.enumerate()}:
        break
    time.sleep(0.01)
else:
    raise AssertionError("the team is held for ever")
"""


@linux
def test_while_threads_wait_the_team_is_held_and_no_longer():
    subprocess.run([sys.executable, "-c", ENGAGED], check=True, timeout=60)
