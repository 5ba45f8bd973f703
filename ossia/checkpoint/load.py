"""Loads a checkpoint folder into a Decoder. Each parameter is filled exactly once, and each tensor
is used or ignored by name; anything else is an error.

Copies are avoided: on the CPU, tensors of the right dtype stay views of the mapped files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ossia import ops
from ossia.checkpoint.assemble import Destination, fill
from ossia.checkpoint.contents import Contents, read_contents
from ossia.checkpoint.files import StoredTensor, in_memory, refuse_cut
from ossia.checkpoint.fit import NOTHING, Asking, Beside, Needs, Placement, check_share, place
from ossia.errors import OssiaError, brief
from ossia.families.mapping import Layout
from ossia.model import Decoder, sharding
from ossia.model.linear import Weighted
from ossia.offload import placing
from ossia.offload import plan as planning
from ossia.offload.store import StoredStack
from ossia.ops.int8 import Int8
from ossia.ops.mxfp4 import MXFP4
from ossia.options import Load, LoadOptions
from ossia.system import gpu, huge_pages
from ossia.system.upload import link_to

_log = logging.getLogger(__name__)


def fit(folder: Path, options: LoadOptions, asking: Asking) -> Placement:
    """Where `load` is to put a model that needs room beside its weights. Reads no weights. Raises
    OssiaError as `load` does.
    """
    found = _read(folder, options)
    return _placement(found, options, asking(found.config, found.dense))


def load(
    folder: str | os.PathLike[str],
    options: LoadOptions = LoadOptions(),
    placement: Placement | None = None,
) -> Decoder:
    """The model in a checkpoint folder, in eval mode; its parameters require no gradient.

    Of the options:
    dtype is that of the dense weights; default: the checkpoint's. Packed experts stay packed.
    device "auto" takes cuda where that is faster and the model fits (`ossia.checkpoint.fit`), then
    mps, then cpu, and logs its choice.
    load "map" leaves the weights in the mapped files on the CPU, whose pages the system may drop;
    "copy" reads all of them into memory. Weights on a GPU are in its memory either way.
    expert_memory is for packed experts to keep in memory; the others are read from disk on demand.
    "all" maps all experts. None maps them if the checkpoint fits into free memory, and otherwise
    keeps as many as fit; the choice is logged. On a GPU it is for experts to keep in its memory,
    packed or not; the others stay in the host's and are computed there.
    dense "int8" quantizes the dense matrices at load (`Decoder.to_int8`), which changes the numbers
    slightly. Such a model cannot be saved.
    activations "int8" rounds what prompts multiply with packed experts and int8 matrices.
    Raises OssiaError, in one line that names file and tensor or key, if the checkpoint is
    incomplete or does not fit its config.json.
    """
    if options.devices > 1:
        raise OssiaError("--devices is for generating, chatting and serving; leave it out here")
    return _load(Path(folder), options, placement)


def _read(folder: Path, options: LoadOptions) -> Contents:
    dtype = options.dtype and options.dtype.value
    return read_contents(folder, options.ignore_unknown_keys, dtype)


def _placement(found: Contents, options: LoadOptions, beside: Beside) -> Placement:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    target = _device(options.device)
    if target.type != "cuda":
        if options.device == "auto":
            if (problem := gpu.problem()) is not None:
                _log.warning("%s", problem)
            _log.info("device %s: the first available of cuda, mps, cpu", target)
        return Placement(target)
    needs = Needs.of(found.empty(), found.dense)
    return place(needs, options, target, found.folder, beside)


def _load(
    folder: Path,
    options: LoadOptions,
    placement: Placement | None = None,
    backend: ops.Backend | None = None,
) -> Decoder:
    """As `load`; backend: instead of the one that the options name."""
    found = _read(folder, options)
    placement = placement or _placement(found, options, NOTHING)
    layout, stored, target = found.layout, found.stored, placement.device
    backend = backend or ops.select(options.backend, target, rounds=options.activations is not None)
    decoder = found.empty(backend)
    found.check(decoder)
    plan = None
    if target.type != "cuda":
        whole = sum(tensor.nbytes for tensor in stored.values())
        plan = planning.plan(options.expert_memory, _packed_layers(stored, layout), whole, target)
    if options.load is Load.copy and target.type == "cpu":
        if plan is not None:
            raise OssiaError(
                "load copy needs all weights in memory, but some experts stay on disk: use load map"
            )
        stored = in_memory(stored)
    decoder.requires_grad_(False).eval()
    to = _destination(placement, options, plan, tied=decoder.unembedding is None)
    with _enough_memory(target):
        fill(decoder, layout.rows, stored, found.dense, to)
        refuse_cut(stored)
        if plan is not None:
            planning.attach(decoder, plan)
        if placement.on_host:
            host = ops.select("auto", "cpu")
            placing.attach(decoder, placement.on_host, host, sends=placement.sends)
        if options.dense is not None:
            _quantize(decoder, folder)
    if options.activations is not None:
        check_activations(decoder, str(folder))
    decoder.origin = folder
    if target.type == "cuda":
        torch.cuda.empty_cache()  # of weights before they were re-laid
    return decoder


@contextmanager
def _enough_memory(device: torch.device) -> Iterator[None]:
    """Raises OssiaError where a device's memory runs out after all: others have taken some since
    it was looked at.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not gpu.ran_out(error):
            raise
        instead = "" if device.type == "cpu" else ", or use --device cpu"
        raise OssiaError(
            f"the memory of {device} ran out while weights were loaded: other programs have taken "
            f"some of it meanwhile; end them{instead}"
        ) from error


def _quantize(decoder: Decoder, folder: Path) -> None:
    try:
        decoder.to_int8()
    except ValueError as error:
        raise OssiaError(f"{folder}: {error}") from error
    _log.info("dense weights: int8, quantized at load")


def check_activations(decoder: Decoder, name: str) -> None:
    """Log the weights that `--activations int8` is for, and raise OssiaError if a model, which
    messages call `name`, has none.
    """
    weights = [module.value for module in decoder.modules() if isinstance(module, Weighted)]
    served = [
        what
        for what, kind in (("experts in MXFP4", MXFP4), ("matrices in int8", Int8))
        if any(isinstance(weight, kind) for weight in weights)
    ]
    if not served:
        raise OssiaError(
            f"{name}: --activations int8 is for experts in MXFP4 and matrices in int8, and this "
            "model has neither in memory: add --dense int8, or leave it out"
        )
    others = "" if decoder.is_int8 else "; others exactly, unless --dense int8 quantizes them"
    _log.info("activations: int8, where prompts multiply %s%s", " and ".join(served), others)


def load_share(folder: Path, options: LoadOptions, rank: int) -> Decoder:
    """The share that process `rank` of `options.devices` has of a model, on options.device. Raises
    OssiaError as `load`, and for a model that does not divide among them.
    """
    if options.expert_memory not in (None, "all"):
        raise OssiaError("--devices keeps all experts in memory: leave --expert-memory out")
    target = _device(options.device)
    found = _read(folder, options)
    check_share(Needs.of(found.empty(), found.dense), options.devices, target)
    mapped = replace(
        options, device="cpu", load=Load.map, expert_memory="all", dense=None, devices=1
    )
    try:
        decoder = sharding.shard(
            _load(folder, mapped, backend=ops.REFERENCE),
            sharding.Rank(rank, options.devices),
            ops.select(options.backend, target),
            target,
        )
    except ValueError as error:
        raise OssiaError(f"{folder}: --devices {options.devices}: {error}") from error
    if options.dense is not None:
        _quantize(decoder, folder)
    return decoder


def check(options: LoadOptions) -> None:
    """Raise OssiaError for a device or a backend that cannot be used here. `load` does so too;
    this needs no checkpoint, which may have to be downloaded first.
    """
    device = _device(options.device)
    ops.check(options.backend, device, rounds=options.activations is not None)


def _destination(
    placement: Placement, options: LoadOptions, plan: planning.Plan | None, *, tied: bool
) -> Destination:
    device = placement.device
    if plan is not None:  # scales are checked when they are read
        return Destination(device, hold=partial(planning.held, tied=tied), checked=False)
    link, on_host = link_to(device), placing.modules(placement.on_host)
    if on_host and options.load is Load.copy:
        return Destination(device, link, on_host, lambda _name, tensor: huge_pages.copy(tensor))
    return Destination(device, link, on_host)


def _device(name: str) -> torch.device:
    if name == "auto":
        cuda, mps = gpu.available(), torch.backends.mps.is_available()
        if cuda:
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if mps else "cpu")
    try:
        device = torch.empty(0, device=name).device  # with its number
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without it
        raise OssiaError(f"device {name!r} cannot be used: {_why(name, error)}") from error
    return device


def _why(name: str, error: Exception) -> str:
    """Why a device cannot be used."""
    if not name.startswith("cuda"):
        try:
            torch.device(name)
        except RuntimeError:  # names the twenty devices of all builds of torch
            return "there is no such device; give auto, cpu, cuda, cuda:N or mps"
        return brief(str(error).partition("\n")[0])
    if gpu.available():
        count = torch.cuda.device_count()
        if "ordinal" in str(error):
            there = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            return f"this process has {there}"
        return gpu.reason(error)
    return gpu.problem() or f"{gpu.reason(error)}; --device cpu computes on the CPU"


def _packed_layers(
    stored: Mapping[str, StoredTensor], layout: Layout
) -> dict[int, list[StoredStack]]:
    """By layer, the tensors that are complete stacks of packed matrices."""
    whole = {row.ours: stored[row.theirs] for row in layout.rows if not row.their_index}
    layers: dict[int, list[StoredStack]] = {}
    for name in whole:
        stem, found, _ = name.partition(planning.PARTS[0])
        if found:
            parts = [(whole[stem + part], part) for part in planning.PARTS]
            layers[int(stem.split(".")[1])] = [
                StoredStack(tensor.file, tensor.offset, tensor.shape, part.endswith("scales"))
                for tensor, part in parts
            ]
    return dict(sorted(layers.items()))
