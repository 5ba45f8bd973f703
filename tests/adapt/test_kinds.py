"""Every kind of adapter that peft writes is merged as peft merges it, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ossia.adapt import adapters, lora
from ossia.errors import OssiaError
from tests.adapt.test_lora import VOCAB, close, logits, qwen3
from tests.transformers_models import gpt2, gpt_oss, qwen3_moe

peft = pytest.importorskip("peft")

ATTENTION = {"target_modules": ["q_proj", "v_proj", "down_proj"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable], Path]:
    """The folder of a model that transformers made, one for each builder."""
    made: dict[Callable, Path] = {}

    def folder(build: Callable[[], PreTrainedModel]) -> Path:
        if build not in made:
            torch.manual_seed(0)
            made[build] = tmp_path_factory.mktemp(build.__name__)
            build().save_pretrained(made[build])
        return made[build]

    return folder


def their_model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def written(base: Path, adapter: Path, config: Any, **more: Any) -> None:
    """An adapter that peft made and that was trained, in that no parameter is as it began."""
    torch.manual_seed(2)
    model = peft.get_peft_model(their_model(base), config, **more)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(adapter)


def merged_by_peft(base: Path, adapter: Path) -> Tensor:
    model = peft.PeftModel.from_pretrained(their_model(base), adapter)
    return logits(model.merge_and_unload().eval())


def ours(base: Path, adapter: Path) -> Tensor:
    decoder = lora.load_base(base)
    adapters.load(decoder, adapter)
    return logits(decoder.eval())


def of_lora(**config: Any) -> Any:
    return peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=6, **{**ATTENTION, **config})


MERGED = {
    "plain": (qwen3, {}),
    "gaussian": (qwen3, {"init_lora_weights": "gaussian"}),
    "no initialisation": (qwen3, {"init_lora_weights": False}),
    "orthogonal": (qwen3, {"init_lora_weights": "orthogonal"}),
    "mica": (qwen3, {"init_lora_weights": "mica"}),
    "rsLoRA": (qwen3, {"use_rslora": True}),
    "ranks and alphas by pattern": (
        qwen3,
        {
            "rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 6, "^model.layers.0.mlp.*": 3},
            "alpha_pattern": {"self_attn.q_proj": 3, "down_proj": 1},
        },
    ),
    "some layers": (qwen3, {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "one layer": (qwen3, {"layers_to_transform": 0, "target_modules": ["o_proj"]}),
    "a pattern of targets": (qwen3, {"target_modules": r".*\.(k_proj|gate_proj)"}),
    "all but some": (qwen3, {"target_modules": "all-linear", "exclude_modules": ["o_proj"]}),
    "dropout": (qwen3, {"lora_dropout": 0.3}),
    "GPT-2, fan_in_fan_out not given": (gpt2, {"target_modules": ["c_attn", "c_fc"]}),
    "GPT-2, rsLoRA": (
        gpt2,
        {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True, "use_rslora": True},
    ),
    "fan_in_fan_out without a Conv1D": (qwen3, {"fan_in_fan_out": True}),
    "experts of gpt-oss": (
        gpt_oss,
        {
            "target_modules": ["q_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
    ),
    "experts of Qwen3": (
        qwen3_moe,
        {
            "target_modules": ["o_proj"],
            "target_parameters": ["mlp.experts.gate_up_proj"],
            "rank_pattern": {"experts.gate_up_proj": 2},
        },
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", MERGED)
def test_it_is_merged_as_peft_merges_it(case: str, folders: Callable, tmp_path: Path) -> None:
    build, config = MERGED[case]
    base = folders(build)
    written(base, tmp_path, of_lora(**config))
    expected = merged_by_peft(base, tmp_path)
    assert (expected - logits(their_model(base))).abs().max() > 0.01
    close(ours(base, tmp_path), expected)


def test_ranks_that_eva_distributes_are_kept(folders: Callable, tmp_path: Path) -> None:
    base = folders(qwen3)
    config = of_lora(init_lora_weights="eva", eva_config=peft.EvaConfig(rho=2.0))
    model = peft.get_peft_model(their_model(base), config, low_cpu_mem_usage=True)
    ids = torch.randint(VOCAB, (8, 4, 12), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": batch, "attention_mask": torch.ones_like(batch)} for batch in ids]
    peft.initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, 0, 0.1)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / adapters.CONFIG).read_text())["rank_pattern"]
    close(ours(base, tmp_path), merged_by_peft(base, tmp_path))


REFUSED = {
    "pissa": (of_lora(init_lora_weights="pissa"), "init_lora_weights .pissa. is not supported"),
    "pissa by iterations": (
        of_lora(init_lora_weights="pissa_niter_4"),
        "init_lora_weights .pissa_niter_4. is not supported",
    ),
    "olora": (of_lora(init_lora_weights="olora"), "init_lora_weights .olora. is not supported"),
    "DoRA": (of_lora(use_dora=True), "use_dora is not supported"),
    "biases of the base": (of_lora(bias="all"), 'bias "all": trained biases'),
    "biases beside updates": (of_lora(bias="lora_only"), 'bias "lora_only": trained biases'),
    "a bias of the update": (of_lora(lora_bias=True), "lora_bias is not supported"),
    "whole modules": (of_lora(modules_to_save=["lm_head"]), "modules_to_save is not supported"),
    "rows of the embedding": (
        of_lora(trainable_token_indices={"embed_tokens": [1, 2]}),
        "trainable_token_indices is not supported",
    ),
    "the unembedding": (
        of_lora(target_modules=["lm_head", "q_proj"]),
        r"lm_head\..* belongs to no matrix",
    ),
    "the embedding": (
        of_lora(target_modules=["embed_tokens"]),
        r"embed_tokens\..* belongs to no matrix",
    ),
    "more layers": (of_lora(layer_replication=[[0, 2], [1, 2]]), "layer_replication is not"),
    "activated LoRA": (of_lora(alora_invocation_tokens=[1, 2]), "alora_invocation_tokens is not"),
    "LoHa": (peft.LoHaConfig(r=2, **ATTENTION), "not a LoRA adapter .*LOHA"),
    "LoKr": (peft.LoKrConfig(r=2, **ATTENTION), "not a LoRA adapter .*LOKR"),
    "AdaLoRA": (
        peft.AdaLoraConfig(init_r=2, target_r=2, total_step=5, **ATTENTION),
        "not a LoRA adapter .*ADALORA",
    ),
    "VeRA": (peft.VeraConfig(r=2, target_modules=["q_proj"]), "not a LoRA adapter .*VERA"),
    "IA3": (
        peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        "not a LoRA adapter .*IA3",
    ),
    "OFT": (peft.OFTConfig(r=2, oft_block_size=0, **ATTENTION), "not a LoRA adapter .*OFT"),
    "a prompt": (
        peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "not a LoRA adapter .*PROMPT_TUNING",
    ),
    "a prefix": (
        peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "not a LoRA adapter .*PREFIX_TUNING",
    ),
    "norms": (peft.LNTuningConfig(target_modules=["norm"]), "not a LoRA adapter .*LN_TUNING"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_by_name(case: str, folders: Callable, tmp_path: Path) -> None:
    config, message = REFUSED[case]
    base = folders(qwen3)
    written(base, tmp_path, config)
    with pytest.raises(OssiaError, match=message) as error:
        ours(base, tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "corda"}, 'init_lora_weights "corda" is not supported'),
        ({"init_lora_weights": "loftq"}, 'init_lora_weights "loftq" is not supported'),
        ({"init_lora_weights": "lora_ga"}, 'init_lora_weights "lora_ga" is not supported'),
        ({"init_lora_weights": ["pissa"]}, "init_lora_weights .* is not supported"),
        ({"a_key_of_later_versions": {"x": 1}}, "a_key_of_later_versions is not supported"),
        ({"use_qalora": True}, "use_qalora is not supported"),
        ({"megatron_config": {"x": 1}}, "megatron_config is not supported"),
        ({"r": "4"}, 'r must be a number, not "4"'),
        ({"r": 0}, "r must be at least 1, not 0"),
        ({"lora_alpha": None}, "lora_alpha must be a number, not null"),
        ({"rank_pattern": [1]}, r"rank_pattern must be an object, not \[1\]"),
        ({"rank_pattern": {"q_proj": 2.5}}, 'rank_pattern "q_proj" must be a number'),
        ({"alpha_pattern": {"(": 2}}, r'alpha_pattern has a bad pattern "\("'),
        ({"rank_pattern": {"(a|aa)+b": 2}}, "rank_pattern has the pattern .* a repeated group"),
        ({"alpha_pattern": {"(q.*)*x": 2}}, "alpha_pattern has the pattern .* a repeated group"),
    ],
)
def test_a_config_that_says_otherwise_is_refused(
    change: dict, message: str, folders: Callable, tmp_path: Path
) -> None:
    written(folders(qwen3), tmp_path, of_lora())
    config = json.loads((tmp_path / adapters.CONFIG).read_text())
    (tmp_path / adapters.CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(OssiaError, match=message):
        ours(folders(qwen3), tmp_path)


def test_null_and_default_keys_change_nothing(folders: Callable, tmp_path: Path) -> None:
    base = folders(qwen3)
    written(base, tmp_path, of_lora())
    before = ours(base, tmp_path)
    config = json.loads((tmp_path / adapters.CONFIG).read_text())
    idle = {
        "a_key_of_later_versions": None,
        "use_dora": False,
        "bias": None,
        "modules_to_save": [],
        "rank_pattern": None,
        "init_lora_weights": None,
        "runtime_config": {"ephemeral_gpu_offload": False},
    }
    (tmp_path / adapters.CONFIG).write_text(json.dumps(config | idle))
    assert torch.equal(ours(base, tmp_path), before)


def test_an_adapter_that_is_a_pickle_is_never_opened(folders: Callable, tmp_path: Path) -> None:
    written(folders(qwen3), tmp_path, of_lora())
    (tmp_path / adapters.WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(OssiaError, match="pickles can run code and are never opened"):
        ours(folders(qwen3), tmp_path)
