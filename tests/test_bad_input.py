"""Bad input of every kind, through the command line: one line that names the file and the tensor or
key, exit code 2, no output, nothing half-written. And random damage: a checkpoint loads or is
refused, and never anything else.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from ossia import LLM, checkpoint
from ossia.cli.main import main
from ossia.config import (
    GELU,
    AttentionConfig,
    ClampedSwiGLU,
    ExpertFormat,
    LayerConfig,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    RMSNorm,
    RoPE,
    Rounding,
    Router,
    SwiGLU,
    YaRN,
)
from ossia.errors import OssiaError
from ossia.model import Decoder
from ossia.system import files
from tests.scripted import CONTROL, VOCAB_SIZE, write_byte_tokenizer

Written = TypeVar("Written")
CONTEXT = 512  # harmony's own preamble takes half of it, a byte a token


def config(hidden: int, layer: LayerConfig, position, norm, tied: bool) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        context_length=CONTEXT,
        layers=(layer,) * 2,
        position=position,
        norm=norm,
        tied_embeddings=tied,
        dtype="float32",
    )


CONFIGS = {
    "gpt2": config(
        16,
        LayerConfig(AttentionConfig(2, 2, 8, bias=True), MLPConfig(64, GELU(), bias=True)),
        LearnedPositions(),
        LayerNorm(),
        tied=True,
    ),
    "qwen3": config(
        16,
        LayerConfig(AttentionConfig(2, 1, 8, qk_norm=True), MLPConfig(24, SwiGLU())),
        RoPE(1e6),
        RMSNorm(1e-6),
        tied=True,
    ),
    "qwen3_moe": config(
        16,
        LayerConfig(
            AttentionConfig(2, 1, 8, qk_norm=True),
            MoEConfig(3, 2, 10, SwiGLU(), Router.SOFTMAX_THEN_TOP_K_RENORMALIZED),
        ),
        RoPE(1e6),
        RMSNorm(1e-6),
        tied=False,
    ),
    "gpt_oss": config(
        32,
        LayerConfig(
            AttentionConfig(2, 1, 16, window=8, bias=True, sinks=True),
            MoEConfig(
                3,
                2,
                32,
                ClampedSwiGLU(),
                Router.TOP_K_THEN_SOFTMAX,
                bias=True,
                format=ExpertFormat.MXFP4,
            ),
        ),
        RoPE(150000, YaRN(4, CONTEXT // 4, truncate=False)),
        RMSNorm(1e-5, Rounding.AFTER_WEIGHT),
        tied=False,
    ),
}
ALL = tuple(CONFIGS)
MATRIX = {  # a tensor of each family, in the last layer
    "gpt2": "transformer.h.1.attn.c_proj.weight",
    "qwen3": "model.layers.1.self_attn.o_proj.weight",
    "qwen3_moe": "model.layers.1.mlp.experts.2.down_proj.weight",
    "gpt_oss": "model.layers.1.self_attn.o_proj.weight",
}
SCALES = "model.layers.1.mlp.experts.down_proj_scales"
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of each family: NAME in one file, NAME-shards in several."""
    root = tmp_path_factory.mktemp("models")
    for name, config in CONFIGS.items():
        dense = Decoder(_dense(config))
        dense.init_weights(torch.Generator().manual_seed(0))
        for folder, limit in ((root / name, 10**9), (root / f"{name}-shards", 20_000)):
            experts = "mxfp4" if name == "gpt_oss" else None
            checkpoint.save(dense, folder, experts=experts, max_shard_bytes=limit)
            write_byte_tokenizer(folder, CONTROL if name == "gpt_oss" else CHATML)
            (folder / "generation_config.json").write_text('{"eos_token_id": [257]}')
            if name.startswith("qwen3"):
                (folder / "chat_template.jinja").write_text(TEMPLATE)
    return root


def _dense(config: ModelConfig) -> ModelConfig:
    def dense(layer: LayerConfig) -> LayerConfig:
        if not isinstance(layer.feedforward, MoEConfig):
            return layer
        return replace(layer, feedforward=replace(layer.feedforward, format=ExpertFormat.DENSE))

    return replace(config, layers=tuple(map(dense, config.layers)))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run a command that must fail; the one line it says."""

    def refused(*words: object, piped: str = "hi\n") -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(piped))
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        errors = [
            line for line in err.splitlines() if not line.startswith(("device ", "backend: "))
        ]
        assert len(errors) == 1, err
        assert errors[0].startswith("error: ")
        assert "Traceback" not in err
        return errors[0]

    return refused


# Each takes a checkpoint folder and damages it.


def shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def without_shard(folder: Path) -> None:
    shard(folder).unlink()


def cut_shard(keep: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shard(folder).write_bytes(keep(shard(folder).read_bytes()))

    return damage


def header(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """The header of the weights, changed, over the same bytes."""

    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = file.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        entries = json.loads(content[8:end])
        change(entries[matrix_of(folder)])
        encoded = json.dumps(entries).encode()
        file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[end:])

    return damage


def matrix_of(folder: Path) -> str:
    return MATRIX[json.loads((folder / "config.json").read_text())["model_type"]]


def tensors(change: Callable[[dict[str, torch.Tensor], str], object]) -> Callable[[Path], None]:
    """The weights, saved anew after `change(tensors, name of a matrix)`."""

    def damage(folder: Path) -> None:
        file = folder / "model.safetensors"
        weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
        change(weights, matrix_of(folder))
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)

    return damage


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode()

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return damage


def configured(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(data | changes))

    return damage


def removed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: (folder / old).rename(folder / new) and None


def quantized(method: str, **more: object) -> Callable[[Path], None]:
    return configured(quantization_config={"quant_method": method, **more})


def unreadable(name: str) -> Callable[[Path], None]:
    """A link to itself, which nobody can open, root included."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return damage


@dataclass(frozen=True)
class Case:
    """A damage, and what the line must name: {folder} and {matrix} stand for themselves."""

    title: str
    damage: Callable[[Path], object]
    words: tuple[str, ...]
    families: tuple[str, ...] = ALL
    commands: tuple[str, ...] = ("generate", "inspect")
    shards: bool = False


TALK = ("generate", "chat")  # they open a model by the same function
WEIGHTS, CONFIG = "{folder}/model.safetensors", "{folder}/config.json"
SHARD = "{folder}/model-00002-of-"

CASES = [
    Case(
        "a missing shard",
        without_shard,
        ("{folder}", "shard model-00002-of-", "is missing", "copy it again"),
        shards=True,
    ),
    Case("a truncated shard", cut_shard(lambda b: b[:-7]), (SHARD, "truncated"), shards=True),
    Case("a cut header", cut_shard(lambda b: b[:20]), (SHARD, "truncated"), shards=True),
    Case("an empty shard", cut_shard(lambda b: b""), (SHARD, "truncated"), shards=True),
    Case(
        "an index that is no JSON",
        written("model.safetensors.index.json", "{"),
        ("{folder}/model.safetensors.index.json", "not valid JSON"),
        shards=True,
    ),
    Case(
        "offsets of another size",
        header(lambda entry: entry["data_offsets"].__setitem__(1, entry["data_offsets"][1] + 4)),
        (WEIGHTS, "{matrix}", "bytes"),
    ),
    Case(
        "offsets beyond the file",
        header(lambda entry: entry.update(data_offsets=[n + 10**9 for n in entry["data_offsets"]])),
        (WEIGHTS, "{matrix}"),
    ),
    Case(
        "offsets over another tensor",
        header(lambda entry: entry.update(data_offsets=[n - 4 for n in entry["data_offsets"]])),
        (WEIGHTS, "tensor "),
    ),
    Case(
        "an unknown dtype",
        header(lambda entry: entry.update(dtype="F4")),
        (WEIGHTS, "{matrix}", "'F4'"),
    ),
    Case(
        "a wrong shape",
        tensors(lambda weights, name: weights.update({name: weights[name][:-1]})),
        (WEIGHTS, "{matrix}", "has the shape", "expected", "config.json"),
    ),
    Case(
        "a wrong dtype",
        tensors(lambda weights, name: weights.update({name: weights[name].int()})),
        (WEIGHTS, "{matrix}", "has the dtype int32", "expected float32 or bfloat16"),
    ),
    Case(
        "a missing tensor",
        tensors(lambda weights, name: weights.pop(name)),
        (WEIGHTS, "1 missing: {matrix}"),
    ),
    Case(
        "a surplus tensor",
        tensors(lambda weights, name: weights.update({"more.weight": torch.zeros(3)})),
        (WEIGHTS, "1 unknown: more.weight"),
    ),
    Case(
        "a scale byte of 255",
        tensors(lambda weights, name: weights[SCALES].__setitem__((1, 3, 0), 255)),
        (WEIGHTS, SCALES, "255 at [1, 3, 0]"),
        families=("gpt_oss",),
        commands=TALK,  # `inspect` reads headers only
    ),
    Case("no tokenizer", removed("tokenizer.json"), ("{folder}", "tokenizer.json"), commands=TALK),
    Case(
        "half a tokenizer",
        written("tokenizer.json", '{"model": {'),
        ("{folder}/tokenizer.json", "copy it again"),
        commands=TALK,
    ),
    Case(
        "a tokenizer of another kind",
        written("tokenizer.json", "[]"),
        ("{folder}/tokenizer.json",),
        commands=TALK,
    ),
    Case(
        "a tokenizer larger than the embedding",
        lambda folder: write_byte_tokenizer(folder, [f"<|{n}|>" for n in range(20)] + [*CHATML]),
        ("{folder}", "'<|im_start|>' the id 277", f"vocabulary of {VOCAB_SIZE}"),
        families=("qwen3", "qwen3_moe"),
        commands=("chat",),
    ),
    Case(
        "weights only as .bin",
        renamed("model.safetensors", "pytorch_model.bin"),
        ("{folder}", "pytorch_model.bin", "never opened", "convert"),
    ),
    Case(
        "weights only as .pt",
        renamed("model.safetensors", "model.pt"),
        ("{folder}", "model.pt", "never opened", "convert"),
    ),
    Case("no weights", removed("model.safetensors"), ("{folder}", "no .safetensors file")),
    Case("no config", removed("config.json"), ("{folder}", "config.json")),
    Case("a config that is no JSON", written("config.json", "{a"), (CONFIG, "not valid JSON")),
    Case("a config that is a list", written("config.json", "[1]"), (CONFIG, "not a JSON object")),
    Case("a config that is binary", written("config.json", b"\xff\xfe\0"), (CONFIG, "not valid")),
    Case("an empty config", written("config.json", b""), (CONFIG, "not valid JSON")),
    Case("a deep config", written("config.json", "[" * 10**5), (CONFIG, "not valid JSON")),
    Case("an unknown key", configured(surprise=1), (CONFIG, "'surprise'")),
    Case("a wrong type", configured(vocab_size="12"), (CONFIG, "'vocab_size'", '"12"')),
    Case("a wrong family", configured(model_type="mamba"), (CONFIG, "'model_type'", "'mamba'")),
    Case("a vocabulary beyond", configured(vocab_size=10**30), (CONFIG, "'vocab_size'")),
    Case("another vocabulary", configured(vocab_size=5), (WEIGHTS, "expected (5, ", "config.json")),
    Case(
        "layers without end",
        configured(num_hidden_layers=10**12),
        (CONFIG, "'num_hidden_layers'"),
        families=("qwen3", "qwen3_moe", "gpt_oss"),
    ),
    Case("layers without end", configured(n_layer=10**12), (CONFIG, "'n_layer'"), ("gpt2",)),
    Case(
        "a head no tensor can hold",
        configured(head_dim=2**31 - 2, num_attention_heads=2**30),
        (CONFIG, "larger than tensors can be"),
        families=("qwen3", "gpt_oss"),
    ),
    Case(
        "a context without end",
        configured(max_position_embeddings=10**15),
        (CONFIG, "'max_position_embeddings'"),
        families=("qwen3", "gpt_oss"),
    ),
    *(
        Case(
            f"experts in {method}",
            quantized(method, bits=4),
            (CONFIG, "quant_method", method),
            families=("gpt_oss",),  # whose weights are not plain
        )
        for method in ("fp8", "awq", "gptq", "bitsandbytes", "compressed-tensors")
    ),
    Case(
        "a generation_config that is no JSON",
        written("generation_config.json", "{"),
        ("{folder}/generation_config.json",),
        commands=TALK,
    ),
    Case(
        "a temperature that is no number",
        written("generation_config.json", '{"temperature": "hot"}'),
        ("{folder}/generation_config.json", "temperature", "'hot'"),
        commands=TALK,
    ),
    Case(
        "an end that is no id",
        written("generation_config.json", '{"eos_token_id": {}}'),
        ("{folder}/generation_config.json", "eos_token_id"),
        commands=TALK,
    ),
    Case(
        "an end below zero",
        written("generation_config.json", '{"eos_token_id": [-5]}'),
        ("{folder}/generation_config.json", "eos_token_id", "-5"),
        commands=TALK,
    ),
    Case(
        "a template that is none",
        written("chat_template.jinja", "{% if"),
        ("{folder}/chat_template.jinja",),
        families=("gpt2", "qwen3"),
        commands=("chat",),
    ),
    Case("unreadable weights", unreadable("model.safetensors"), (WEIGHTS, "cannot read")),
]


def words_for(command: str, folder: Path) -> list[object]:
    return {
        "generate": ["generate", "hi", "--model", folder],
        "chat": ["chat", "--model", folder],
        "inspect": ["inspect", folder],
    }[command]


@pytest.mark.parametrize(
    ("case", "family"),
    [pytest.param(c, f, id=f"{c.title}, {f}") for c in CASES for f in c.families],
)
def test_a_damaged_checkpoint(case: Case, family: str, models: Path, tmp_path: Path, run) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models / (f"{family}-shards" if case.shards else family), folder)
    case.damage(folder)
    before = sorted(path.name for path in folder.iterdir())
    for command in case.commands:
        line = run(*words_for(command, folder))
        for word in case.words:
            assert word.format(folder=folder, matrix=MATRIX[family]) in line
    assert sorted(path.name for path in folder.iterdir()) == before
    if "inspect" in case.commands:
        with pytest.raises(OssiaError):
            LLM(folder)


def test_a_template_that_is_none_refuses_chats_alone(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(models / "qwen3", folder)
    (folder / "chat_template.jinja").write_text("{% if")
    with LLM(folder) as llm:
        assert llm.generate(["Hi"], max_tokens=2)[0].token_ids
        for ask in (llm.chat, llm.stream):
            with pytest.raises(OssiaError, match=r"chat_template\.jinja: not a jinja template"):
                ask([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize("family", ALL)
class TestPrompts:
    def test_empty(self, family: str, models: Path, run) -> None:
        assert "the prompt is empty" in run("generate", "", "--model", models / family)
        assert "the prompt is empty" in run("generate", "--model", models / family, piped="")

    def test_longer_than_the_context(self, family: str, models: Path, run) -> None:
        line = run("generate", "x" * CONTEXT, "--model", models / family)
        assert f"{CONTEXT} tokens" in line
        assert f"context of {CONTEXT}" in line
        line = run("chat", "--model", models / family, piped="x" * CONTEXT + "\n")
        assert f"context of {CONTEXT}" in line

    def test_ids_outside_the_vocabulary(self, family: str, models: Path) -> None:
        llm = LLM(models / family)
        for id in (VOCAB_SIZE, -1, 10**30):
            with pytest.raises(OssiaError, match=f"id {id} at position 1"):
                llm.generate([[1, id]])
        for prompts in (["x" * CONTEXT], [""], [[]], [[1.5]], [["x"]]):
            with pytest.raises(OssiaError):
                llm.generate(prompts)  # pyright: ignore[reportArgumentType]


class TestPlaces:
    @pytest.mark.parametrize("command", ["generate", "chat", "inspect"])
    def test_no_such_folder(self, command: str, tmp_path: Path, run) -> None:
        line = run(*words_for(command, tmp_path / "nowhere"))
        assert f"there is no folder {tmp_path / 'nowhere'}" in line

    @pytest.mark.parametrize("command", TALK)
    def test_no_name(self, command: str, run) -> None:
        assert "name is empty" in run(*words_for(command, ""))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("model.safetensors", "give the folder"),
            ("model.gguf", "GGUF is not supported"),
            ("pytorch_model.bin", "never opened: convert it to safetensors"),
        ],
    )
    def test_a_file(self, name: str, says: str, tmp_path: Path, run) -> None:
        (tmp_path / name).write_bytes(b"x")
        line = run("generate", "hi", "--model", tmp_path / name)
        assert f"{tmp_path / name} is a file" in line
        assert says in line
        line = run("inspect", tmp_path)
        assert f"{tmp_path} holds no config.json" in line
        assert name in line or name == "model.safetensors"

    def test_a_home_that_nobody_has(self, run) -> None:
        assert "~nobody-here/model" in run("inspect", "~nobody-here/model")

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
    @pytest.mark.parametrize("command", ["generate", "chat", "inspect"])
    def test_an_unreadable_folder(self, command: str, models: Path, tmp_path: Path, run) -> None:
        folder = shutil.copytree(models / "gpt2", tmp_path / "model")
        folder.chmod(0)
        try:
            line = run(*words_for(command, folder))
        finally:
            folder.chmod(0o700)
        assert f"cannot read {folder}: Permission denied" in line

    def test_a_hub_name_while_offline(self, tmp_path: Path, run, monkeypatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        for command in ("generate", "chat", "inspect"):
            line = run(*words_for(command, "nobody/nothing"))  # type: ignore[arg-type]
            assert "nobody/nothing" in line
            assert "cannot be reached" in line


TRAIN = ("train", "--vocab-size", 300, "--batch-size", 2, "--length", 16, "--steps", 1)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"{i} green bottles hanging on the wall\n" for i in range(99)))
    return file


class TestTraining:
    def test_a_folder_in_use(self, text: Path, tmp_path: Path, run) -> None:
        out = tmp_path / "out"
        out.mkdir()
        (out / "keep").write_text("me")
        assert f"{out} exists and is not" in run(*TRAIN, "--data", text, "--out", out)
        assert (out / "keep").read_text() == "me"
        assert "exists" in run(*TRAIN, "--data", text, "--out", text)

    def test_a_mount_point(self, text: Path, tmp_path: Path, run, monkeypatch) -> None:
        monkeypatch.setattr("os.path.ismount", lambda path: Path(path) == tmp_path / "out")
        (tmp_path / "out").mkdir()
        line = run(*TRAIN, "--data", text, "--out", tmp_path / "out")
        assert f"{tmp_path / 'out'} cannot be replaced" in line

    def test_a_place_under_a_file(self, text: Path, run) -> None:
        line = run(*TRAIN, "--data", text, "--out", text / "out")
        assert f"{text} is a file; give a folder" in line
        assert str(text) in run("train", "--resume", "--out", text / "out")

    @pytest.mark.parametrize("existed", [False, True])
    @pytest.mark.parametrize("written", range(5))
    def test_a_full_disk_at_the_start(
        self, existed: bool, written: int, text: Path, tmp_path: Path, run, monkeypatch
    ) -> None:
        """After so many files; what was written of the run is gone."""
        out = tmp_path / "out"
        if existed:
            out.mkdir()
        left = [written]

        def filling(write: Callable[..., Written]) -> Callable[..., Written]:
            def full(file: Path, *arguments: object, **options: object) -> Written:
                if not left[0]:
                    file.touch()
                    raise OSError(28, "No space left on device")
                left[0] -= 1
                return write(file, *arguments, **options)

            return full

        monkeypatch.setattr(files, "write_file", filling(files.write_file))
        monkeypatch.setattr(Path, "write_text", filling(Path.write_text))
        line = run(*TRAIN, "--data", text, "--config", "small-gpt2", "--out", out)
        assert f"cannot write to {out}: No space left on device" in line
        assert out.exists() is existed
        assert not existed or not list(out.iterdir())

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            (["--config", "{text}"], "text.txt is not valid JSON"),
            (["--config", "huge"], "--config huge"),
            (["--data", "absent"], "--data absent"),
            (["--seed", 10**30], "--seed"),
            (["--weight-decay", "nan"], "--weight-decay"),
            (["--balance", "inf"], "--balance"),
            (["--lr", "nan"], "--learning-rate"),
            (["--dtype", "int8"], "int8"),
            (["--experts", "int4"], "int4"),
        ],
    )
    def test_options(self, options: list, says: str, text: Path, tmp_path: Path, run) -> None:
        words = [str(word).format(text=text) for word in options]
        assert says in run(*TRAIN, "--data", text, *words, "--out", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("run.json", b"{"),
            ("run.json", b"{}"),
            ("run.json", b'{"settings": {"steps": "many"}}'),
            ("held_out/00000.bin", b"\0\0\0"),
            ("train/00000.bin", b""),
            ("train/index.json", b"half"),
            ("train/index.json", b'{"type": "float7", "shards": []}'),
        ],
    )
    def test_a_damaged_run(
        self, name: str, content: bytes, text: Path, tmp_path: Path, run
    ) -> None:
        from ossia.train.runs.pretrain import Run
        from ossia.train.settings import Settings

        out = tmp_path / "out"
        settings = Settings(
            data=str(text), config="small-gpt2", vocab_size=300, batch_size=2, length=16, steps=1
        )
        Run.start(settings, out)
        (out / "training" / name).write_bytes(content)
        assert str(out / "training" / name) in run("train", "--resume", "--out", out)


def test_closed_streams_are_no_reason_to_fail(models: Path, monkeypatch) -> None:
    """As a daemon starts a program; Python then has None for them."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"sys.{name}", None)
    assert main(["generate", "hi", "--model", str(models / "gpt2"), "-n", "2"]) == 0
    assert main(["generate", "--model", str(models / "gpt2")]) == 2
    assert main(["chat", "--model", str(models / "gpt2")]) == 0


def refusal(folder: Path) -> str | None:
    try:
        LLM(folder)
    except OssiaError as error:
        return str(error)
    return None


def test_random_damage_is_refused_or_harmless(models: Path, tmp_path: Path) -> None:
    """Bytes flipped, cut off or put in, in headers and JSON files: OssiaError or none."""
    random_ = random.Random(0)
    refused = 0
    for number in range(60):
        folder = tmp_path / str(number)
        source = models / random_.choice([f"{f}{kind}" for f in ALL for kind in ("", "-shards")])
        shutil.copytree(source, folder)
        files = [p for p in sorted(folder.iterdir()) if p.suffix in (".json", ".safetensors")]
        file = random_.choice(files)
        content = bytearray(file.read_bytes())
        end = len(content)
        if file.suffix == ".safetensors":
            end = 8 + int.from_bytes(content[:8], "little")
        for _ in range(random_.choice((1, 1, 3))):
            place = random_.randrange(min(end, len(content)))
            match random_.randrange(4):
                case 0:
                    content[place] ^= 1 << random_.randrange(8)
                case 1:
                    content[place] = random_.randrange(0x20, 0x7F)
                case 2:
                    content[place:place] = random_.choice((b"9", b"0", b'"', b"[", b"-", b"\xff"))
                case 3:
                    del content[place : place + random_.choice((1, 8, 10**9))]
            if not content:
                break
        file.write_bytes(content)
        told = refusal(folder)
        refused += told is not None
        assert told is None or (str(folder) in told and "\n" not in told)
        shutil.rmtree(folder)
    assert refused > 30
