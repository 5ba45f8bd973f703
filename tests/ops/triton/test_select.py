"""The backend is chosen for a card that can run it, and otherwise refused in one line."""

import logging
import sys

import pytest
import torch

from ossia.errors import OssiaError
from ossia.ops import REFERENCE, check, select
from ossia.ops.triton import TRITON

CUDA = torch.device("cuda", 0)


@pytest.fixture
def card(monkeypatch):
    """A machine with a card of this name and compute capability."""

    def install(name: str, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", None)

    return install


@pytest.mark.parametrize("name", ["auto", "triton"])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (12, 1)])
def test_a_card_gets_the_kernels(card, caplog, name, capability):
    card("NVIDIA A100", capability)
    with caplog.at_level(logging.INFO):
        assert select(name, CUDA) is TRITON
    assert caplog.messages == ["backend: triton (NVIDIA A100)"]


def test_a_card_that_is_too_old(card, caplog):
    card("Tesla T4", (7, 5))
    lacking = "the Tesla T4 has compute capability 7.5, and the kernels need 8.0"
    with pytest.raises(OssiaError) as error:
        select("triton", CUDA)
    assert str(error.value) == (f"backend triton cannot run: {lacking}; use --backend reference")
    assert select("auto", CUDA) is REFERENCE
    assert caplog.messages == [f"backend: reference, plain PyTorch and slow; {lacking}"]
    assert select("reference", CUDA) is REFERENCE


def test_an_installation_without_triton(card, caplog, monkeypatch):
    card("NVIDIA A100", (8, 0))
    for name in [name for name in sys.modules if name.startswith("ossia.ops.triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("ossia.ops.triton")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(
        OssiaError, match=r"triton cannot be imported .*: pip install 'ossia\[gpu\]'"
    ):
        select("triton", CUDA)
    assert select("auto", CUDA) is REFERENCE
    assert "plain PyTorch and slow; the package triton cannot be imported" in caplog.text


def test_a_pytorch_for_other_cards(card, monkeypatch):
    card("AMD Instinct MI300X", (9, 4))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(OssiaError, match="for NVIDIA's cards, and this PyTorch is for AMD's"):
        select("triton", CUDA)


def test_the_cpu_does_not_run_the_kernels():
    with pytest.raises(OssiaError, match="triton runs on a CUDA card, not on cpu: use --device"):
        check("triton", "cpu")
