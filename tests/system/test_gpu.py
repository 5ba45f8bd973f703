"""Why a GPU cannot be used, from what torch raises and the driver writes."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest
import torch

from ossia import OssiaError, load_model
from ossia.checkpoint import packaged_model
from ossia.system import gpu

OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build\n"
CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n"
UNEXPECTED = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
    "NumCudaDevices() that might have already set an error? "
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """machine(error, ...) has an NVIDIA GPU, and a PyTorch for CUDA that meets that error."""

    def install(error: Exception | None, driver: str = OPEN, cuda: str | None = "13.0") -> Path:
        file = tmp_path / "proc/driver/nvidia/version"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(driver)

        def is_available() -> bool:
            warnings.warn("CUDA initialization: ...\n(Triggered internally at ...)", stacklevel=1)
            return False

        def init(*_: object, **__: object) -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return tmp_path

    return install


@pytest.mark.parametrize(
    ("text", "driver", "words"),
    [
        (
            f"{UNEXPECTED}Error 803: system has unsupported display driver / cuda driver",
            OPEN,
            "(driver 580.159.03, PyTorch for CUDA 13.0) cannot be used: its driver and the "
            "driver's libraries are of different versions, as after an update: restart the "
            "machine, or the container (CUDA error 803)",
        ),
        (
            f"{UNEXPECTED}Error 804: forward compatibility was attempted on non supported HW",
            CLOSED,
            "(driver 470.57.02, PyTorch for CUDA 13.0) cannot be used: its driver is too old, and "
            "this GPU takes no newer one's libraries: update the driver",
        ),
        (
            "The NVIDIA driver on your system is too old (found version 11040). Please update your "
            "GPU driver by downloading and installing a new\nversion from the URL: ...",
            CLOSED,
            "its driver is too old: update the driver, or install a PyTorch for an older CUDA",
        ),
        (f"{UNEXPECTED}Error 802: system not yet initialized", OPEN, "start nvidia-fabricmanager"),
        (f"{UNEXPECTED}Error 999: unknown error", OPEN, "load the module nvidia_uvm again"),
        ("No CUDA GPUs are available", "", "cannot be used: No CUDA GPUs are available"),
        ("something new\nwith a second line", OPEN, "cannot be used: something new"),
    ],
)
def test_a_gpu_that_is_there_and_cannot_be_used(machine, text: str, driver: str, words: str):
    root = machine(RuntimeError(text), driver)
    if not driver:
        (root / "dev").mkdir()
        (root / "dev/nvidia0").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's own words must not come as well
        line = gpu.problem(root)
    assert line is not None
    assert words in line
    assert line.startswith("the NVIDIA GPU (")
    assert "\n" not in line


def test_no_gpu_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.problem(tmp_path) is None


def test_a_pytorch_without_cuda(machine):
    line = gpu.problem(machine(None, cuda=None))
    assert "is built without CUDA; install another" in str(line)


def test_a_gpu_that_is_hidden(machine, monkeypatch):
    root = machine(None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert str(gpu.problem(root)).endswith("CUDA_VISIBLE_DEVICES=-1 hides it")


def test_one_that_works_is_none(machine, monkeypatch):
    root = machine(None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu.problem(root) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might ...", "others have taken all of its"),
        ("CUDA error: CUDA-capable device(s) is/are busy or unavailable\n...", "for itself"),
        ("CUDA error: no kernel image is available\nfor execution", "no kernel image is available"),
    ],
)
def test_errors_of_a_first_use(text: str, words: str):
    line = gpu.reason(RuntimeError(text))
    assert words in line
    assert "\n" not in line


class TestModels:
    """What the user reads."""

    def refusal(self, device: str) -> str:
        with pytest.raises(OssiaError) as caught:
            load_model(packaged_model(), device=device)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.fixture
    def empty(self, monkeypatch: pytest.MonkeyPatch):
        def install(error: Exception) -> None:
            def refuse(*_: object, **__: object):
                raise error

            monkeypatch.setattr(sys.modules["ossia.checkpoint.load"].torch, "empty", refuse)

        return install

    def test_a_driver_that_does_not_match(self, machine, empty, monkeypatch):
        error = RuntimeError(f"{UNEXPECTED}Error 803: system has unsupported display driver")
        root, problem = machine(error), gpu.problem
        monkeypatch.setattr(gpu, "problem", lambda: problem(root))
        empty(error)
        line = self.refusal("cuda")
        assert line.startswith("device 'cuda' cannot be used: the NVIDIA GPU (driver 580.159.03")
        assert line.endswith("(CUDA error 803)")

    def test_auto_says_why_it_takes_the_cpu(self, machine, monkeypatch, caplog):
        error = RuntimeError(f"{UNEXPECTED}Error 804: forward compatibility was attempted")
        root, problem = machine(error), gpu.problem
        monkeypatch.setattr(gpu, "problem", lambda: problem(root))
        assert load_model(packaged_model(), device="auto").device.type == "cpu"
        (line,) = [record.getMessage() for record in caplog.records if record.levelno > 20]
        assert "CUDA error 804" in line

    def test_no_gpu_at_all(self, monkeypatch, empty):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(gpu, "problem", lambda: None)
        empty(AssertionError("Torch not compiled with CUDA enabled"))
        assert self.refusal("cuda") == (
            "device 'cuda' cannot be used: Torch not compiled with CUDA enabled; --device cpu "
            "computes on the CPU"
        )

    @pytest.mark.parametrize(("count", "there"), [(1, "cuda:0"), (4, "cuda:0 to cuda:3")])
    def test_a_gpu_that_does_not_exist(self, monkeypatch, empty, count, there):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        empty(RuntimeError("CUDA error: invalid device ordinal\nGPU device may be out of range"))
        assert self.refusal("cuda:7") == (
            f"device 'cuda:7' cannot be used: this process has {there}"
        )

    def test_a_gpu_that_others_have_filled_to_the_last_byte(self, monkeypatch, caplog):
        """No memory is left even for CUDA's own needs."""
        loading, fitting = (sys.modules[f"ossia.checkpoint.{name}"] for name in ("load", "fit"))

        def full(_device: torch.device) -> int:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be ...")

        monkeypatch.setattr(loading, "_device", lambda _name: torch.device("cuda", 0))
        monkeypatch.setattr(fitting, "free_memory", full)
        monkeypatch.setattr(fitting.ops, "lacking", lambda _device: None)
        line = "cuda:0 cannot be used: others have taken all of its memory"
        assert self.refusal("cuda") == line
        assert load_model(packaged_model(), device="auto").device.type == "cpu"
        assert f"device cpu: {line}" in caplog.messages
