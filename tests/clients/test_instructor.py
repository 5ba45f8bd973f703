"""Instructor: answers of a type, in each mode that its users choose for OpenAI's API."""

from __future__ import annotations

import pytest

from tests.clients.scripts import CITY, QUESTION, call, final

instructor = pytest.importorskip("instructor")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")


class City(pydantic.BaseModel):
    city: str


ANSWERS = {
    "TOOLS": call("City", CITY),
    "TOOLS_STRICT": call("City", CITY),
    "JSON": final(CITY),
    "JSON_SCHEMA": final(CITY),
    "MD_JSON": final(f"```json\n{CITY}\n```"),
}


@pytest.fixture(params=ANSWERS)
def client(request, scripted):
    scripted(*[ANSWERS[request.param]] * 2)
    plain = openai.OpenAI(base_url=scripted.url, api_key="none", max_retries=0)
    return instructor.from_openai(plain, mode=getattr(instructor.Mode, request.param))


def test_an_answer_of_a_type(client):
    options = {"model": "scripted", "messages": QUESTION, "max_retries": 0}
    assert client.chat.completions.create(response_model=City, **options).city == "Oslo"
    parts = client.chat.completions.create_partial(response_model=City, **options)
    assert list(parts)[-1].city == "Oslo"


def test_an_answer_that_is_not_valid_is_asked_for_again(scripted):
    class Capital(pydantic.BaseModel):
        city: str

        @pydantic.field_validator("city")
        @classmethod
        def _capital(cls, value):
            if value != "Oslo":
                raise ValueError("that is no capital")
            return value

    scripted(call("Capital", '{"city": "Bergen"}'), call("Capital", CITY))
    client = instructor.from_openai(openai.OpenAI(base_url=scripted.url, api_key="none"))
    answer = client.chat.completions.create(
        model="scripted", messages=QUESTION, response_model=Capital, max_retries=2
    )
    assert answer.city == "Oslo"
    assert "that is no capital" in scripted.prompts[-1]
