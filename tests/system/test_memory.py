"""How much memory there is: of the machine, and of the control groups around this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from ossia import OssiaError
from ossia.system.memory import available_memory, format_size, parse_size

GIB = 1 << 30


def machine(folder: Path, free: int, groups: str) -> Path:
    (folder / "proc/self").mkdir(parents=True)
    meminfo = f"MemTotal: 99999999 kB\nMemFree: 5 kB\nMemAvailable:   {free >> 10} kB\n"
    (folder / "proc/meminfo").write_text(meminfo)
    (folder / "proc/self/cgroup").write_text(groups)
    return folder


def group(folder: Path, names: tuple[str, str], limit: object, used: int, stat: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)


def available(folder: Path) -> int | None:
    return available_memory(folder)


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2 = ("memory.max", "memory.current")


def test_the_machine_alone(tmp_path: Path) -> None:
    assert available(machine(tmp_path, 5 * GIB, "0::/\n")) == 5 * GIB


def test_the_tightest_group_of_version_2_counts_and_cached_files_do_not(tmp_path: Path) -> None:
    machine(tmp_path, 50 * GIB, "0::/a/b\n")
    group(tmp_path / "sys/fs/cgroup/a/b", V2, "max", GIB, "inactive_file 0\nactive_file 0\n")
    stat = f"anon 7\ninactive_file {GIB}\nactive_file {GIB // 2}\n"
    group(tmp_path / "sys/fs/cgroup/a", V2, 8 * GIB, 4 * GIB, stat)
    assert available(tmp_path) == 5 * GIB + GIB // 2


@pytest.mark.parametrize("seen", ["docker/1234", ""])
def test_version_1_also_where_the_path_is_that_of_the_host(tmp_path: Path, seen: str) -> None:
    machine(tmp_path, 50 * GIB, "9:cpu:/x\n4:hugetlb,memory:/docker/1234\n0::/docker\n")
    stat = f"inactive_file 3\ntotal_inactive_file {GIB}\ntotal_active_file 0\n"
    group(tmp_path / "sys/fs/cgroup/memory" / seen, V1, 3 * GIB, 2 * GIB, stat)
    assert available(tmp_path) == 2 * GIB
    group(tmp_path / "sys/fs/cgroup/memory" / seen, V1, 9223372036854771712, 2 * GIB, stat)
    assert available(tmp_path) == 50 * GIB


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    machine(tmp_path, 50 * GIB, "0::/\n")
    group(tmp_path / "sys/fs/cgroup", V2, GIB, 2 * GIB, "inactive_file 0\nactive_file 0\n")
    assert available(tmp_path) == 0


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert available(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("12GiB", 12 * GIB),
        ("500 MB", 500_000_000),
        ("1.5g", 1_500_000_000),
        ("77", 77),
        ("2kib", 2048),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "1 TB x", "1e9", "0x10", "twelve"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OssiaError, match="write 12GiB, 500MB or a number of bytes"):
        parse_size(text)


def test_sizes_are_shown_in_units_that_fit() -> None:
    assert format_size(16_000_000_000) == "16.0 GB"
    assert format_size(13_219_200) == "13.2 MB"
