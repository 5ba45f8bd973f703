"""The formats of experts: checks before saving, and unpacking for training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ossia import families
from ossia.config import ExpertFormat, ModelConfig, with_expert_format
from ossia.errors import OssiaError
from ossia.ops import mxfp4, packing


def check_format(config: ModelConfig, experts: ExpertFormat) -> None:
    """Raise OssiaError early, before any work is lost, if no checkpoint of this model can store its
    experts in this format.
    """
    try:
        families.to_hf(with_expert_format(config, experts))
    except ValueError as error:
        raise OssiaError(f"the experts cannot be saved as {experts}: {error}") from error


def unpacked(weights: Mapping[str, Tensor], names: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The named weights, copied into memory, with packed experts in float32."""
    dense = {}
    for name in names:
        stem = name.removesuffix(".weight")
        if name in weights:
            dense[name] = weights[name].clone(memory_format=torch.contiguous_format)
        else:
            packed = mxfp4.MXFP4(weights[f"{stem}.blocks"], weights[f"{stem}.scales"])
            dense[name] = packing.unpack(packed, torch.float32)
    return dense
