"""The number of threads of a call: the preferred one, but no more than the cores and a control group's CPU quota allow."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from processes import python

from cupycorr import spatial_correlation_sample
from cupycorr._cpu import cores, workers


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Return a function that sets the cores and the quota of the machine, at first 4 and none; no variable is set."""

    def put(runnable, quota=None):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(10, 10 + runnable)), raising=False)
        monkeypatch.setattr(cores, "_quota_of_this_process", lambda: quota)

    for name in ("CUPYCORR_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    put(4)
    return put


# The preference ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "count"), [("1", 1), ("3", 3), ("0002", 2)])
def test_our_variable_says_how_many_threads(asked, count, monkeypatch):
    monkeypatch.setenv("CUPYCORR_NUM_THREADS", asked)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert workers.thread_count() == count
    assert workers.thread_rule() == f"{count}: CUPYCORR_NUM_THREADS"


@pytest.mark.parametrize(("asked", "count"), [("1", 1), ("3,2,1", 3), (" 2 , 8", 2)])
def test_openmps_variable_says_so_where_ours_is_not_set(asked, count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    with workers.prefer_threads(4):
        assert workers.thread_count() == count
    assert workers.thread_rule() == f"{count}: OMP_NUM_THREADS"


@pytest.mark.parametrize("nonsense", ["", "0", "-2", "many", "2x", ",3", "1.5", "\N{ARABIC-INDIC DIGIT TWO}", "9" * 5000])
def test_nonsense_in_openmps_variable_is_ignored(nonsense, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
    assert workers.thread_count() == 4
    with workers.prefer_threads(2):
        assert workers.thread_count() == 2


def test_nonsense_in_our_variable_is_refused(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    for nonsense in ("", "0", "2x", "9" * 5000):
        monkeypatch.setenv("CUPYCORR_NUM_THREADS", nonsense)
        with pytest.raises(ValueError, match="must be a positive integer, got CUPYCORR_NUM_THREADS="):
            workers.thread_count()


def test_a_front_ends_preference_holds_for_calls_inside_its_context_in_its_own_thread():
    elsewhere = []
    with workers.prefer_threads(3):
        assert workers.thread_count() == 3
        assert workers.thread_rule() == "3: the front end"
        thread = threading.Thread(target=lambda: elsewhere.append(workers.thread_count()))
        thread.start()
        thread.join()
        with workers.prefer_threads(1):
            assert workers.thread_count() == 1
        with workers.prefer_threads(None):
            assert workers.thread_count() == 4
        with pytest.raises(ArithmeticError), workers.prefer_threads(2):
            raise ArithmeticError
        assert workers.thread_count() == 3
    assert workers.thread_count() == 4
    assert elsewhere == [4]


def test_a_front_ends_preference_holds_for_the_helpers_of_a_call():
    barrier, seen = threading.Barrier(2), []

    def task(_):
        barrier.wait(60)
        seen.append((threading.get_ident(), workers.thread_count()))

    with workers.prefer_threads(3):
        workers.run(task, range(2), 2)
    workers.run(task, range(2), 2)
    assert [count for _, count in seen] == [3, 3, 4, 4]
    assert all(seen[first][0] != seen[first + 1][0] for first in (0, 2))


# The ceiling ---------------------------------------------------------------------------------------------------------


def test_without_a_preference_all_cores_are_used_that_this_process_may_run_on(machine, monkeypatch):
    machine(3)
    assert workers.thread_rule() == "3: the cores that this process may run on"
    assert workers.thread_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert workers.thread_count() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.thread_count() == 1


@pytest.mark.parametrize(("cpus", "quota", "count"), [(8, 2, 2), (2, 8, 2), (8, None, 8), (3, 3, 3)])
def test_the_smaller_of_cores_and_quota_counts(cpus, quota, count, machine):
    machine(cpus, quota)
    assert workers.thread_count() == count
    assert workers.thread_rule().startswith(f"{count}: the CPU quota" if count < cpus else f"{count}: the cores")


@pytest.mark.parametrize("variable", ["CUPYCORR_NUM_THREADS", "OMP_NUM_THREADS"])
def test_no_preference_exceeds_the_ceiling(variable, machine, monkeypatch):
    machine(2)
    monkeypatch.setenv(variable, "16")
    assert workers.thread_count() == 2
    assert workers.thread_rule() == f"2: the cores that this process may run on; {variable} asks for 16"
    machine(8, 3)
    assert workers.thread_count() == 3
    monkeypatch.delenv(variable)
    with workers.prefer_threads(16):
        assert workers.thread_count() == 3


def test_a_change_of_the_affinity_or_a_variable_counts_at_once(machine, monkeypatch):
    assert workers.thread_count() == 4
    machine(2)
    assert workers.thread_count() == 2
    monkeypatch.setenv("CUPYCORR_NUM_THREADS", "1")
    assert workers.thread_count() == 1


# A team of a size of its own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 8, 64])
def test_a_team_of_any_size_is_used_whatever_the_machine(size, monkeypatch):
    monkeypatch.setenv("CUPYCORR_NUM_THREADS", "2")
    barrier, seen, counts = threading.Barrier(size), [], []

    def task(_):
        barrier.wait(60)
        seen.append(threading.get_ident())
        counts.append(workers.thread_count())

    with workers.team_of(size):
        workers.run(task, range(size), workers.thread_count())
    assert len(set(seen)) == size
    assert set(counts) == {size}
    assert workers.thread_count() == 2


@pytest.mark.parametrize("variant", ["simd", "blas"])
def test_a_call_runs_in_a_team_of_that_size(variant, monkeypatch):
    asked, run, submit = [], workers.run, workers.submit
    monkeypatch.setattr(workers, "run", lambda task, items, threads: (asked.append(threads), run(task, items, threads)))
    monkeypatch.setattr(workers, "submit", lambda function, count: (asked.append(count + 1), submit(function, count)))
    x = np.ones((4, 64, 64, 64), np.float32)
    with workers.team_of(3):
        spatial_correlation_sample(x, x, patch_size=9, variant=variant)
    assert max(asked) == 3


# Quotas --------------------------------------------------------------------------------------------------------------


def group_files(root, files):
    """Return a folder with these files of control groups and of this process."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text) if isinstance(text, str) else path.write_bytes(text)
    return root


SELF = "proc/self/cgroup"
V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"

QUOTAS = {
    "version 2": ({SELF: "0::/a/b\n", f"{V2}/a/b/cpu.max": "200000 100000\n"}, 2),
    "version 2, rounded up": ({SELF: "0::/a\n", f"{V2}/a/cpu.max": "150000 100000\n"}, 2),
    "version 2, less than a core": ({SELF: "0::/a\n", f"{V2}/a/cpu.max": "1000 100000\n"}, 1),
    "version 2, of a group above": (
        {
            SELF: "0::/a/b/c\n",
            f"{V2}/a/b/c/cpu.max": "max 100000",
            f"{V2}/a/cpu.max": "300000 100000",
            f"{V2}/a/b/cpu.max": "9 1",
        },
        3,
    ),
    "version 2, of the own group below a larger one": (
        {SELF: "0::/a/b\n", f"{V2}/a/b/cpu.max": "100000 50000", f"{V2}/a/cpu.max": "400000 100000"},
        2,
    ),
    "version 2, of another group": ({SELF: "0::/a\n", f"{V2}/b/cpu.max": "100000 100000"}, None),
    "version 2, a container that sees its group as the topmost": ({SELF: "0::/\n", f"{V2}/cpu.max": "250000 100000"}, 3),
    "version 2, a path outside of what is mounted": ({SELF: "0::/../../x\n", f"{V2}/cpu.max": "250000 100000"}, 3),
    "version 2, no period": ({SELF: "0::/\n", f"{V2}/cpu.max": "250000"}, 3),
    "version 2, no quota": ({SELF: "0::/a\n", f"{V2}/a/cpu.max": "max 100000\n"}, None),
    "version 1": (
        {SELF: "5:cpu,cpuacct:/a\n", f"{V1}/a/cpu.cfs_quota_us": "400000\n", f"{V1}/a/cpu.cfs_period_us": "100000\n"},
        4,
    ),
    "version 1, mounted as cpu": (
        {SELF: "1:cpu:/a\n2:memory:/b\n", "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "50000", f"{V2}/b/cpu.max": "9 1"},
        1,
    ),
    "version 1, of a group above": (
        {
            SELF: "5:cpuacct,cpu:/a/b\n",
            "sys/fs/cgroup/cpuacct,cpu/a/b/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "7",
        },
        1,
    ),
    "version 1, a container told a path of the host": (
        {SELF: "5:cpu,cpuacct:/docker/12ab\n", f"{V1}/cpu.cfs_quota_us": "120000", f"{V1}/cpu.cfs_period_us": "50000"},
        3,
    ),
    "version 1, no quota": ({SELF: "5:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n"}, None),
    "both versions": (
        {SELF: "5:cpu:/a\n0::/b\n", f"{V2}/cpu/a/cpu.cfs_quota_us": "500000", f"{V2}/unified/b/cpu.max": "300000 100000"},
        3,
    ),
    "no list of groups": ({f"{V2}/cpu.max": "200000 100000"}, 2),
    "nothing": ({}, None),
    "odd lines": ({SELF: "\n:\n::\nx\n0::/a:b\n", f"{V2}/a:b/cpu.max": "200000 100000"}, 2),
    "no text": ({SELF: b"\xff\xfe", f"{V2}/cpu.max": b"\xff"}, None),
    "no numbers": ({SELF: "0::/\n", f"{V2}/cpu.max": "many 100000"}, None),
    "empty": ({SELF: "0::/\n", f"{V2}/cpu.max": ""}, None),
    "no time in a period": ({SELF: "0::/\n", f"{V2}/cpu.max": "100000 0"}, None),
    "a number of thousands of digits": ({SELF: "0::/\n", f"{V2}/cpu.max": "9" * 5000}, None),
    "a folder in the place of a file": ({SELF: "0::/\n", f"{V2}/cpu.max/x": ""}, None),
}


@pytest.mark.parametrize(("files", "cpus"), QUOTAS.values(), ids=QUOTAS.keys())
def test_the_quota_of_a_control_group_pays_for_so_many_cores(files, cpus, tmp_path):
    assert cores.quota(group_files(tmp_path, files)) == cpus


def test_the_quota_of_this_machine_can_be_read():
    found = cores.quota(Path("/"))
    assert found is None or found >= 1


# info ----------------------------------------------------------------------------------------------------------------

INFO = """
    import os
    os.sched_getaffinity = lambda process: set(range(4))
    from cupycorr import cli
    from cupycorr._cpu import cores
    cores._quota_of_this_process = lambda: 3
    cli.main(["info", "--verbose"])
"""


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "3: the CPU quota of the control group"),
        ({"OMP_NUM_THREADS": "2,4"}, "2: OMP_NUM_THREADS"),
        ({"CUPYCORR_NUM_THREADS": "9"}, "3: the CPU quota of the control group; CUPYCORR_NUM_THREADS asks for 9"),
    ],
)
def test_info_says_which_rule_decides_on_the_threads(variables, says):
    told = python(INFO, **{"CUPYCORR_NUM_THREADS": None, "OMP_NUM_THREADS": None, **variables})
    assert [line.split(maxsplit=1)[1] for line in told.splitlines() if line.startswith("threads")] == [says]
