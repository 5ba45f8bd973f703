"""The files of the web page, as the server sends them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.serve.conftest import ANSWER

pytest.importorskip("fastapi")

from ossia.serve.page import FILES, FOLDER


def fetch(served, path, method="GET", **headers):
    connection = served.connect()
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    return response, response.read()


def test_the_page_refers_to_its_own_files_only():
    page = (FOLDER / "index.html").read_text()
    referred = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert referred
    assert {f"/{path}" for path in referred} <= FILES.keys()
    for file in FOLDER.glob("*.js"):
        imported = re.findall(r'from "\./([^"]+)"', file.read_text())
        assert {f"/page/{name}" for name in imported} <= FILES.keys()


def test_no_file_reaches_another_host_or_writes_html():
    for file in FILES.values():
        code = file.read_text()
        hosts = re.findall(r"https?://[\w.-]+", code)
        assert {host for host in hosts if "w3.org" not in host} == set(), file
        for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert way not in code, f"{file} uses {way}"
        assert not re.search(r"<style|style=|<script(?! type=\"module\" src=)| on\w+=\"", code), (
            file
        )


@pytest.mark.parametrize("path", FILES)
def test_every_file_has_its_type_and_the_headers(serve, path):
    response, body = fetch(serve(), path)
    kind = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
    kind[".svg"] = "image/svg+xml"
    assert response.status == 200
    assert response.headers["content-type"].split(";")[0] == kind[Path(FILES[path]).suffix]
    assert body == FILES[path].read_bytes()
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_file_that_the_browser_has_is_not_sent_again(serve):
    served = serve()
    response, _ = fetch(served, "/")
    response, body = fetch(served, "/", **{"If-None-Match": response.headers["etag"]})
    assert (response.status, body) == (304, b"")
    response, body = fetch(served, "/", **{"If-None-Match": '"other"'})
    assert response.status == 200
    response, body = fetch(served, "/", method="HEAD")
    assert (response.status, body) == (200, b"")


def test_the_page_needs_no_key_but_the_api_does(serve):
    served = serve(ANSWER, keys=("key",))
    assert all(fetch(served, path)[0].status == 200 for path in FILES)
    assert served.get("/v1/models")[0] == 401
    assert served.get("/page/")[0] == served.get("/page/..%2fpage.py")[0] == 401


def test_the_document_of_the_api_leaves_it_out(serve):
    assert "/page/app.js" not in serve().get("/openapi.json")[1]
