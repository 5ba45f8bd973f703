"""Which web pages may use a server: by the origin that a browser sends."""

from __future__ import annotations

import pytest

from ossia.errors import OssiaError
from ossia.serve.options import ServeOptions
from tests.serve.conftest import ANSWER

pytest.importorskip("fastapi")

from ossia.serve.origins import Pages

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
CHAT = "/v1/chat/completions"
EVIL = "http://evil.example:8000"


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "http://127.0.0.1:8000",
        "http://[::1]:8000",
        "http://chat.localhost",
        "https://chat.example.org",
        "chrome-extension://abcdefghijklmnop",
        "null",
    ],
)
def test_pages_of_this_machine_and_named_ones_may_ask(serve, origin):
    served = serve(ANSWER, pages=Pages(("https://chat.example.org",)))
    assert served.post(CHAT, BODY, Origin=origin)[0] == 200


def test_a_name_that_resolves_to_this_machine_does_not_open_it(serve):
    served = serve(ANSWER, pages=Pages())
    # What a browser sends for a page of evil.example once that name means 127.0.0.1.
    status, body = served.post(CHAT, BODY, Origin=EVIL, Host="evil.example:8000")
    assert (status, body["error"]["code"]) == (403, "origin_not_allowed")
    assert EVIL in body["error"]["message"]
    status, body = served.post("/v1/messages", BODY, Origin=EVIL)
    assert (status, body["error"]["type"]) == (403, "permission_error")
    # What the Fetch standard has it send if the page asks for its own site with no referrer.
    assert served.post(CHAT, BODY, Origin="null", Host="evil.example:8000")[0] == 403
    assert served.engine.requests == []
    assert served.post(CHAT, BODY)[0] == 200  # a program, not a browser


def test_with_keys_the_key_decides(serve):
    served = serve(ANSWER, pages=Pages(), keys=("secret",))
    assert served.post(CHAT, BODY, Origin=EVIL)[0] == 401
    assert served.post(CHAT, BODY, Origin=EVIL, Authorization="Bearer secret")[0] == 200


def test_on_a_network_its_own_pages_may_come_by_any_name(serve):
    served = serve(ANSWER, ANSWER, pages=Pages(local=False))
    assert served.post(CHAT, BODY, Origin="http://box.lan:8000", Host="box.lan:8000")[0] == 200
    assert served.post(CHAT, BODY, Origin=EVIL, Host="box.lan:8000")[0] == 403


@pytest.mark.parametrize("keys", [(), ("secret",)])
def test_pages_that_are_named_may_read_answers(serve, keys):
    served = serve(ANSWER, pages=Pages(("https://chat.example.org",)), keys=keys)
    asks = {"Access-Control-Request-Method": "POST"}
    asks["Access-Control-Request-Headers"] = "authorization,content-type"

    def preflight(origin: str) -> tuple[int, str | None]:
        connection = served.connect()
        connection.request("OPTIONS", CHAT, headers={"Origin": origin, **asks})
        response = connection.getresponse()
        return response.status, response.getheader("Access-Control-Allow-Origin")

    assert preflight("https://chat.example.org") == (200, "https://chat.example.org")
    assert preflight("http://localhost:3000")[1] is None
    connection = served.connect()
    headers = {"Origin": "https://chat.example.org", "Authorization": f"Bearer {served.key}"}
    connection.request("GET", "/v1/models", headers=headers)
    response = connection.getresponse()
    assert response.status == 200
    assert response.getheader("Access-Control-Allow-Origin") == "https://chat.example.org"
    assert "x-request-id" in (response.getheader("Access-Control-Expose-Headers") or "")


@pytest.mark.parametrize(
    "origin",
    ["chat.example.org", "*", "https://chat.example.org/", "https://Chat.example.org", "http://["],
)
def test_what_no_browser_sends_is_refused(origin):
    with pytest.raises(OssiaError, match="--allow-origin"):
        ServeOptions(allow_origin=(origin,))
