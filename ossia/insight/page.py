"""The frame of a page: one HTML file, light or dark, that asks no host for anything."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

from ossia.insight import svg

_STYLE = (
    """
:root { color-scheme: light dark; --ink: #1d2025; --quiet: #5d636c; --paper: #fbfbf9;
  --edge: #d5d5d0; LIGHT }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e8ea; --quiet: #a3a9b2; --paper: #16181c;
  --edge: #3a3d42; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 16px 64px; max-width: 900px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6em; line-height: 1.2; margin: 0 0 .4em; }
h2 { font-size: 1.2em; margin: 2em 0 .4em; }
p, li { max-width: 42em; }
figure { margin: 1em 0; }
figcaption, .note { color: var(--quiet); font-size: .9em; max-width: 46em; }
pre { overflow-x: auto; padding: 10px 12px; border: 1px solid var(--edge); border-radius: 6px;
  font-size: .85em; }
.wide { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: .85em; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px 4px 0; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--edge); vertical-align: bottom; }
.words th, .words td { text-align: left; white-space: normal; vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: var(--paper); }
th { font-weight: 600; white-space: normal; }
""".replace("LIGHT", svg.COLOURS_LIGHT).replace("DARK", svg.COLOURS_DARK)
    + svg.STYLE
)


def page(title: str, parts: Iterable[str], style: str = "", script: str = "") -> str:
    """A whole page around parts of HTML; `style` is CSS of its own, `script` JavaScript that runs
    once the parts are there. The page's policy lets the browser fetch nothing and run no other
    script.
    """
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; " if script else ""
    policy = f"default-src 'none'; {allowed}style-src 'unsafe-inline'; base-uri 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>"
        f"<body>{''.join(parts)}{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "figures") -> str:
    """head: text; rows: cells of HTML. kind: "figures", or "words" for columns of prose."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def bullets(items: Iterable[str]) -> str:
    """A list of items of HTML."""
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"


def note(text: str) -> str:
    """A paragraph of HTML in small print."""
    return f'<p class="note">{text}</p>'
