"""The page of an x-ray, opened from disk in headless Chromium where that is installed."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from ossia.config import (
    AttentionConfig,
    LayerConfig,
    ModelConfig,
    MoEConfig,
    RMSNorm,
    RoPE,
    Router,
    SwiGLU,
)
from ossia.insight.xray import XrayOptions, examine
from ossia.insight.xray.effects import without_sinks, without_windows
from ossia.insight.xray.page import render
from ossia.insight.xray.subject import Subject, massive, record
from tests.models import build, gpt2_like, gpt_oss_like

HOSTILE = "</script><img src=x onerror=alert(1)>"
READY = "document.documentElement.dataset.ready === 'yes'"


def many_experts() -> ModelConfig:
    moe = MoEConfig(128, 8, 8, SwiGLU(), Router.SOFTMAX_THEN_TOP_K_RENORMALIZED)
    layer = LayerConfig(AttentionConfig(4, 2, 8, qk_norm=True), moe)
    return ModelConfig(97, 16, 4096, (layer,) * 3, RoPE(1e6), RMSNorm())


def xrayed(config: ModelConfig, length: int, name: str = "tiny"):
    """An x-ray, and its subject: every 17th token is text that a page must not read as markup."""
    decoder = build(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(length)
    text = torch.randint(0, 97, (length,), generator=generator)
    found = examine(decoder, text, XrayOptions(effects=length < 100))
    pieces = tuple(HOSTILE if t % 17 == 3 else f"w{t}\n" for t in range(length))
    about = (("model", name), ("layers", str(len(config.layers))))
    return found, Subject(name, about, found.trace, pieces, lambda id: f"<{id}>")


@pytest.fixture
def opened(browser, tmp_path):
    """opened(page, width, scheme): a tab with the page, loaded from disk."""
    tabs = []

    def open_page(page: str, width: int = 1200, scheme: str = "light"):
        file = tmp_path / f"{len(tabs)}.html"
        file.write_text(page, encoding="utf-8")
        tab = browser.tab(file.as_uri(), width, 900)
        tab.size(width, 900, prefers_color_scheme=scheme)
        tabs.append(tab)
        tab.wait(READY)
        tab.js("new Promise(requestAnimationFrame)")
        assert [url for url in tab.requests if url != file.as_uri()] == []
        assert tab.complaints == []
        assert tab.js("document.documentElement.scrollWidth") <= width
        return tab

    yield open_page
    for tab in tabs:
        tab.close()


@pytest.fixture(scope="module")
def page():
    return render([xrayed(gpt_oss_like(), 60)[1]])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_it_opens_from_disk_without_a_request_or_a_complaint(opened, page, width, scheme):
    tab = opened(page, width, scheme)
    assert tab.js("$$('.tok').length") == 60
    assert HOSTILE in tab.js("$('.text').textContent")
    assert tab.js("$$('img').length") == 0
    for section in ("text", "attention", "experts", "lens"):
        assert tab.js(f"$('#{section}').children.length") > 1
    blank = "(c) => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; "
    blank += "return !d.some((x) => x); }"
    assert tab.js(f"$$('canvas').filter({blank}).length") == 0


def test_a_token_says_how_it_was_expected(opened, page):
    trace = xrayed(gpt_oss_like(), 60)[0].trace
    tab = opened(page)
    tab.click(".tok[data-t='9']")
    tab.wait(f"$('.detail').innerText.includes('rank {trace.next_rank[8]};')")
    entropy = f"entropy {float(trace.entropy[8]):.2f} nats"
    tab.wait(f"$('.detail').innerText.includes('{entropy}')")
    shown = tab.js("$$('.detail .routes span').map((e) => e.lastChild.textContent)")
    assert [text.split() for text in shown] == [
        [str(e) for e in row.tolist()] for row in trace.experts[:, 9]
    ]
    tab.js("$('.text').focus()")
    tab.press("ArrowRight")
    tab.wait("$('.detail').innerText.includes('token 10 ·')")
    before = tab.js("$('.tok[data-t=\"9\"]').style.background")
    tab.js("$$('.choice button').find((b) => b.innerText === 'entropy').click()")
    tab.wait(f"$('.tok[data-t=\"9\"]').style.background !== '{before}'")


def test_the_position_that_was_chosen_outlives_a_change_of_the_scheme(opened, page):
    tab = opened(page)
    tab.js(
        "(() => { const canvas = $('#lens canvas'), { x, y } = canvas.getBoundingClientRect();"
        " canvas.dispatchEvent(new MouseEvent('click', { clientX: x + 1, clientY: y + 1 })); })()"
    )
    place = "$$('table.lens thead th').findIndex((cell) => cell.className === 'now')"
    tab.shows(place, 1)
    before = tab.js("$('table.lens td').style.background")
    tab.size(1200, 900, prefers_color_scheme="dark")
    tab.wait(f"$('table.lens td').style.background !== '{before}'")
    tab.shows(place, 1)


def test_heads_are_sorted_by_what_they_look_at(opened, page):
    trace = xrayed(gpt_oss_like(), 60)[0].trace
    tab = opened(page)
    for label, look in (("sink", 0), ("previous token", 3), ("repeats", 6)):
        tab.js(f"$$('.choice button').find((b) => b.innerText === '{label}').click()")
        best = int(trace.head_mass[..., look].flatten().argmax())
        tab.shows("$('.heads button').innerText", f"{best // 6}.{best % 6}")
    tab.js("$('.heads button').click()")
    tab.shows("$('.maps h3').innerText", f"Head {best % 6} of layer {best // 6}")
    tab.shows("$$('.maps canvas').length", 1)


def test_a_long_text_with_many_experts_fits_into_five_megabytes(opened):
    _, subject = xrayed(many_experts(), 2000, "a-model-with-a-long-name-30B-A3B-Instruct-2507")
    page = render([subject])
    assert len(page.encode()) < 5e6
    assert len(render([subject, subject]).encode()) < 5e6
    for width in (390, 1200):
        tab = opened(page, width)
        assert tab.js("$$('.tok').length") == 2000
        assert tab.js("traces[0].experts") == 128
    loads = subject.trace.load[1].tolist()
    assert tab.js("traces[0].load[1]") == loads
    counted = "range(traces[0].shown).filter((t) => traces[0].chosenBy(1, t).includes(5)).length"
    assert tab.js(counted) == loads[5]


def test_the_page_keeps_what_it_was_given(opened):
    """Masses, maps and pairs of experts as the page unpacks them."""
    found, subject = xrayed(gpt_oss_like(), 60)
    tab, trace = opened(render([subject])), found.trace
    mass = torch.tensor(tab.js("range(4).map((l) => range(60).map((t) => traces[0].at(l, t, 0)))"))
    assert (mass - trace.token_mass[..., 0]).abs().max() <= 0.5 / 255 + 1e-6
    heads = torch.tensor(
        tab.js("range(4).map((l) => range(6).map((h) => traces[0].head(l, h, 4)))")
    )
    assert (heads - trace.head_mass[..., 4]).abs().max() <= 1e-5
    cells = "range(60).map((r) => range(60).map((c) => 255 * traces[0].map(2, 1)(r, c)))"
    assert torch.equal(torch.tensor(tab.js(cells)).round(), trace.thumbnails[2, 1].float())
    pairs = "range(5).map((a) => range(5).map((b) => together(traces[0], 3).count(a, b)))"
    assert tab.js(pairs) == trace.together(3).tolist()


@pytest.mark.parametrize("change", [without_sinks, without_windows])
def test_a_comparison_shows_both_and_marks_what_differs(opened, change):
    found, subject = xrayed(gpt_oss_like(), 60)
    other = found.decoder.on(found.decoder.ops, change(found.decoder.config))
    changed = examine(other, found.trace.tokens, XrayOptions(effects=False))
    second = replace(subject, name="changed", trace=changed.trace)
    between = found.against(changed)
    assert between is not None
    assert float(between.kl.mean()) > 1e-3
    tab = opened(render([subject, second], between))
    assert tab.js("$$('.worse').length") > 2
    assert "blue: B expects it more" in tab.js("$('#text .hint').innerText")
    assert tab.js("$$('.detail .token').length") == 2
    assert tab.js("$$('#attention canvas').length") == 5  # heads of both, their difference, maps


def test_models_without_sinks_windows_or_experts(opened):
    _, subject = xrayed(gpt2_like(), 40)
    tab = opened(render([subject]))
    assert tab.js("$('#experts')") is None
    labels = tab.js("$$('#attention .choice button').map((b) => b.innerText)")
    assert labels[0] == "first token"
    assert "sink" not in labels


def test_texts_that_differ_stand_side_by_side(opened):
    first, second = xrayed(gpt_oss_like(), 40)[1], xrayed(gpt_oss_like(), 30)[1]
    tab = opened(render([first, replace(second, name="other")]))
    assert tab.js("$$('#text .side').length") == 2
    assert tab.js("$$('.tok').length") == 70


def test_the_page_says_what_was_measured(page):
    assert "What SwiGLU's clamp cuts" in page
    for name in ("int8 keys and values", "int8 dense weights"):
        assert f"<td>{name}</td>" in page
    assert "MXFP4" not in re.sub(r"<script.*", "", page, flags=re.DOTALL)  # 22 is no multiple of 32


def test_a_record_is_json_with_every_token_and_layer():
    found, subject = xrayed(gpt_oss_like(), 60)
    data = json.loads(json.dumps(record(subject), allow_nan=False))
    assert len(data["tokens"]) == 60
    assert data["tokens"][-1]["next_logprob"] is None
    assert data["tokens"][3]["text"] == HOSTILE
    assert data["tokens"][5]["top"][0]["id"] == int(found.trace.top_ids[5, 0])
    assert data["layers"][2]["load"] == found.trace.load[2].tolist()
    assert data["attention"]["looks"][0] == "sink"
    assert data["effects"]["int8 dense weights"]["agreement"] <= 1
    largest = data["layers"] and massive(found.trace)[0]
    values = found.trace.stream_max.abs()
    assert abs(largest["value"]) == pytest.approx(float(values.max()), rel=1e-5)
