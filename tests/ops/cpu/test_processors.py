"""How many processors a process may use, read from files as Linux has them."""

import os

import pytest

from ossia.system.processors import usable


@pytest.fixture(autouse=True)
def _many_processors(monkeypatch):
    """Enough for a quota to be what decides."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def write(root, files: dict[str, str]):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_control_groups_all_it_may_run_on(tmp_path, monkeypatch):
    assert usable(tmp_path) == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5}, raising=False)
    assert usable(tmp_path) == 2


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 16), ("300000 100000", 3), ("250000 100000", 2), ("50000 100000", 1)],
)
def test_version_2(tmp_path, quota, expected):
    root = write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota})
    assert usable(root) == expected


def test_a_group_is_limited_by_those_around_it(tmp_path):
    files = {
        "proc/self/cgroup": "0::/a.slice/b:c.scope\n",
        "sys/fs/cgroup/a.slice/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/a.slice/b:c.scope/cpu.max": "600000 100000\n",
    }
    assert usable(write(tmp_path, files)) == 4
    files["sys/fs/cgroup/a.slice/b:c.scope/cpu.max"] = "200000 100000\n"
    assert usable(write(tmp_path, files)) == 2


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_version_1(tmp_path, mount):
    files = {
        "proc/self/cgroup": "5:memory:/m\n4:cpu,cpuacct:/docker/x\n0::/\n",
        f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us": "-1\n",
        f"sys/fs/cgroup/{mount}/cpu.cfs_period_us": "100000\n",
        f"sys/fs/cgroup/{mount}/docker/x/cpu.cfs_quota_us": "500000\n",
        f"sys/fs/cgroup/{mount}/docker/x/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/m/cpu.cfs_quota_us": "100000\n",  # of another controller
    }
    assert usable(write(tmp_path, files)) == 5


@pytest.mark.parametrize("text", ["", "nonsense", "1 2 3", "100000 0", "\xff"])
def test_what_cannot_be_read_limits_nothing(tmp_path, text):
    for lines in ("0::/\n", "nonsense\n", "4:cpu:relative\n", "0::/../..\n"):
        files = {"proc/self/cgroup": lines, "sys/fs/cgroup/cpu.max": text}
        assert usable(write(tmp_path, files)) == 16
