"""Takes the pictures of pages that docs/ shows, in headless Chromium, light and dark.

python -m book.screenshots docs
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from pathlib import Path

from book.pictures import DATE, FIRST
from ossia.cli.main import main as ossia
from ossia.errors import OssiaError
from tests.serve.chromium import Browser, find

_WIDTH, _MARGIN = 1040, 30  # pixels
_SCHEMES = {"xray.png": "light", "xray-dark.png": "dark"}
# The token that is pointed at: the first of the answer, which shares its text with many others.
_HELD = "$$('.tok').findLast((token) => token.textContent === '<|message|>').nextElementSibling"


def screenshots() -> dict[str, bytes]:
    """Each as a PNG file, by name. Raises OssiaError without Chromium."""
    program = find()
    if program is None:
        raise OssiaError("Chromium takes the pictures, and there is none: install chromium")
    with tempfile.TemporaryDirectory() as name:
        page = _xray(Path(name))
        browser = Browser(program, Path(name) / "profile")
        try:
            return {name: _section(browser, page, s) for name, s in _SCHEMES.items()}
        finally:
            browser.close()


def _xray(folder: Path) -> Path:
    """The x-ray of a chat, by the model inside the package."""
    messages, page = folder / "chat.json", folder / "xray.html"
    messages.write_text(json.dumps({"messages": FIRST, "date": DATE}))
    if ossia(["xray", "--messages", str(messages), "--out", str(page)]) != 0:
        raise OssiaError("ossia xray failed, as it says above")
    return page


def _section(browser: Browser, page: Path, scheme: str) -> bytes:
    """The page's section about the text, with what is known of one token."""
    tab = browser.tab(page.as_uri(), _WIDTH)
    tab.size(_WIDTH, 800, prefers_color_scheme=scheme)
    tab.go(page.as_uri())  # anew, in the scheme's colours
    tab.wait("document.documentElement.dataset.ready === 'yes'")
    tab.js(f"({_HELD}).click()")
    tab.wait("$('.detail').innerText.includes('token')")
    top, bottom = tab.js(
        "[[...$$('h2')].find((title) => title.nextElementSibling.nextElementSibling.id === 'text')"
        ".getBoundingClientRect().top, $('#text').getBoundingClientRect().bottom]"
        ".map((y) => y + scrollY)"
    )
    clip = {"x": 0, "y": top, "width": _WIDTH, "height": bottom - top + _MARGIN, "scale": 1}
    data = tab.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
    tab.close()
    return base64.b64decode(data)


def main(arguments: list[str]) -> None:
    (folder,) = map(Path, arguments)
    for name, picture in screenshots().items():
        (folder / name).write_bytes(picture)


if __name__ == "__main__":
    main(sys.argv[1:])
