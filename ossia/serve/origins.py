"""Which web pages may ask the server: what a browser asks names the origin of its page.

A server without keys trusts whoever reaches it, and a page of any site can reach one that listens
on this machine, by a name that resolves to it (DNS rebinding). So it answers pages of this machine
and those that are named to it. Programs other than browsers send no origin, and pass.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware

from ossia.serve.errors import ApiError
from ossia.serve.gate import REQUEST_IDS, Asgi, Message, Receive, Send


@dataclass(frozen=True)
class Pages:
    """named: origins such as https://chat.example.org. local: whether only this machine can reach
    the server. If not, its own pages may come by any name.
    """

    named: tuple[str, ...] = ()
    local: bool = True

    def trust(self, origin: str, host: str) -> bool:
        """Whether a page of this origin may ask a server without keys, as this host."""
        try:
            page, asked = urlsplit(origin), urlsplit(f"//{host}").hostname
            name = page.hostname
        except ValueError:
            return False
        if origin == "null":  # a file, but also any page that asks for its own site and no referrer
            return not self.local or _is_this_machine(asked or "")
        if origin in self.named or page.scheme not in ("http", "https"):
            return True  # a browser's extension: of no site
        return _is_this_machine(name or "") or (not self.local and page.netloc == host)


def _is_this_machine(host: str) -> bool:
    """Whether a browser takes it for its own machine, whatever a name server says."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


class Origins:
    """An ASGI application around another, for some pages. Those that are named may also read the
    answers (CORS). keyless: whether pages that are not trusted are refused.
    """

    def __init__(self, app: Asgi, pages: Pages, *, keyless: bool) -> None:
        self._app, self._pages, self._keyless = app, pages, keyless
        if pages.named:
            self._app = CORSMiddleware(
                app,
                allow_origins=pages.named,
                allow_methods=["*"],
                allow_headers=["*"],
                expose_headers=REQUEST_IDS,
            )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keyless:
            headers = dict(scope["headers"])
            origin, host = (
                headers.get(name, b"").decode("latin-1") for name in (b"origin", b"host")
            )
            if origin and not self._pages.trust(origin, host):
                message = (
                    f"pages of {origin[:200]} may not ask this server: start it with "
                    "--allow-origin to let them, or with --api-key"
                )
                error = ApiError(403, message, code="origin_not_allowed")
                return await error.response(scope["path"])(scope, receive, send)
        return await self._app(scope, receive, send)
