"""Where a folder keeps its templates, and what follows when one of them is broken."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ossia.errors import OssiaError
from ossia.text import BrokenTemplate, Chat, Tokenizer, load_format
from ossia.text.template import TemplateFormat

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
DEFAULT = TURNS + PROMPT
TOOL_USE = "<|im_start|>system\nTOOLS {{ tools | tojson }}<|im_end|>\n" + DEFAULT
RAG = "{{ documents }}" + DEFAULT
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def folder(qwen3_folder: Path, tmp_path: Path) -> Path:
    """Qwen3's tokenizer without a template."""
    for file in qwen3_folder.iterdir():
        if file.name != "chat_template.jinja":
            shutil.copy(file, tmp_path)
    configure(tmp_path, chat_template=None)
    return tmp_path


def configure(folder: Path, **values: object) -> None:
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def write(folder: Path, named: dict[str, str]) -> None:
    """The templates as transformers saves them."""
    for name, template in named.items():
        file = folder / "chat_template.jinja"
        if name != "default":
            file = folder / "additional_chat_templates" / f"{name}.jinja"
            file.parent.mkdir(exist_ok=True)
        file.write_text(template)


NAMED = {
    "all": {"default": DEFAULT, "tool_use": TOOL_USE, "rag": RAG},
    "default and rag": {"default": DEFAULT, "rag": RAG},
    "default and tool_use": {"default": DEFAULT, "tool_use": TOOL_USE},
    "tool_use alone": {"tool_use": TOOL_USE},
    "rag alone": {"rag": RAG},
}


@pytest.mark.parametrize("where", ["list", "object", "files"])
@pytest.mark.parametrize("names", NAMED)
def test_named_templates_are_chosen_as_in_transformers(
    where: str, names: str, folder: Path, qwen3_tokenizer: Tokenizer
) -> None:
    named = NAMED[names]
    if where == "files":
        write(folder, named)
    else:
        listed = [{"name": name, "template": text} for name, text in named.items()]
        configure(folder, chat_template=listed if where == "list" else named)
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = load_format(folder, qwen3_tokenizer)
    assert ours.name == "template"
    for tools in (None, [TOOL]):
        try:
            expected = theirs.apply_chat_template(
                HI, tools=tools, add_generation_prompt=True, tokenize=False
            )
        except ValueError:
            with pytest.raises(OssiaError, match="none of its templates is named default; there"):
                ours.render(Chat.of(HI, tools=tools))
        else:
            assert qwen3_tokenizer.decode(ours.render(Chat.of(HI, tools=tools))) == expected


def test_a_template_in_a_file_counts_before_those_in_the_config(
    folder: Path, qwen3_tokenizer: Tokenizer
) -> None:
    configure(folder, chat_template="config")
    write(folder, {"tool_use": "file"})
    ours = load_format(folder, qwen3_tokenizer)
    assert qwen3_tokenizer.decode(ours.render(Chat.of(HI, tools=[TOOL]))) == "file"
    with pytest.raises(OssiaError, match=r"additional_chat_templates: none of its templates"):
        ours.render(Chat.of(HI))


@pytest.mark.parametrize(
    "template", ["{% if %}", "{{ x", "{% endfor %}", "{% unknown %}", "{{ 1 | f }}"]
)
def test_a_template_that_cannot_be_compiled_is_one_error(
    template: str, folder: Path, qwen3_tokenizer: Tokenizer
) -> None:
    write(folder, {"default": template})
    with pytest.raises(BrokenTemplate, match=r"chat_template\.jinja: not a jinja template"):
        load_format(folder, qwen3_tokenizer)


@pytest.mark.parametrize("change", ["mark", "carriage returns"])
def test_templates_as_editors_write_them(
    change: str, qwen3_folder: Path, qwen3_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    shutil.copytree(qwen3_folder, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "chat_template.jinja"
    content = file.read_bytes()
    file.write_bytes(
        b"\xef\xbb\xbf" + content if change == "mark" else content.replace(b"\n", b"\r\n")
    )
    ours, clean = (load_format(f, qwen3_tokenizer) for f in (tmp_path, qwen3_folder))
    assert ours.render(Chat.of(HI)) == clean.render(Chat.of(HI))


SPECIAL = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ unk_token }}|{{ image_token }}"


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"eos_token": "<|im_start|>"},
        {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}},
        {"bos_token": "<|im_start|>", "image_token": "<|image_pad|>"},
    ],
)
@pytest.mark.parametrize("dropped", [(), ("eos_token", "pad_token", "unk_token", "bos_token")])
def test_templates_find_the_special_tokens_of_transformers(
    values: dict[str, object], dropped: tuple[str, ...], folder: Path, qwen3_tokenizer: Tokenizer
) -> None:
    write(folder, {"default": SPECIAL})
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in config.items() if k not in dropped} | values))
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(HI, tokenize=False)
    ours = load_format(folder, qwen3_tokenizer)
    assert qwen3_tokenizer.decode(ours.render(Chat.of(HI))) == expected


CLOSINGS = {
    "ChatML": (DEFAULT, "<|im_end|>"),
    "after a line end": (DEFAULT.replace("<|im_end|>", "\n<|im_end|>"), "<|im_end|>"),
    "by the eos": (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}"
        "{{ eos_token }}{% endif %}\n{% endfor %}" + PROMPT,
        "<|endoftext|>",
    ),
    "only before the next turn": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_end|>\n<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
    ),
    "by another token": (DEFAULT.replace("<|im_end|>", "<|box_end|>"), "<|box_end|>"),
    "with parts": (DEFAULT.replace("m.content", "m.content[0].text"), "<|im_end|>"),
    "by nothing": ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
}


@pytest.mark.parametrize("name", CLOSINGS)
def test_a_base_model_stops_where_its_template_ends_a_turn(
    name: str, folder: Path, qwen3_tokenizer: Tokenizer
) -> None:
    template, end = CLOSINGS[name]
    (folder / "generation_config.json").write_text('{"eos_token_id": 151643}')
    configure(folder, eos_token="<|endoftext|>")
    write(folder, {"default": template})
    ours = load_format(folder, qwen3_tokenizer)
    ends = {151643} | ({qwen3_tokenizer.control[end]} if end else set())
    assert ours.stop_ids == ends
    chat = Chat.of([*HI, {"role": "assistant", "content": "Hello."}])
    if end is None:
        with pytest.raises(OssiaError, match=r"does not continue|no id that stops"):
            ours.render_turns(chat)
    elif name != "by the eos":  # whose prompt does not name the assistant as its turns do
        ((_, reply),) = ours.render_turns(chat)
        assert qwen3_tokenizer.decode(reply).strip().endswith(end)
        assert reply[-1] in ours.stop_ids


def test_a_reply_keeps_its_end_where_the_eos_is_another(
    qwen3_folder: Path, qwen3_tokenizer: Tokenizer
) -> None:
    """Qwen3's own template with the eos of its base models."""
    template = (qwen3_folder / "chat_template.jinja").read_text()
    ours = TemplateFormat(template, qwen3_tokenizer, stop_ids=[151643])
    assert ours.stop_ids == {151643, 151645}
    ((_, reply),) = ours.render_turns(Chat.of([*HI, {"role": "assistant", "content": "Hello."}]))
    assert qwen3_tokenizer.decode(reply).endswith("Hello.<|im_end|>")
