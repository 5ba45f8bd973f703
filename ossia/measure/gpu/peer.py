"""The same by transformers: weights in bfloat16, a cache that grows, and a plain training loop."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from ossia import families
from ossia.config import ExpertFormat, ModelConfig, with_expert_format
from ossia.errors import OssiaError
from ossia.insight.counts import count
from ossia.measure.gpu.cases import Case, Measure, Served, Trained
from ossia.measure.gpu.limits import allocated
from ossia.measure.gpu.parts import Teller, seconds
from ossia.measure.gpu.trained import UNTIMED
from ossia.system.memory import format_size, free_memory


@torch.inference_mode()
def measure_served(model: Served, teller: Teller) -> None:
    """All cases of a model that transformers is measured at."""
    device, turns = teller.device, teller.suite.turns
    before = allocated(device)
    peer = _model(model.config, device, torch.bfloat16).eval()
    teller.measure(
        Case(model.name, Measure.WEIGHTS), lambda: (allocated(device) - before) / 1e9, needs=0
    )

    def ids(rows: int, length: int) -> torch.Tensor:
        return torch.randint(model.config.vocab_size, (rows, length), device=device)

    for length in model.peer_prompts:

        def read(length: int = length) -> float:
            prompt = ids(1, length)
            taken = [
                seconds(device, lambda: peer(prompt, logits_to_keep=1)) for _ in range(turns + 1)
            ]
            return length / statistics.median(taken[1:])

        teller.measure(Case(model.name, Measure.PREFILL, 1, length), read, needs=3)
    for batch, context in model.peer_decodes:

        def decode(batch: int = batch, context: int = context) -> float:
            state = peer(ids(batch, context), logits_to_keep=1, use_cache=True)
            kept = [state.past_key_values, state.logits.argmax(-1)]

            def step() -> None:
                found = peer(kept[1], past_key_values=kept[0], use_cache=True)
                kept[:] = found.past_key_values, found.logits[:, -1:].argmax(-1)

            seconds(device, step)
            taken = [seconds(device, step) for _ in range(turns * teller.suite.steps)]
            return batch / statistics.median(taken)

        teller.measure(Case(model.name, Measure.DECODE, batch, context), decode, needs=3)


def measure_trained(model: Trained, teller: Teller) -> None:
    """Tokens per second of a plain loop under autocast, with fused AdamW, not compiled."""
    device = teller.device

    def train() -> float:
        peer = _model(model.config, device, torch.float32).train()
        optimizer = torch.optim.AdamW(
            peer.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        shape = model.rows, model.length
        inputs = torch.randint(model.config.vocab_size, shape, device=device)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16):
                loss = peer(input_ids=inputs, labels=inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        for _ in range(UNTIMED):
            step()
        taken = [seconds(device, step) for _ in range(teller.suite.turns * teller.suite.steps // 2)]
        return inputs.numel() / statistics.median(taken)

    teller.measure(Case(model.name, Measure.TRAINING, model.rows, model.length), train, needs=5)


def _model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Any:
    """transformers' model of the same shapes, with random weights and dense experts."""
    try:
        import transformers
    except ImportError as error:
        raise OssiaError("transformers is not installed") from error
    dense = with_expert_format(config, ExpertFormat.DENSE)
    needed, free = count(dense).parameters * dtype.itemsize, free_memory(device)
    if needed > free:
        raise OssiaError(f"its weights take {format_size(needed)}; {format_size(free)} are free")
    described = families.to_hf(dense)
    kind = transformers.AutoConfig.for_model(described["model_type"])
    with torch.device(device):
        found = transformers.AutoModelForCausalLM.from_config(
            type(kind).from_dict(described), dtype=dtype
        )
    return found.to(device)
