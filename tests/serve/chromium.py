"""Headless Chromium, spoken to in the DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",  # which containers do not allow
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-pipe",
)
PATIENCE = 300  # seconds for an answer of the browser


def find() -> str | None:
    """Chromium's path, if it is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A browser with a profile of its own, and one connection to it."""

    def __init__(self, program: str, profile: Path) -> None:
        (read_here, write_there), (read_there, write_here) = os.pipe(), os.pipe()
        there = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (read_there, write_there)]
        os.close(read_there)
        os.close(write_there)
        arguments = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        actions = [
            (os.POSIX_SPAWN_DUP2, there[0], 3),  # the numbers that Chromium expects
            (os.POSIX_SPAWN_DUP2, there[1], 4),
            *((os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_RDWR, 0) for n in (0, 1, 2)),
        ]
        self._pid = os.posix_spawn(
            program, arguments, os.environ, file_actions=actions, setpgroup=0
        )
        for fd in there:
            os.close(fd)
        self._read, self._write = read_here, write_here
        self._rest, self._id = b"", 0
        self._events: dict[str, list[dict[str, Any]]] = {}

    def close(self) -> None:
        """End the processes."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._id:
                assert "error" not in answer, f"{method}: {answer['error']['message']}"
                return answer["result"]
            self._events.setdefault(answer.get("sessionId", ""), []).append(answer)

    def events(self, session: str, method: str) -> list[dict[str, Any]]:
        """The parameters of the events of a kind so far."""
        return [e["params"] for e in self._events.get(session, ()) if e.get("method") == method]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], PATIENCE)[0], "Chromium does not answer"
            data = os.read(self._read, 2**16)
            assert data, "Chromium has ended"
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def tab(self, url: str, width: int = 1100, height: int = 800) -> Tab:
        """A page of this URL, in a context without storage of others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        return self.open(url, context, width, height)

    def open(self, url: str, context: str, width: int = 1100, height: int = 800) -> Tab:
        """A page of this URL in a context that exists."""
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        tab = Tab(self, attached["sessionId"], context)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        tab.size(width, height)
        tab.go(url)
        return tab


class Tab:
    """A page. `$` in its expressions is document.querySelector, `$$` querySelectorAll."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser, self._session, self._context = browser, session, context

    def another(self, url: str) -> Tab:
        """A tab beside this one, which shares its storage and is closed with it."""
        return self._browser.open(url, self._context)

    def close(self) -> None:
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def go(self, url: str) -> None:
        """Load a URL; the same one again, too."""
        self._leave("Page.navigate", url=url)

    def reload(self) -> None:
        self._leave("Page.reload")

    def _leave(self, method: str, **parameters: Any) -> None:
        self.js("window.left = true")  # so that it is not taken for the document that follows
        self.call(method, **parameters)
        self.wait("!window.left && document.readyState === 'complete'")

    def size(self, width: int, height: int, **features: str) -> None:
        """The viewport's, and media features such as prefers_color_scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        given = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.call("Emulation.setEmulatedMedia", features=given)

    def js(self, expression: str) -> Any:
        """The value of an expression, awaited."""
        code = (
            "(async () => { const $ = (s) => document.querySelector(s), "
            f"$$ = (s) => [...document.querySelectorAll(s)]; return {expression}; }})()"
        )
        answer = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Return once a condition holds."""
        self.shows(f"Boolean({condition})", True)

    def shows(self, expression: str, expected: Any) -> None:
        """Return once an expression has this value: a page follows what is done to it in its own
        time.
        """
        end, value = time.monotonic() + PATIENCE, None
        while time.monotonic() < end:
            try:
                value = self.js(expression)
                if value == expected:
                    return
            except AssertionError as error:  # what is looked for, or the document, is not yet there
                if "context" not in str(error).lower() and "TypeError" not in str(error):
                    raise
                value = error
            time.sleep(0.02)
        shown = self.js("document.body.innerText")[:2000]
        raise AssertionError(f"{expression} is {value}, never {expected}, of this page:\n{shown}")

    def type(self, text: str) -> None:
        """Type into what is focused."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *modifiers: str) -> None:
        """Press a key, with "Alt", "Control" or "Shift" held."""
        held = sum({"Alt": 1, "Control": 2, "Shift": 8}[name] for name in modifiers)
        named = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowUp": 38, "ArrowDown": 40}
        named |= {"ArrowLeft": 37, "ArrowRight": 39}
        code = named.get(key, ord(key.upper()[0]))
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": held}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else None)
        if text and not held & ~8:
            event["text"] = text
        self.call("Input.dispatchKeyEvent", type="keyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector: str) -> None:
        """Click the middle of the element that a selector finds."""
        place = self.js(
            f"(() => {{ const e = $({json.dumps(selector)});"
            " e.scrollIntoView({block: 'nearest'}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        event = {"x": place[0], "y": place[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **event)

    @property
    def requests(self) -> list[str]:
        """The URLs that the page asked for."""
        events = self._browser.events(self._session, "Network.requestWillBeSent")
        return [event["request"]["url"] for event in events]

    @property
    def complaints(self) -> list[str]:
        """Exceptions that nothing caught, and what the browser blocked."""
        thrown = self._browser.events(self._session, "Runtime.exceptionThrown")
        logged = self._browser.events(self._session, "Log.entryAdded")
        return [str(event["exceptionDetails"]) for event in thrown] + [
            event["entry"]["text"] for event in logged if event["entry"]["source"] != "network"
        ]

    def controls(self) -> list[tuple[str, str]]:
        """(role, name) of every node of the accessibility tree that can be operated."""
        roles = {"button", "textbox", "searchbox", "combobox", "checkbox", "spinbutton", "link"}
        roles |= {"dialog", "navigation", "article", "region", "DisclosureTriangle"}
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in self.call("Accessibility.getFullAXTree")["nodes"]
            if not node.get("ignored") and node["role"]["value"] in roles
        ]

    def picture(self, file: Path) -> None:
        """Write what the page looks like to a PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        file.write_bytes(base64.b64decode(data))
