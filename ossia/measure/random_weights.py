"""Models of any preset's shapes with random weights: what speed is measured on without a download.

Tensors are windows of one random vector, rows that begin a few elements apart: drawing
each element of a large model would take minutes. Values repeat between rows, which no kernel can
tell, and the windows take no memory until they are copied.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.model import Decoder
from ossia.model.norm import LayerNorm, RMSNorm
from ossia.ops import REFERENCE, Backend

_STEP = 61  # elements between the beginnings of two rows
_OFFSETS = 1 << 16  # tensors begin at different offsets below this
_SCALES = (116, 121)  # of MXFP4 blocks: weights of about 0.02, as in trained models


def random_decoder(
    config: ModelConfig, backend: Backend = REFERENCE, *, copy: bool = True, seed: int = 0
) -> Decoder:
    """A Decoder in eval mode with random weights in the config's dtype.

    copy: give each parameter memory of its own, as a loaded model has. Without, the parameters
    overlap: enough to save the model, and of little memory whatever its size.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        decoder = Decoder(config, backend)
    dtype = getattr(torch, config.dtype)
    empty, modules = decoder.state_dict(), dict(decoder.named_modules())
    size = _OFFSETS + max(_rows(name, t) * _STEP + _cols(name, t) for name, t in empty.items())
    normal = torch.randn(size, generator=generator).mul_(config.init_std).to(dtype)
    nibbles = torch.randint(256, (size,), dtype=torch.uint8, generator=generator)
    scales = torch.randint(*_SCALES, (size,), dtype=torch.uint8, generator=generator)
    state = {}
    for name, tensor in empty.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and isinstance(modules[module], LayerNorm | RMSNorm):
            state[name] = torch.ones(tensor.shape, dtype=dtype)
            continue
        source = {"blocks": nibbles, "scales": scales}.get(kind, normal)
        offset = int(torch.randint(_OFFSETS, (), generator=generator))
        window = _window(source, tensor.shape, _cols(name, tensor), offset)
        state[name] = window.clone(memory_format=torch.contiguous_format) if copy else window
    decoder.load_state_dict(state, assign=True)
    return decoder.requires_grad_(False).eval()


def _cols(name: str, tensor: Tensor) -> int:
    """Elements that lie together: a row, of whole blocks where it is packed."""
    return prod(tensor.shape[-2:]) if name.endswith(".blocks") else tensor.shape[-1]


def _rows(name: str, tensor: Tensor) -> int:
    return tensor.numel() // _cols(name, tensor)


def _window(source: Tensor, shape: torch.Size, cols: int, offset: int) -> Tensor:
    """Overlapping rows of a vector as a tensor of that shape."""
    strides, together = [], 1
    for size in reversed(shape):
        strides.append(together if together < cols else together // cols * _STEP)
        together *= size
    return source.as_strided(shape, strides[::-1], offset)
