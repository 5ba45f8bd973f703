"""The kernels of 64-bit ARM on another processor: cross-compiled, and run by an emulator."""

import fcntl
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@lru_cache
def emulated_driver() -> tuple[str, str]:
    """The command that runs native/tests/driver.cpp, built if its sources changed. Skips, saying
    so, where a tool for it is missing.
    """
    for tool in (COMPILER, EMULATOR, "cmake"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool}, so no emulated NEON")
    build = ROOT / "build" / "aarch64"
    build.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", "-S", ROOT / "native", "-B", build, "-DOSSIA_DRIVER=ON"]
    target = {
        "SYSTEM_NAME": "Linux",
        "SYSTEM_PROCESSOR": "aarch64",
        "CXX_COMPILER": COMPILER,
    }
    with (build / "lock").open("w") as lock:  # of the test processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (
            [*configure, *(f"-DCMAKE_{name}={value}" for name, value in target.items())],
            ["cmake", "--build", build, "--parallel", "2"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    return EMULATOR, str(build / "driver")
