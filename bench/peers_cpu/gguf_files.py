"""A Decoder as the GGUF file that llama.cpp reads: the same numbers in its layout.

Experts in MXFP4 are repacked bit for bit. Dense matrices become Q8_0, as in the published files,
or stay bfloat16; the rest is float32. Without a vocabulary inside, ids go in and come out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType as Type  # pyright: ignore[reportMissingImports]
from gguf import GGUFWriter, RopeScalingType, TokenType  # pyright: ignore[reportMissingImports]
from torch import Tensor

from ossia.config import MLPConfig, ModelConfig, MoEConfig, RoPE
from ossia.model import Decoder

_PIECE = 1 << 22  # elements that are quantized at a time

# Names within a layer, without the end (weight, bias); those of llama.cpp's architecture tables.
_LAYER_NAMES = {
    "attention_norm": "attn_norm",
    "attention.q": "attn_q",
    "attention.k": "attn_k",
    "attention.v": "attn_v",
    "attention.o": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "feedforward.router": "ffn_gate_inp",
    "feedforward.gate": "ffn_gate",
    "feedforward.up": "ffn_up",
    "feedforward.down": "ffn_down",
}
_MOE_NAMES = {
    "feedforward_norm": "post_attention_norm",
    "feedforward.down": "ffn_down_exps",
}
_NAMES = {"embedding": "token_embd", "norm": "output_norm", "unembedding": "output"}


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file; its bytes are made when they are written."""

    name: str
    type: Type
    shape: tuple[int, ...]  # of the bytes for types of blocks, of the elements for float32
    data: Callable[[], np.ndarray]


def write(
    decoder: Decoder, path: Path, dense: Type = Type.Q8_0, vocabulary: Sequence[str] = ()
) -> None:
    """Write a decoder of Qwen3's or gpt-oss's architecture; `dense` is Q8_0 or BF16. vocabulary:
    the tokens in GPT-2's byte alphabet, in the order of their ids, the last one the end of a text;
    needed where text is to come out.
    """
    moe = isinstance(decoder.config.layers[0].feedforward, MoEConfig)
    writer = GGUFWriter(path, "gpt-oss" if moe else "qwen3")
    _add_config(writer, decoder.config)
    _add_vocabulary(writer, vocabulary)
    tensors = list(_tensors(decoder, dense))
    for tensor in tensors:
        dtype = np.float32 if tensor.type is Type.F32 else np.uint8
        size = int(np.prod(tensor.shape)) * np.dtype(dtype).itemsize
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(dtype), size, tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data())
    writer.close()


def _add_config(writer: GGUFWriter, config: ModelConfig) -> None:
    attention, feedforward = config.layers[0].attention, config.layers[0].feedforward
    assert isinstance(config.position, RoPE)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(config.layers))
    writer.add_head_count(attention.num_heads)
    writer.add_head_count_kv(attention.num_kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_layer_norm_rms_eps(config.norm.eps)
    writer.add_rope_freq_base(config.position.theta)
    writer.add_feed_forward_length(feedforward.intermediate_size)
    if yarn := config.position.yarn:
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(yarn.factor)
        writer.add_rope_scaling_orig_ctx_len(yarn.original_context)
    if isinstance(feedforward, MoEConfig):
        writer.add_expert_count(feedforward.num_experts)
        writer.add_expert_used_count(feedforward.experts_per_token)
        writer.add_expert_feed_forward_length(feedforward.intermediate_size)
    if attention.window is not None:
        writer.add_sliding_window(attention.window)


def _add_vocabulary(writer: GGUFWriter, tokens: Sequence[str]) -> None:
    if not tokens:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(tokens))
    kinds = [TokenType.NORMAL] * (len(tokens) - 1) + [TokenType.CONTROL]
    writer.add_token_types(kinds)
    writer.add_token_merges(["w 0"])  # llama.cpp wants one
    writer.add_eos_token_id(len(tokens) - 1)


def _tensors(decoder: Decoder, dense: Type) -> Iterator[_Tensor]:
    state = decoder.state_dict()
    for name, value in state.items():
        module, _, kind = name.rpartition(".")
        if kind == "scales":
            continue  # written with the blocks
        scope, names = "", _NAMES
        if module.startswith("layers."):
            _, number, module = module.split(".", 2)
            scope = f"blk.{number}."
            layer = decoder.config.layers[int(number)].feedforward
            names = _LAYER_NAMES | (
                {"feedforward_norm": "ffn_norm"} if isinstance(layer, MLPConfig) else _MOE_NAMES
            )
        if kind == "blocks":
            scales = state[name.removesuffix("blocks") + "scales"]
            if module == "feedforward.gate_up":  # gate and up rows alternate
                for first, theirs in enumerate(("ffn_gate_exps", "ffn_up_exps")):
                    yield _experts(
                        f"{scope}{theirs}.weight", value[:, first::2], scales[:, first::2]
                    )
            else:
                yield _experts(f"{scope}{names[module]}.weight", value, scales)
        elif module == "feedforward.gate_up":
            for first, theirs in enumerate(("ffn_gate_exps", "ffn_up_exps")):
                yield _float32(f"{scope}{theirs}.{kind}", value[:, first::2])
        elif kind == "sinks":
            yield _float32(f"{scope}attn_sinks.weight", value)
        elif kind == "weight" and value.dim() == 2 and module != "feedforward.router":
            make = _q8_0 if dense is Type.Q8_0 else _bfloat16
            yield make(f"{scope}{names[module]}.weight", value)
        else:
            yield _float32(f"{scope}{names[module]}.{kind}", value)


def _float32(name: str, value: Tensor) -> _Tensor:
    return _Tensor(name, Type.F32, tuple(value.shape), lambda: value.float().contiguous().numpy())


def _bfloat16(name: str, value: Tensor) -> _Tensor:
    rows, cols = value.shape
    return _Tensor(
        name,
        Type.BF16,
        (rows, 2 * cols),
        lambda: value.bfloat16().contiguous().view(torch.uint8).numpy(),
    )


def _q8_0(name: str, value: Tensor) -> _Tensor:
    rows, cols = value.shape
    step = max(1, _PIECE // cols)

    def data() -> np.ndarray:
        packed = torch.empty(rows, cols // 32 * 34, dtype=torch.uint8)
        for i in range(0, rows, step):
            packed[i : i + step] = quantize_q8_0(value[i : i + step])
        return packed.numpy()

    return _Tensor(name, Type.Q8_0, (rows, cols // 32 * 34), data)


def quantize_q8_0(matrix: Tensor) -> Tensor:
    """uint8 (rows, cols/32 * 34): for each 32 elements a float16 scale and their int8 multiples."""
    rows, cols = matrix.shape
    groups = matrix.float().view(rows, cols // 32, 32)
    scales = groups.abs().amax(dim=-1, keepdim=True) / 127
    multiples = (groups / scales.clamp(min=torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
    parts = [scales.half().view(torch.uint8), multiples.view(torch.uint8)]
    return torch.cat(parts, dim=-1).view(rows, -1)


def _experts(name: str, blocks: Tensor, scales: Tensor) -> _Tensor:
    experts, rows, groups, _ = blocks.shape
    return _Tensor(
        name,
        Type.MXFP4,
        (experts, rows, 17 * groups),
        lambda: repack(blocks, scales).view(experts, rows, -1).numpy(),
    )


def repack(blocks: Tensor, scales: Tensor) -> Tensor:
    """uint8 (..., 17): the scale, then bytes whose low nibbles are elements 0 to 15 of a block and
    whose high ones are 16 to 31.

    blocks: uint8 (..., 16), consecutive elements in one byte, the even one low; scales: (...).
    """
    packed = torch.empty((*scales.shape, 17), dtype=torch.uint8)
    packed[..., 0] = scales
    first, last = blocks[..., :8], blocks[..., 8:]
    packed[..., 1::2] = (first & 15) | (last << 4)
    packed[..., 2::2] = (first >> 4) | (last & 240)
    return packed
