"""The fixture of a browser, for pages that the server sends and for those on disk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serve import chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[chromium.Browser]:
    """Headless Chromium. Skips the test where that is not installed."""
    program = chromium.find()
    if program is None:
        pytest.skip("Chromium is not installed")
    browser = chromium.Browser(program, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()
