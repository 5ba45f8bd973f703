"""The program of each process in `test_sharding`: its share of tiny models of every family.

    python -m tests.model.ranks FILE

The first writes, by case, the logits of the shares together and those of the whole model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.distributed as dist

from ossia.config import ExpertFormat, ModelConfig, MoEConfig, with_expert_format
from ossia.model import Decoder
from ossia.model.sharding import Rank, shard
from ossia.ops import REFERENCE, Backend
from ossia.ops.mxfp4 import quantize
from ossia.ops.weight import dense
from tests.models import build, gpt2_like, gpt_oss_like, moe_of, qwen3_like, qwen3_moe_like, small


def even_gpt2() -> ModelConfig:
    """Four heads, and 29 hidden units, which do not divide evenly."""
    config = gpt2_like()
    attention = replace(config.layers[0].attention, num_heads=4, num_kv_heads=4)
    layer = replace(config.layers[0], attention=attention)
    return replace(config, layers=(layer,) * 2)


def packed_gpt_oss() -> Decoder:
    """Experts of three blocks of hidden units each."""
    config = small()
    layers = []
    for layer in config.layers:
        assert isinstance(layer.feedforward, MoEConfig)
        attention = replace(layer.attention, num_heads=4, num_kv_heads=2)
        feedforward = replace(layer.feedforward, intermediate_size=96)
        layers.append(replace(layer, attention=attention, feedforward=feedforward))
    unpacked = build(replace(config, layers=tuple(layers)))
    weights = dict(unpacked.state_dict())
    for index in range(len(layers)):
        for name in ("gate_up", "down"):
            module = getattr(moe_of(unpacked, index), name)
            stem = f"layers.{index}.feedforward.{name}"
            del weights[f"{stem}.weight"]
            for part, tensor in quantize(dense(module.value)).tensors().items():
                weights[f"{stem}.{part}"] = tensor
    return Decoder.assembled(with_expert_format(unpacked.config, ExpertFormat.MXFP4), weights)


def one_key_head() -> ModelConfig:
    """Which both processes have."""
    config = qwen3_like()
    attention = replace(config.layers[0].attention, num_kv_heads=1)
    return replace(config, layers=(replace(config.layers[0], attention=attention),) * 2)


def backends() -> Iterator[Backend]:
    yield REFERENCE
    try:
        from ossia.ops import cpu
    except ImportError:  # no compiler, so no native kernels
        return
    yield cpu.CPU


MODELS = {
    "gpt2": lambda: build(even_gpt2()),
    "qwen3": lambda: build(qwen3_like()),
    "qwen3-one-key-head": lambda: build(one_key_head()),
    "qwen3-moe": lambda: build(qwen3_moe_like()),
    "gpt-oss": lambda: build(gpt_oss_like()),
    "gpt-oss-packed": packed_gpt_oss,
}


@torch.inference_mode()
def main(path: str) -> None:
    dist.init_process_group("gloo")
    index, size = dist.get_rank(), dist.get_world_size()
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name, make in MODELS.items():
        whole = make().eval()
        whole.requires_grad_(False)
        tokens = torch.arange(24).view(2, 12) * 7 % whole.config.vocab_size
        alone = Decoder.assembled(whole.config, whole.state_dict())(tokens)
        for backend in backends():
            for experts in (False, True) if "qwen3-moe" in name or "gpt-oss" in name else (False,):
                part = shard(whole, Rank(index, size, whole_experts=experts), backend, "cpu")
                held = sum(tensor.numel() for tensor in part.state_dict().values())
                assert held < sum(tensor.numel() for tensor in whole.state_dict().values())
                case = f"{name}, {backend.name}{', whole experts' if experts else ''}"
                found[case] = part(tokens), alone
    if index == 0:
        torch.save(found, path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
