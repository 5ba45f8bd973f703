"""Conversion of checkpoints without training: pack experts into MXFP4, merge adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ossia import checkpoint
from ossia.adapt import adapters, lora
from ossia.adapt.formats import check_format
from ossia.checkpoint.contents import DENSE_DTYPES
from ossia.config import ExpertFormat, expert_formats
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.options import LoadOptions
from ossia.system import records
from ossia.system.files import check_new_folder, creating, write_json, writing


@dataclass(frozen=True)
class Loss:
    """How to measure a decoder's loss on held-out data, and the unit of the result."""

    unit: str
    of: Callable[[Decoder], float]


@dataclass(frozen=True)
class LossChange:
    unit: str
    before: float
    after: float


@dataclass(frozen=True)
class Conversion:
    """The record of a conversion, which the new folder stores as JSON.

    quantization_error: for each packed stack of experts, the norm of its change over its norm.
    """

    model: str
    quantization_error: dict[str, float]
    adapter: str | None = None
    held_out_loss: LossChange | None = None


def quantize(
    model: str, out: Path, loss: Loss | None = None, *, ignore_unknown_keys: bool = False
) -> Conversion:
    """Write a checkpoint with its experts in MXFP4 into the new folder `out`, with the record in
    quantization.json; `loss` is measured before and after.

    Raises OssiaError for a model without dense experts, or if a file cannot be read or written.
    """
    folder = checkpoint.find(model)
    config = checkpoint.read_config(folder, ignore_unknown_keys)
    formats = expert_formats(config)
    if not formats:
        raise OssiaError(f"{model}: the model has no experts to pack")
    if ExpertFormat.MXFP4 in formats:
        raise OssiaError(f"{model}: its experts are already in MXFP4")
    check_new_folder(out)
    check_format(config, ExpertFormat.MXFP4)
    options = LoadOptions(
        device="cpu", expert_memory="all", ignore_unknown_keys=ignore_unknown_keys
    )
    decoder = checkpoint.load(folder, options)
    before = loss.of(decoder) if loss else None
    with writing(out), creating(out) as new:
        errors = checkpoint.save(
            decoder,
            new,
            experts=ExpertFormat.MXFP4,
            dtype=DENSE_DTYPES[config.dtype],
            extra_files=checkpoint.text_files(folder),
        )
        change = None
        if loss and before is not None:
            packed = checkpoint.load(new, LoadOptions(device="cpu"))
            change = LossChange(loss.unit, before, loss.of(packed))
        record = Conversion(model, errors, held_out_loss=change)
        write_json(new / "quantization.json", records.to_json(record))
    return record


def merge(
    model: str,
    adapter: Path,
    out: Path,
    experts: ExpertFormat | None = None,
    *,
    ignore_unknown_keys: bool = False,
) -> Conversion:
    """Write a checkpoint with peft's adapter merged into the new folder `out`, with the record in
    merge.json. Experts keep their format unless `experts` names another.

    Raises OssiaError for an adapter of another model, or if a file cannot be read or written.
    """
    folder = checkpoint.find(model)
    config = checkpoint.read_config(folder, ignore_unknown_keys)
    check_new_folder(out)
    formats = expert_formats(config)
    if experts and not formats:
        raise OssiaError("--experts needs a model with experts")
    chosen = experts or next(iter(formats), ExpertFormat.DENSE)
    if formats:
        check_format(config, chosen)
    decoder = lora.load_base(folder, ignore_unknown_keys)
    adapters.load(decoder, adapter)
    files = checkpoint.text_files(folder)
    if (adapter / adapters.GENERATION).is_file():
        files = [*files, adapter / adapters.GENERATION]  # in the place of the model's
    with writing(out), creating(out) as new:
        errors = checkpoint.save(
            decoder,
            new,
            experts=chosen if formats else None,
            dtype=DENSE_DTYPES[config.dtype],
            extra_files=files,
        )
        record = Conversion(model, errors, adapter=adapter.name)
        write_json(new / "merge.json", records.to_json(record))
    return record
