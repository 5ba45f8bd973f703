"""Texts under a schema validate, by the JSON Schema Test Suite: no schema of it is held wrongly.

Each schema is enforced or refused by name. Of those enforced, no instance that the suite calls
invalid can be written, and whatever is written at random validates.
"""

from __future__ import annotations

import json
import lzma
from functools import cache
from typing import Any

import pytest

from ossia.errors import OssiaError
from ossia.text import Grammars, Tokenizer, plain_grammar
from ossia.text.constrain.structure import Kind, Structure
from tests.babble import write
from tests.conftest import FIXTURES
from tests.scripted import VOCAB_SIZE

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

# The draft's schema of schemas, jsonschema's validator, and how many schemas are enforced.
DRAFTS = {
    "draft4": ("http://json-schema.org/draft-04/schema#", "Draft4Validator", 120),
    "draft6": ("http://json-schema.org/draft-06/schema#", "Draft6Validator", 150),
    "draft7": ("http://json-schema.org/draft-07/schema#", "Draft7Validator", 150),
    "draft2019-09": ("https://json-schema.org/draft/2019-09/schema", "Draft201909Validator", 150),
    "draft2020-12": ("https://json-schema.org/draft/2020-12/schema", "Draft202012Validator", 150),
}
# Optional parts of the suite that a grammar or jsonschema judges in another way: content is only an
# annotation, dates know no leap years, times no leap seconds, and Python's regular expressions are
# not ECMA's.
OTHERWISE = {
    "optional/content",
    "optional/ecmascript-regex",
    "optional/format/date",
    "optional/format/date-time",
    "optional/format/time",
}
WHERE = "response_format.json_schema.schema"


@pytest.fixture(scope="module")
def tokenizer(bytes_folder) -> Tokenizer:
    from ossia.text import load_tokenizer

    return load_tokenizer(bytes_folder)


@cache
def suite() -> dict[str, Any]:
    return json.loads(lzma.decompress((FIXTURES / "json_schema_suite.json.xz").read_bytes()))


def ids_of(tokenizer: Tokenizer, value: Any) -> list[int]:
    """A value as JSON in the form that a grammar writes it, and the end of the text."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return [*tokenizer.encode(text), tokenizer.control["<|endoftext|>"]]


def accepts(make: Any, ids: list[int]) -> bool:
    try:
        make().accept(ids)
    except OssiaError:
        return False
    return True


@pytest.mark.parametrize("draft", DRAFTS)
def test_each_schema_is_enforced_or_refused_by_name(draft: str, tokenizer: Tokenizer) -> None:
    uri, validator, least = DRAFTS[draft]
    grammars = Grammars(tokenizer, VOCAB_SIZE)
    end = frozenset((tokenizer.control["<|endoftext|>"],))
    enforced, complaints = 0, dict[str, str]()
    for case in suite()[draft]:
        schema, name = case["schema"], f"{case['file']}: {case['description']}"
        if not isinstance(schema, dict) or case["file"] in OTHERWISE:
            continue
        schema = {"$schema": uri, **schema}
        try:
            make = grammars.constraint(plain_grammar(Structure(Kind.JSON, schema, WHERE), end))
        except OssiaError as error:
            complaints[name] = str(error)
            continue
        enforced += 1
        for instance, valid in case["tests"]:
            assert valid or not accepts(make, ids_of(tokenizer, instance)), (name, instance)
        judge = getattr(jsonschema, validator)(schema)
        for seed in range(3):
            ids = write(make(), tokenizer, VOCAB_SIZE, seed, 100)
            if ids[-1] in end:
                judge.validate(json.loads(tokenizer.decode(ids[:-1])))
    assert [name for name, text in complaints.items() if not text.startswith(WHERE)] == []
    assert enforced >= least
