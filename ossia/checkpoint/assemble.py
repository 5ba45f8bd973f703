"""Fills a decoder from stored tensors, module by module. A weight gets its backend's layout as soon
as it is there, so that a device holds the model and at most one stack of experts more.
"""

from __future__ import annotations

import ctypes
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ossia.checkpoint import regions
from ossia.checkpoint.files import StoredTensor, read_into
from ossia.errors import OssiaError
from ossia.families.mapping import Row
from ossia.model import Decoder
from ossia.model.linear import Weighted
from ossia.ops.mxfp4 import NAN_SCALE
from ossia.system.upload import Arriving, Link, Upload

# Bytes that are sent before they are asked for: they travel while weights are re-laid.
AHEAD = 256 << 20

Stored = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class Destination:
    """Where weights go.

    device: that of modules not in `on_host`, which have it as the CPU. link: the way there, for
    devices that have one. hold: takes a parameter's name and tensor on the CPU, and returns it or
    a copy in memory that stays. checked: whether scales of MXFP4 are checked now.
    """

    device: torch.device
    link: Link | None = None
    on_host: Collection[str] = ()
    hold: Callable[[str, Tensor], Tensor] | None = None
    checked: bool = True


def fill(
    decoder: Decoder,
    rows: Iterable[Row],
    stored: Stored,
    dense: torch.dtype,
    to: Destination,
) -> None:
    """Give a decoder on the meta device its parameters, and place those not on the host. Raises
    OssiaError for a scale of MXFP4 that is NaN.
    """
    empty = decoder.state_dict()
    dtypes = parameter_dtypes(empty, dense)
    by_ours = regions.grouped(rows, "ours")
    owners = _owners(empty)
    away = [
        row.theirs
        for owner, names in owners.items()
        if owner not in to.on_host
        for name in names
        for row in by_ours[name]
    ]
    mapped = _Mapped(stored)
    with ExitStack() as stack:
        there: _Tensors = mapped
        if to.link is not None:
            there = _Sent(stack.enter_context(Upload(to.link)), stored, away)
        for owner, names in owners.items():
            module, on_host = decoder.get_submodule(owner), owner in to.on_host
            tensors, device = (mapped, torch.device("cpu")) if on_host else (there, to.device)
            for name in names:
                parameter = _assemble(by_ours[name], tensors, empty[name].shape, dtypes[name])
                parameter = parameter.to(device)
                if to.checked and name.endswith(".scales"):
                    _check_scales(parameter, stored[by_ours[name][0].theirs])
                if to.hold is not None and device.type == "cpu":
                    parameter = to.hold(name, parameter)
                own = name.removeprefix(f"{owner}.")
                module.load_state_dict({own: parameter}, strict=False, assign=True)
                del parameter  # of which a layout of its own may now be the only copy
            if isinstance(module, Weighted) and not on_host:
                module.place(owner, decoder.ops)
    assert not any(tensor.is_meta for tensor in decoder.state_dict().values())


def parameter_dtypes(empty: Mapping[str, Tensor], dense: torch.dtype) -> dict[str, torch.dtype]:
    """The dtype of each parameter: `dense`, or the integer type of packed ones."""
    return {
        name: dense if tensor.is_floating_point() else tensor.dtype
        for name, tensor in empty.items()
    }


def _owners(names: Iterable[str]) -> dict[str, list[str]]:
    """The parameters of each module, in order."""
    owners: dict[str, list[str]] = {}
    for name in names:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    return owners


class _Tensors(Protocol):
    """Stored tensors, on some device."""

    def take(self, name: str) -> Tensor: ...


class _Mapped:
    """As views of the mapped files."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored

    def take(self, name: str) -> Tensor:
        return self._stored[name].tensor()


class _Sent:
    """Sent to a device, each once and some before they are asked for, and kept until their last
    use.
    """

    def __init__(self, upload: Upload, stored: Stored, names: Collection[str]) -> None:
        """names: those that will be taken, in this order, each as often as it will be."""
        self._upload, self._stored = upload, stored
        self._uses = Counter(names)
        self._later = deque(dict.fromkeys(names))
        self._under_way: dict[str, Arriving] = {}
        self._ahead = 0
        self._here: dict[str, Tensor] = {}

    def take(self, name: str) -> Tensor:
        if name not in self._here:
            self._start_some()
            arriving = self._under_way.pop(name)
            self._ahead -= arriving.nbytes
            self._here[name] = arriving.tensor()
            self._start_some()
        self._uses[name] -= 1
        return self._here[name] if self._uses[name] else self._here.pop(name)

    def _start_some(self) -> None:
        """Start the next ones, at least one."""
        while self._later:
            name = self._later[0]
            stored = self._stored[name]
            if self._under_way and self._ahead + stored.nbytes > AHEAD:
                return
            source = _InFile(stored)
            self._under_way[name] = self._upload.start(source, stored.shape, stored.dtype)
            self._ahead += stored.nbytes
            self._later.popleft()


@dataclass(frozen=True)
class _InFile:
    """The bytes of a tensor in its file."""

    stored: StoredTensor

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def read(self, start: int, buffer: Tensor) -> None:
        memory = (ctypes.c_char * len(buffer)).from_address(buffer.data_ptr())
        read_into(self.stored.file, self.stored.offset + start, memoryview(memory).cast("B"))


def _assemble(rows: list[Row], tensors: _Tensors, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """One parameter: a view of a stored tensor if it is a single region, else filled region by
    region.
    """

    def region(row: Row) -> Tensor:
        theirs = tensors.take(row.theirs)
        return (theirs.mT if row.transpose else theirs)[row.their_index]

    first = region(rows[0])
    if not rows[0].our_index:
        return first.to(dtype)
    ours = torch.empty(shape, dtype=dtype, device=first.device)
    ours[rows[0].our_index] = first
    for row in rows[1:]:
        ours[row.our_index] = region(row)
    return ours


def _check_scales(scales: Tensor, stored: StoredTensor) -> None:
    if scales.numel() and int(scales.amax()) == NAN_SCALE:  # amax is the fastest pass over bytes
        where = (scales == NAN_SCALE).nonzero()[0].tolist()
        raise OssiaError(
            f"{stored.file}: tensor {stored.name} has the scale byte {NAN_SCALE} at {where}, "
            "which is NaN in MXFP4; copy the file again"
        )
