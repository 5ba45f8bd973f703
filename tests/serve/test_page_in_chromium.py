"""The web page, used as its users use it, in headless Chromium where that is installed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from ossia.serve import page
from ossia.serve.hosted import Hosted
from tests.scripted import eventually
from tests.serve.chromium import Tab
from tests.serve.conftest import ANSWER, CALL, Served, run
from tests.serve.test_hosted import CODE, python

ENDLESS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>on"
IDLE = "$('#send').title === 'Send'"
ANSWERS = "$$('article.assistant .body').map((e) => e.textContent.trim())"
KEPT = "import('/page/store.js').then((store) => store.load(location.hash.slice(1)))"
FOCUS = "window.dispatchEvent(new Event('focus'))"  # as when one comes back to the page
# Again where the end of what has just been drawn was followed before the page knew of it.
TO_TOP = "($('#scroller').scrollTop = 0, !$('#latest').hidden)"
FIELDS = ["#title", "[name=temperature]"]
# The next request waits until the page calls release(), and then fails.
HELD = (
    "(() => { const { fetch } = window; window.fetch = () => { window.fetch = fetch;"
    " return new Promise((_, refuse) => (window.release = refuse)); }; })()"
)
STATES = f"Object.values((await {KEPT}).nodes).map((n) => n.state).filter(Boolean)"  # of answers


def final(text: str) -> str:
    return f"<|channel|>final<|message|>{text}<|return|>"


def ask(tab: Tab, text: str, until: str = IDLE) -> None:
    tab.js("$('#message').focus()")
    tab.type(text)
    tab.press("Enter")
    tab.wait(f"$$('article').some((a) => a.textContent.includes({json.dumps(text)}))")
    tab.wait(until)


def ask_for_ever(tab: Tab, served: Served) -> None:
    """Ask what is answered until it is stopped, and return while it is."""
    served.engine.endless = True
    ask(tab, "Go", "$('article.assistant > .body')?.innerText.includes('onnnn')")


def ask_in_two(tab: Tab) -> None:
    """Ask in a conversation about apples, and then in one about pears."""
    ask(tab, "Apples")
    tab.press("O", "Control", "Shift")
    tab.wait("$$('article').length === 0")
    ask(tab, "Pears")
    tab.wait("$$('#conversations li').length === 2")


def meanwhile(tab: Tab, mode: str, action: str) -> None:
    """Have the page do something at the end of the next load ("readonly") or change ("readwrite")
    of a conversation, just before what awaits it goes on; `window.over` is true once it has.
    """
    tab.js(
        "(() => { const { transaction } = IDBDatabase.prototype;"
        " IDBDatabase.prototype.transaction = function (...given) {"
        "  const made = transaction.apply(this, given);"
        f"  if (made.mode === '{mode}' && made.objectStoreNames.contains('conversations')) {{"
        "   IDBDatabase.prototype.transaction = transaction;"
        "   made.addEventListener('complete', () => {"
        "    const $ = (s) => document.querySelector(s);"
        f"    setTimeout(() => (window.over = true)); {action}; }}); }}"
        "  return made; }; })()"
    )


def add_elsewhere(tab: Tab) -> Tab:
    """A second tab of the conversation, to which the first has added since: a focus shows it."""
    tab.shows(STATES, ["done"])
    other = tab.another(tab.js("location.href"))
    other.wait("$$('article').length === 2 && $('#model').options.length")
    tab.js("($('#message').value = 'More', $('#composer').requestSubmit())")
    tab.shows(STATES, ["done"] * 2)
    return other


def settings_beside(tab: Tab) -> None:
    """Open the settings in a window that has a place for them beside the conversation."""
    wide = "matchMedia('(min-width: 75rem)')"
    tab.js(f"{wide}.addEventListener('change', () => (window.wide = true))")
    tab.size(1400, 800)
    tab.wait("window.wide")  # and the page, which has listened for longer, has closed what was open
    tab.press(",", "Control")


def type_beside(tab: Tab, field: str) -> None:
    """Begin to type "1.5" in a field beside the messages."""
    settings_beside(tab)
    tab.js(f"$('{field}').select()")
    tab.type("1.5")


def delete(tab: Tab) -> None:
    """Delete the conversation that is shown."""
    tab.js("$('#delete').click()")
    tab.wait("$('#confirm').open")
    tab.js("$('#confirm .danger').click()")


class TestChat:
    def test_an_answer_with_its_reasoning_folded_away(self, visit):
        tab, served = visit(ANSWER, ANSWER)
        ask(tab, "What is it?")
        tab.shows("$('article.assistant .prose p').textContent", "Forty-two, é!")
        tab.wait("!$('details.reasoning').open")
        tab.js("$('details.reasoning summary').click()")
        tab.wait("$('details.reasoning .thoughts').textContent === 'Hm.'")
        cost = tab.js("$('.assistant .cost').textContent")
        assert re.search(r"tokens · first after (\d+ ms|[1-9]\d*\.\d s)", cost)
        ask(tab, "And then?")
        assert "What is it?" in served.prompt()
        assert "Forty-two, é!" in served.prompt()
        assert tab.complaints == []

    def test_it_streams_until_it_is_stopped_and_outlives_a_reload(self, visit):
        tab, served = visit(ENDLESS, ANSWER)
        ask_for_ever(tab, served)
        tab.shows("$('#send').title", "Stop")
        tab.shows("$('article.assistant').getAttribute('aria-busy')", "true")
        tab.press("Escape")
        tab.wait(IDLE)
        assert eventually(lambda: served.engine.aborted == [0])
        tab.shows("$('.assistant .problem').innerText", "Stopped.")
        text = tab.js(ANSWERS)
        tab.shows(STATES, ["stopped"])
        tab.reload()
        tab.shows(ANSWERS, text)
        tab.shows("$('#conversations').innerText", "Go")

    def test_answering_again_and_editing_make_versions(self, visit):
        tab, served = visit(final("one"), final("two"), final("three"))
        ask(tab, "First")
        tab.js("$('[aria-label=\"Answer again\"]').click()")
        tab.wait(f"{IDLE} && $('.assistant').innerText.includes('two')")
        tab.shows("$('.assistant .versions').innerText", "2/2")
        tab.js("$('.assistant [aria-label=\"Previous version\"]').click()")
        tab.shows(ANSWERS, ["one"])
        tab.js("$('.user [aria-label=\"Edit this message\"]').click()")
        tab.wait("!$('.user footer').checkVisibility()")
        tab.js("$('.editor textarea').select()")
        tab.type("Second")
        tab.js("$('.editor .primary').click()")
        tab.wait(f"{IDLE} && $('.assistant').innerText.includes('three')")
        assert "First" not in served.prompt()
        tab.js("$('article.user').focus()")
        tab.press("ArrowLeft")
        tab.shows(ANSWERS, ["one"])
        tab.wait("document.activeElement.innerText.startsWith('You')")

    def test_a_call_is_a_card_that_takes_its_result(self, visit):
        tab, served = visit(CALL, final("It rains."))
        ask(tab, "Rain?")
        tab.shows("$('.call dl').innerText.split(/\\s+/)", ["city", "Oslo"])
        tab.js("$('.result-form textarea').focus()")
        tab.type("wet")
        tab.press("Enter", "Control")
        tab.wait(f"{IDLE} && $$('article').length === 3")
        assert "functions.weather to=assistant" in served.prompt()
        assert "wet" in served.prompt()
        tab.shows(f"{ANSWERS}[1]", "It rains.")

    def test_settings_reach_the_model(self, visit):
        tab, served = visit(ANSWER)
        tab.press(",", "Control")
        tools = json.dumps([{"name": "weather", "parameters": {"type": "object"}}])
        values = {"system": "Be brief.", "temperature": "0.25", "seed": "7", "tools": tools}
        for name, value in values.items():
            tab.js(f"$('[name={name}]').focus()")
            tab.type(value)
        tab.press("Escape")
        tab.js("($('#effort').value = 'high', $('#effort').dispatchEvent(new Event('change')))")
        ask(tab, "Hello")
        sampling = served.engine.requests[0].sampling
        assert (sampling.temperature, sampling.seed) == (0.25, 7)
        assert "Be brief." in served.prompt()
        assert "type weather = (" in served.prompt()
        assert "Reasoning: high" in served.prompt()

    def test_conversations_are_found_renamed_and_deleted(self, visit):
        tab, _ = visit(final("a"), final("b"))
        ask_in_two(tab)
        tab.press("k", "Control")
        tab.type("appl")
        tab.wait("$('#conversations').innerText.trim() === 'Apples'")
        tab.js("$('#conversations button').click()")
        tab.wait("$('article.user')?.innerText.includes('Apples')")
        delete(tab)
        tab.wait("$$('#conversations li').length === 0")
        tab.js("($('#filter').value = '', $('#filter').dispatchEvent(new Event('input')))")
        tab.wait("$('#conversations').innerText.trim() === 'Pears'")

    def test_a_click_that_brings_the_window_to_the_front_is_not_lost(self, visit):
        tab, _ = visit(final("a"), final("b"))
        ask_in_two(tab)
        tab.js("window.pressed = $('#conversations li:last-child button')")
        tab.js(FOCUS)
        tab.js("import('/page/store.js').then((store) => store.list())")  # as the page has, before
        tab.shows("window.pressed.isConnected", True)
        tab.js("window.pressed.click()")
        tab.shows(ANSWERS, ["a"])
        tab.shows("window.pressed.ariaCurrent", "true")

    def test_a_result_that_is_being_typed_outlives_another_tab(self, visit):
        tab, _ = visit(CALL, final("dry"))
        ask(tab, "Rain?")
        tab.shows(STATES, ["done"])
        other = tab.another(tab.js("location.href"))
        other.wait("$('.result-form textarea') && $('#model').options.length")
        other.js("$('.result-form textarea').focus()")
        other.type("we")
        tab.js("($('#message').value = 'Well?', $('#composer').requestSubmit())")
        tab.shows(STATES, ["done"] * 2)
        other.js(FOCUS)
        other.js(KEPT)  # as the page has read it, before
        other.shows("$('.result-form textarea').value", "we")

    def test_one_that_is_left_while_it_is_answered_goes_on(self, visit):
        tab, served = visit(ENDLESS, ANSWER)
        ask_for_ever(tab, served)
        tab.wait("$$('#conversations li').length === 1")
        tab.press("O", "Control", "Shift")
        tab.shows(IDLE, True)
        tab.js("$('#conversations button').click()")
        tab.wait("$('article.assistant')?.getAttribute('aria-busy') === 'true'")
        length = tab.js(f"{ANSWERS}[0].length")
        tab.wait(f"{ANSWERS}[0].length > {length}")
        tab.press("Escape")
        tab.wait("$('.assistant .problem').innerText === 'Stopped.'")
        served.engine.endless = False
        ask(tab, "And then?", f"{IDLE} && $$('article').length === 4")
        said = tab.js("$('.assistant .prose').textContent.trim()")
        assert f"<|message|>{said}<|end|>" in served.prompt()

    def test_two_tabs_of_one_lose_nothing(self, visit):
        tab, served = visit(final("one"), final("two"), final("three"))
        ask(tab, "First")
        tab.shows(STATES, ["done"])
        other = tab.another(tab.js("location.href"))
        other.shows(ANSWERS, ["one"])
        other.wait("$('#model').options.length")
        ask(other, "Second", f"{IDLE} && $$('article').length === 4")
        other.shows(STATES, ["done"] * 2)
        # Without a focus, at which this one would show what the other has added.
        tab.js("($('#message').value = 'Third', $('#composer').requestSubmit())")
        tab.wait(f"{IDLE} && $('article:last-child').textContent.includes('three')")
        tab.shows(STATES, ["done"] * 3)  # of both tabs
        assert "Second" not in served.prompt()  # which this one did not show
        tab.shows("$('article:nth-child(3) .versions').textContent", "2/2")
        tab.call("Page.bringToFront")
        other.call("Page.bringToFront")
        other.shows(ANSWERS, ["one", "three"])
        other.js("$('article:nth-child(3) [aria-label=\"Previous version\"]').click()")
        other.shows(ANSWERS, ["one", "two"])

    def test_what_another_tab_made_of_answers_is_merged(self, canned):
        tab, _ = canned()
        call = {"type": "call", "result": None}
        assert tab.js(
            "import('/page/conversation.js').then(({newConversation, add, path, merge}) => {"
            " const ours = newConversation(), say = (to, message) =>"
            "  add(to, path(to).at(-1)?.id ?? 'root', message);"
            " say(ours, {role: 'user', content: 'Rain?'});"
            f" say(ours, {{role: 'assistant', state: 'done', parts: [{json.dumps(call)}]}});"
            " const theirs = structuredClone(ours);"
            " path(theirs)[1].parts[0].result = 'wet';"
            " say(theirs, {role: 'assistant', state: 'failed', error: 'busy', parts: []});"
            " say(theirs, {role: 'user', content: 'Well?'});"
            " merge(ours, theirs);"
            " return [path(ours)[1].parts[0].result, path(ours).map((node) => node.content)];"
            "})"
        ) == ["wet", ["Rain?", None, None, "Well?"]]

    def test_the_later_name_and_time_are_kept_whichever_tab_saves_last(self, canned):
        tab, _ = canned()
        kept = tab.js(
            "Promise.all([import('/page/conversation.js'), import('/page/store.js')]).then("
            "async ([{newConversation}, store]) => {"
            " const ours = {...newConversation(), updated: 1, title: 'Old'};"
            " const theirs = {...structuredClone(ours), updated: 2, title: 'New', renamed: 2};"
            " await store.save(theirs); await store.save(ours);"
            " const {title, updated} = await store.load(ours.id), [listed] = await store.list();"
            " return [title, updated, listed.title, listed.updated, ours.title, ours.updated]; })"
        )
        assert kept == ["New", 2, "New", 2, "New", 1]

    def test_a_name_given_in_another_tab_outlives_the_answer(self, visit):
        tab, served = visit(ENDLESS)
        ask_for_ever(tab, served)
        tab.shows(STATES, ["running"])
        other = tab.another(tab.js("location.href"))
        other.shows("$('#title').value", "Go")
        other.js("($('#title').value = 'Ons', $('#title').dispatchEvent(new Event('change')))")
        other.shows("$('#conversations').innerText", "Ons")
        tab.js("$('#composer').requestSubmit()")  # which stops the answer
        tab.wait(IDLE)
        tab.shows(STATES, ["stopped"])
        tab.shows(f"(await {KEPT}).title", "Ons")
        other.js(FOCUS)
        other.wait("$('.assistant .problem').innerText === 'Stopped.'")

    def test_one_that_is_deleted_while_it_is_answered_stays_deleted(self, visit):
        tab, served = visit(ENDLESS)
        ask_for_ever(tab, served)
        delete(tab)
        tab.wait("$('#said').textContent === 'Stopped'")
        tab.wait("$$('#conversations li').length === 0")
        tab.shows("import('/page/store.js').then((store) => store.list())", [])


class Canned:
    """A server with the page, and answers that are written here."""

    def __init__(self, *answers: Response) -> None:
        self.app, self.bodies = FastAPI(), []
        self.app.include_router(page.routes())
        left = iter(answers)

        @self.app.get("/v1/models")
        async def _models():
            return {"data": [{"id": "tiny"}]}

        @self.app.post("/v1/chat/completions")
        async def _complete(request: Request):
            self.bodies.append(await request.json())
            return next(left)


def stream(*deltas: dict[str, Any]) -> Response:
    chunks = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return Response("".join([*lines, "data: [DONE]\n\n"]), media_type="text/event-stream")


@pytest.fixture
def canned(browser) -> Iterator[Callable[..., tuple[Tab, Canned]]]:
    """canned(*answers) opens the page of a server that gives them."""
    ends: list[Callable[[], None]] = []

    def start(*answers: Response) -> tuple[Tab, Canned]:
        served = Canned(*answers)
        port, stop = run(served.app)
        tab = browser.tab(f"http://127.0.0.1:{port}/")
        ends.extend((tab.close, stop))
        tab.wait("$('#model').options.length")
        return tab, served

    yield start
    for end in ends:
        end()


def served_call(**fields: Any) -> dict[str, Any]:
    return {"server_tool_calls": [{"index": 0, **fields}]}


class TestToolsOfTheServer:
    def test_the_servers_own_stream_is_shown_and_taken_back(self, visit):
        tab, served = visit(CODE, ANSWER, ANSWER, hosted=Hosted([python()]))
        ask(tab, "Six times seven?")
        tab.shows("$('.call > pre').innerText", "print(6 * 7)")
        tab.shows("$('.call .result pre').textContent", "1:python:print(6 * 7)")
        tab.shows("$('.assistant .prose').innerText", "Forty-two, é!")
        ask(tab, "Sure?", f"{IDLE} && $$('article').length === 4")
        tab.shows("$('.failed')", None)
        assert "Six times seven?" in served.prompt()
        tab.shows("$$('.assistant .prose').length", 2)

    def test_a_call_and_its_result_stand_where_they_happened(self, canned):
        named = {"id": "c1", "type": "function", "server_label": "python"}
        tab, served = canned(
            stream(
                {"reasoning_content": "Compute."},
                served_call(**named, function={"name": "python", "arguments": ""}),
                served_call(function={"arguments": '{"code": "print('}),
                served_call(function={"arguments": '6 * 7)"}'}),
                served_call(output="42\n", is_error=False),
                {"reasoning_content": "So it is."},
                {"content": "It is 42."},
            ),
            stream({"content": "Yes."}),
        )
        ask(tab, "Six times seven?")
        kinds = ["reasoning", "call", "reasoning", "prose"]
        tab.shows("[...$('.assistant .body').children].map((e) => e.className)", kinds)
        tab.shows("$('.call header').innerText.split(/\\s+/)", ["python", "done"])
        tab.shows("$('.call dd').innerText", "print(6 * 7)")
        tab.shows("$('.call .result pre').innerText", "42\n")
        tab.shows("$('.result-form')", None)
        ask(tab, "Sure?", f"{IDLE} && $$('article').length === 4")
        sent = served.bodies[1]["messages"][1]
        assert sent["content"] == "It is 42."
        assert sent["server_tool_calls"] == [
            {
                **named,
                "function": {"name": "python", "arguments": '{"code": "print(6 * 7)"}'},
                "output": "42\n",
                "is_error": False,
            }
        ]

    def test_tokens_per_second_leave_out_the_time_of_tools(self, canned):
        tab, _ = canned()
        chunks = [
            (1000, {"content": "a"}),
            (2000, served_call(id="c", server_label="x", function={"arguments": ""})),
            (9000, served_call(output="")),
            (11000, {"content": "b"}),
            (12000, {"content": "c"}),
        ]
        assert tab.js(
            "import('/page/reply.js').then(({Reply, speed}) => { let at = 0; const message = {};"
            " const reply = new Reply(message, () => at);"
            f" for (const [time, delta] of {json.dumps(chunks)}) {{ at = time;"
            " reply.add({choices: [{delta}]}); } return [speed(message.stats), message.stats.wait];"
            " })"
        ) == [1.5, 1]

    def test_one_token_is_no_tokens(self, canned):
        tab, _ = canned(stream({"content": "Yes."}))
        ask(tab, "Well?")
        tab.wait("$('.assistant .cost').textContent.startsWith('about 1 token · ')")
        token = {"entropy": 1, "logprob": -1, "attention": [0] * 6, "experts": []}
        title = tab.js(
            "import('/page/xray.js').then(({see, XrayPanel}) => { const node = {};"
            f" see(node, [{json.dumps(token)}]); const panel = new XrayPanel(node);"
            " panel.show(); return panel.title.textContent; })"
        )
        assert title.startswith("Inside the model · 1 token · entropy")

    def test_one_that_failed_says_so(self, canned):
        call = {"id": "c1", "server_label": "files", "function": {"name": "read", "arguments": "?"}}
        tab, _ = canned(stream(served_call(**call), served_call(output="no", is_error=True)))
        ask(tab, "Read it")
        named = ["files", "·", "read", "failed"]
        tab.shows("$('.call header').innerText.split(/\\s+/)", named)
        tab.shows("$('.call > pre').innerText", "?")


class TestTrouble:
    def test_a_busy_server_says_when_to_come_back(self, canned):
        busy = {"error": {"message": "the server is busy"}}
        tab, _ = canned(JSONResponse(busy, 429, {"Retry-After": "7"}), stream({"content": "Now."}))
        ask(tab, "Hello")
        tab.shows("$('.assistant .problem span').innerText", "the server is busy; try again in 7 s")
        tab.js("$('.assistant .problem button').click()")
        tab.wait(f"{IDLE} && $('.assistant .prose')?.innerText === 'Now.'")

    def test_what_follows_a_failed_answer_stays_when_it_is_tried_again(self, canned):
        busy = {"error": {"message": "the server is busy"}}
        answers = [stream({"content": text}) for text in ("Now.", "Later.")]
        tab, _ = canned(JSONResponse(busy, 500), *answers)
        ask(tab, "Hello")
        tab.wait("$('.assistant .problem button')")
        ask(tab, "Well?", f"{IDLE} && $('article:nth-child(4)')?.textContent.includes('Now.')")
        tab.js("$('.assistant .problem button').click()")
        tab.wait(f"{IDLE} && $('article:nth-child(2)').textContent.includes('Later.')")
        tab.js("$('article:nth-child(2) [aria-label=\"Previous version\"]').click()")
        tab.shows("$('article:nth-child(4) .prose').innerText", "Now.")

    def test_functions_that_are_no_json_are_told(self, visit):
        tab, served = visit(ANSWER)
        tab.press(",", "Control")
        tab.js("$('[name=tools]').focus()")
        tab.type("{not")
        tab.press("Escape")
        ask(tab, "Hello")
        tab.wait("$('.assistant .problem').innerText.includes('the functions are not JSON')")
        assert served.engine.requests == []

    def test_what_is_no_api_is_told(self, canned):
        tab, _ = canned(Response("<h1>Bad gateway</h1>", 502), Response("data: {", 200))
        ask(tab, "Hello")
        tab.wait("$('.assistant .problem').innerText.includes('status 502')")
        tab.js("$('.assistant .problem button').click()")
        tab.wait(f"{IDLE} && $('.assistant .problem').innerText.includes('ended before')")

    def test_it_asks_for_the_key_of_a_server_that_has_one(self, visit):
        tab, _ = visit(ANSWER, keys=("secret",))
        tab.js("$('#notice button').click()")
        tab.wait("$('#key').open")
        tab.js("$('#key-value').focus()")
        tab.type("secret")
        tab.press("Enter")
        tab.wait("$('#model').options.length")
        ask(tab, "Hello")
        tab.wait(f"{ANSWERS}[0].endsWith('Forty-two, é!')")

    def test_a_refusal_is_told_and_may_be_tried_again(self, visit):
        tab, served = visit(ANSWER, max_prompt=300)
        ask(tab, "x" * 300)
        tab.wait("$('.assistant .problem').innerText.includes('this server takes 300')")
        tab.shows("$('.assistant .problem').getAttribute('role')", "alert")
        tab.js("$('.user [aria-label=\"Edit this message\"]').click()")
        tab.js("$('.editor textarea').select()")
        tab.type("y")
        tab.press("Enter", "Control")
        tab.wait(f"{IDLE} && $('.assistant .prose p')")
        assert len(served.engine.requests) == 1

    def test_a_server_that_is_gone_is_told(self, visit):
        tab, _ = visit(ANSWER)

        def network(offline: bool) -> None:
            speeds = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
            tab.call("Network.emulateNetworkConditions", offline=offline, **speeds)
            tab.shows("fetch('health').then(() => false, () => true)", offline)

        network(offline=True)
        ask(tab, "Hello")
        tab.wait("$('.assistant .problem').innerText.includes('cannot be reached')")
        network(offline=False)
        tab.js("$('.assistant .problem button').click()")
        tab.wait(f"{IDLE} && $('.assistant .prose p')?.textContent === 'Forty-two, é!'")
        tab.shows("$('.versions')", None)  # what never began is no version

    def test_an_answer_that_breaks_off_keeps_what_came(self, visit):
        tab, served = visit("<|channel|>final<|message|>on and on")
        served.engine.endless = True
        ask(tab, "Hello", "$('article.assistant > .body')?.innerText.includes('on and onnn')")
        served.engine.broken.add(0)
        tab.wait(IDLE)
        tab.wait("$('.assistant .problem').innerText.includes('not finite')")
        tab.wait(f"{ANSWERS}[0].includes('on and onnn')")


HOSTILE = r"""<script>document.title = "owned"</script>
<img src=x onerror="document.title = 'owned'"> <svg onload="document.title='owned'">
[click](javascript:document.title='owned') <javascript:alert(1)> [data](data:text/html,hi)
[tab](java&#x09;script:alert(1)) ![pixel](https://evil.example/p.png) [ok](https://example.com/)
<iframe src="https://evil.example/"></iframe> <style>@import "https://evil.example/x.css"</style>
$\href{javascript:alert(1)}{x}$ $\text{<img src=x onerror=alert(1)>}$
`<b onclick=alert(1)>`

```html"><img src=x onerror=alert(1)>
<img src=x onerror="document.title = 'owned'">
```

| <img src=y onerror=alert(1)> | [a](vbscript:x) |
|---|---|
| <br> | [constructor]: javascript:alert(1) |
"""


class TestPlaces:
    def test_it_works_under_a_path_of_a_proxy(self, browser, serve):
        served = serve(ANSWER)

        async def proxy(scope, receive, send):
            assert scope["path"].startswith("/models/tiny/")
            await served.app(scope | {"path": scope["path"][12:]}, receive, send)

        port, stop = run(proxy)
        tab = browser.tab(f"http://127.0.0.1:{port}/models/tiny/")
        try:
            tab.wait("$('#model').options.length")
            ask(tab, "Hello")
            tab.wait(f"{ANSWERS}[0].endsWith('Forty-two, é!')")
            tab.shows("location.pathname", "/models/tiny/")
        finally:
            tab.close()
            stop()

    def test_another_tab_opens_the_same_conversation(self, visit):
        tab, _ = visit(ANSWER, final("b"))
        ask(tab, "Hello")
        place = tab.js("location.hash")
        tab.press("O", "Control", "Shift")
        ask(tab, "Other")
        tab.js(f"location.hash = '{place}'")
        tab.wait("$('article.user')?.innerText.includes('Hello')")
        tab.shows("$('#conversations [aria-current=true]').innerText", "Hello")

    def test_an_address_that_is_entered_while_a_conversation_is_saved_is_gone_to(self, visit):
        tab, _ = visit(ANSWER, ANSWER)
        ask(tab, "Hello")
        place = tab.js("location.hash")
        tab.press("O", "Control", "Shift")
        ask(tab, "Other")
        meanwhile(tab, "readwrite", f"location.hash = '{place}'")
        tab.js("($('#effort').value = 'high', $('#effort').dispatchEvent(new Event('change')))")
        tab.wait("window.over")
        tab.wait("$('article.user')?.innerText.includes('Hello')")
        tab.shows("location.hash", place)

    def test_the_last_conversation_that_is_asked_for_is_shown(self, visit):
        tab, _ = visit(ANSWER, ANSWER)
        ask_in_two(tab)
        meanwhile(tab, "readonly", "$('#new').click()")
        tab.js("$('#conversations li:last-child button').click()")
        tab.wait("window.over")
        tab.shows("$$('article').length", 0)

    def test_what_is_asked_of_the_conversation_that_is_opened_again_is_shown(self, visit):
        tab, _ = visit(ANSWER, ANSWER)
        ask(tab, "Hello")
        tab.wait("$('#conversations [aria-current=true]')")
        send = "$('#message').value = 'More', $('#composer').requestSubmit()"
        tab.js(f"($('#conversations [aria-current=true]').click(), {send}, 0)")
        tab.wait(f"{IDLE} && $$('article').length === 4")

    def test_one_that_another_tab_has_deleted_cannot_be_opened(self, visit):
        tab, _ = visit(final("a"), final("b"))
        ask_in_two(tab)
        remove = "store.remove($('#conversations li:last-child').dataset.id)"
        tab.js(f"import('/page/store.js').then((store) => {remove})")
        tab.js("$('#conversations li:last-child button').click()")
        tab.shows("$('#conversations').innerText.trim()", "Pears")
        tab.shows(ANSWERS, ["b"])

    def test_a_conversation_may_be_opened_while_another_is_deleted(self, visit):
        tab, _ = visit(final("a"), final("b"))
        ask_in_two(tab)
        tab.shows(STATES, ["done"])
        meanwhile(tab, "readwrite", "$('#conversations li:last-child button').click()")
        delete(tab)
        tab.shows(ANSWERS, ["a"])


class TestMeanwhile:
    """What is done on the page while it waits for something, or is under way in it."""

    def test_a_title_outlives_the_end_of_an_answer(self, visit):
        tab, served = visit(ENDLESS)
        ask_for_ever(tab, served)
        tab.js("$('#title').select()")
        tab.type("Mine")
        tab.js("$('#composer').requestSubmit()")  # which stops the answer
        tab.wait(IDLE)
        tab.shows("$('#title').value", "Mine")
        tab.press("Enter")
        tab.shows("$('#conversations').innerText", "Mine")

    @pytest.mark.parametrize("field", FIELDS)
    def test_what_is_typed_belongs_to_the_conversation_that_was_shown(self, visit, field):
        tab, _ = visit(ANSWER)
        ask(tab, "Hello")
        tab.wait("$('#conversations button')")
        type_beside(tab, field)
        tab.press("O", "Control", "Shift")
        tab.shows(f"$('{field}').value", "")
        tab.js("$('#conversations button').click()")
        tab.shows(f"$('{field}').value", "1.5")

    @pytest.mark.parametrize("field", FIELDS)
    def test_what_is_typed_outlives_another_tab(self, visit, field):
        tab, _ = visit(ANSWER, ANSWER)
        ask(tab, "Hello")
        other = add_elsewhere(tab)
        type_beside(other, field)
        other.js(FOCUS)
        other.js(KEPT)  # as the page has read it, before
        other.shows(f"$('{field}').value", "1.5")

    def test_a_choice_outlives_another_tab(self, visit):
        tab, _ = visit(ANSWER, ANSWER)
        ask(tab, "Hello")
        other = add_elsewhere(tab)
        choose = "$('#effort').value = 'high', $('#effort').dispatchEvent(new Event('change'))"
        meanwhile(other, "readonly", choose)
        other.js(FOCUS)
        other.wait("window.over")
        other.shows("$('#effort').value", "high")
        other.shows(f"(await {KEPT}).settings.effort", "high")

    def test_what_another_tab_adds_moves_neither_the_focus_nor_the_text(self, visit):
        tab, _ = visit(final("\n\n".join("abcdefghij" * 6)), ANSWER)
        ask(tab, "Hello")
        other = add_elsewhere(tab)
        other.js("$('article').focus()")
        other.wait(TO_TOP)
        other.js(FOCUS)
        other.wait("$$('article').length === 4")
        other.shows("$('#scroller').scrollTop", 0)
        other.wait("document.activeElement === $('article')")

    def test_a_button_outlives_a_change_of_the_list(self, visit):
        tab, _ = visit(final("a"), final("b"))
        ask_in_two(tab)
        tab.shows(STATES, ["done"])
        tab.js("(window.pressed = $('#conversations li:last-child button')).focus()")
        tab.js(
            "import('/page/store.js').then(async (store) => store.save("
            f"{{...await {KEPT}, title: 'Plums', renamed: Date.now()}}))"
        )
        tab.js(FOCUS)
        tab.wait("$('#conversations').innerText.includes('Plums')")
        tab.wait("document.activeElement === window.pressed")

    def test_the_last_key_counts_whichever_is_answered_last(self, visit):
        tab, _ = visit(ANSWER, keys=("secret",))
        tab.js(HELD)
        for key in ("", "secret"):
            tab.js("$('#enter-key').click()")
            tab.wait("$('#key').open")
            tab.js("$('#key-value').focus()")
            tab.type(key)
            tab.press("Enter")
            tab.wait("!$('#key').open && window.release")
        tab.wait("$('#model').options.length")
        tab.js("release(new TypeError())")
        tab.shows("[$('#model').options.length, $('#notice').hidden]", [1, True])

    def test_what_is_focused_while_the_page_starts_keeps_the_focus(self, visit):
        tab, _ = visit(ANSWER)
        tab.shows("document.activeElement.id", "message")
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=HELD)
        tab.reload()
        tab.wait("window.release")
        tab.js("$('#title').focus()")
        tab.js("release(new TypeError())")
        tab.wait("!$('#notice').hidden")
        tab.shows("document.activeElement.id", "title")

    def test_that_nothing_is_kept_is_still_told_when_the_server_answers(self, visit):
        tab, _ = visit(ANSWER)
        ask(tab, "Hello")
        broken = "indexedDB.open = () => { throw new Error('refused'); }"
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=f"{broken};")
        tab.reload()
        tab.wait("$('#model').options.length")
        tab.wait("$('#notice').innerText.includes('keeps no conversations: refused')")

    def test_an_edit_stops_the_answer_and_says_that_another_is_written(self, visit):
        tab, served = visit(ENDLESS, ENDLESS)
        ask_for_ever(tab, served)
        tab.js("$('.user [aria-label=\"Edit this message\"]').click()")
        tab.js("$('.editor textarea').select()")
        tab.type("Go on")
        tab.press("Enter", "Control")
        tab.shows(STATES, ["stopped", "running"])
        tab.shows("$('#said').textContent", "Answering")

    def test_a_result_stops_what_is_being_answered(self, visit):
        tab, served = visit(CALL, ENDLESS, ENDLESS)
        ask(tab, "Rain?")
        served.engine.endless = True
        ask(tab, "Well?", "$('article:nth-child(4) > .body')?.innerText.includes('onnnn')")
        tab.js("($('.result-form textarea').value = 'wet', $('.result-form button').click())")
        tab.shows(STATES, ["done", "stopped", "running"])

    def test_a_result_is_given_once_the_message_is_complete(self, canned):
        tab, _ = canned()
        call = {"type": "call", "name": "f", "arguments": "{}", "result": None}
        node = {"role": "assistant", "parts": [call, {"type": "text", "text": "So"}]}
        assert tab.js(
            "import('/page/message.js').then(({MessageView}) => {"
            f" const view = new MessageView({json.dumps(node)}, {{}});"
            " return [true, false].map((running) => { view.show({index: 0, count: 1}, running);"
            "  return Boolean(view.article.querySelector('.result-form')); }); })"
        ) == [False, True]

    def test_one_that_is_tried_again_before_its_failure_is_kept_leaves_nothing(self, canned):
        tab, _ = canned()
        assert tab.js(
            "Promise.all([import('/page/conversation.js'), import('/page/store.js')]).then("
            "async ([{newConversation, add, drop}, store]) => { const made = newConversation();"
            " const node = add(made, 'root', {role: 'assistant', state: 'running', parts: []});"
            " await store.save(made); drop(made, node); await store.save(made);"
            " return Object.keys((await store.load(made.id)).nodes); })"
        ) == ["root"]

    def test_two_answers_that_grow_at_once_are_both_drawn(self, canned):
        def growing(text: str) -> StreamingResponse:
            async def chunks():
                yield f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n"
                await asyncio.Event().wait()

            return StreamingResponse(chunks())

        tab, _ = canned(growing("apple"), growing("pear"))
        # No frame comes, and what the page has read is seen.
        tab.js(
            "(() => { const { parse } = JSON; window.read = ''; window.frames_ = [];"
            " JSON.parse = (text) => { window.read += text; return parse(text); };"
            " window.drawn = window.requestAnimationFrame;"
            " window.requestAnimationFrame = (draw) => window.frames_.push(draw); })()"
        )
        ask(tab, "One", "window.read.includes('apple')")
        tab.press("O", "Control", "Shift")
        ask(tab, "Two", "window.read.includes('pear')")
        tab.js("(window.requestAnimationFrame = window.drawn, frames_.forEach((draw) => draw()))")
        tab.shows(ANSWERS, ["pear"])

    def test_the_end_of_an_answer_leaves_the_focus_on_its_buttons(self, visit):
        tab, served = visit(final("one"), ENDLESS)
        ask(tab, "Go")
        served.engine.endless = True
        tab.js("$('[aria-label=\"Answer again\"]').click()")
        tab.wait("$('.assistant [aria-label=\"Previous version\"]')")
        tab.js("$('.assistant [aria-label=\"Previous version\"]').focus()")
        tab.press("Escape")
        tab.wait(IDLE)
        tab.shows("document.activeElement.title", "Previous version")

    def test_copying_without_a_clipboard_leaves_the_focus(self, visit):
        tab, _ = visit(ANSWER)
        ask(tab, "Hello")
        tab.js(
            "(navigator.clipboard.writeText = async () => { throw new Error('refused'); },"
            " document.execCommand = () => { window.copied = document.activeElement.value; })"
        )
        tab.js("$('article.user').focus()")
        tab.press("c")
        tab.shows("window.copied", "Hello")
        tab.wait("document.activeElement === $('article.user')")


class TestSafety:
    def test_nothing_that_the_model_writes_runs_or_is_fetched(self, visit):
        tab, served = visit(final(HOSTILE))
        ask(tab, "<img src=x onerror=alert(1)>")
        here = f"http://127.0.0.1:{served.port}/"
        assert [url for url in tab.requests if not url.startswith(here)] == []
        assert {url.removeprefix(here).split("/")[0] for url in tab.requests} == {"", "page", "v1"}
        assert "owned" not in tab.js("document.title")
        assert tab.complaints == []
        assert (
            tab.js("$$('#thread script, #thread img, #thread iframe, #thread style').length") == 0
        )
        links = tab.js("$$('#thread a').map((a) => a.href)")
        assert {"https://evil.example/p.png", "https://example.com/"} < {*links}
        assert {link.split(":")[0] for link in links} == {"https"}
        names = tab.js("$$('#thread *').flatMap((element) => element.getAttributeNames())")
        assert not [name for name in names if name.startswith(("on", "style", "src"))]

    def test_the_browser_itself_would_refuse_it(self, visit):
        tab, _ = visit()
        tab.js("document.body.append(Object.assign(document.createElement('a'), {id: 'victim'}))")
        assert tab.js(
            "(() => { try { $('#victim').innerHTML = '<b>x</b>'; return false; }"
            " catch { return true; } })()"
        )
        tab.wait("fetch('https://example.com/').then(() => false, () => true)")


class TestLooks:
    def test_every_control_has_a_name(self, visit):
        tab, _ = visit(CALL)
        ask(tab, "Hello")
        settings_beside(tab)
        tab.js("$('.user [aria-label=\"Edit this message\"]').click()")
        controls = tab.controls()
        assert [role for role, name in controls if not name.strip()] == []
        named = {name for _, name in controls}
        assert {"Message", "Send", "Settings", "Temperature", "System prompt", "Model"} <= named
        assert {
            "Conversations",
            "Reasoning effort",
            "Call of weather",
            "Title of the conversation",
        } <= named
        tab.js("$('#menu').showPopover()")
        assert {"Export as Markdown", "Export as JSON"} <= {name for _, name in tab.controls()}

    def test_a_phone_shows_it_without_scrolling_sideways(self, visit):
        wide = "x" * 200 + "\n\n```\n" + "y" * 200 + "\n```\n\n|a|b|\n|-|-|\n|" + "z" * 200 + "|b|"
        tab, _ = visit(final(wide))
        tab.size(360, 700)
        ask(tab, "w" * 200)
        tab.wait("document.scrollingElement.scrollWidth <= 360")
        tab.wait("$('#scroller').scrollWidth <= $('#scroller').clientWidth")
        tab.wait("!$('#sidebar').open")
        tab.click("#open-sidebar")
        tab.wait("$('#sidebar').matches(':modal')")
        tab.press("Escape")
        tab.wait("!$('#sidebar').open && document.activeElement === $('#open-sidebar')")

    def test_what_grows_is_followed_unless_one_reads_above(self, visit):
        tab, _ = visit(final("\n\n".join("abcdefghij" * 6)), final("short"))
        ask(tab, "Hello")
        below = "$('#scroller').scrollHeight - $('#scroller').clientHeight"
        tab.wait(f"{below} > 300")
        tab.wait(f"{below} - $('#scroller').scrollTop < 60")
        tab.wait("$('#latest').hidden")
        tab.wait(TO_TOP)
        tab.js("$('[aria-label=\"Answer again\"]').click()")
        tab.wait(f"{IDLE} && $('.assistant').innerText.includes('short')")
        tab.wait("$('#latest').hidden")

    def test_a_conversation_is_opened_at_its_end(self, visit):
        long = final("\n\n".join("abcdefghij" * 6))
        tab, _ = visit(long, long, long)
        for n, text in enumerate(["One", "Two", "Three"], 1):
            ask(tab, text, f"{IDLE} && $$('article').length === {2 * n}")
        tab.shows(STATES, ["done"] * 3)
        tab.reload()
        tab.wait("$$('article').length === 6")
        below = "$('#scroller').scrollHeight - $('#scroller').clientHeight"
        tab.wait(f"{below} > 300 && {below} - $('#scroller').scrollTop < 1")
        tab.wait("$('#latest').hidden")

    def test_the_schemes_differ_and_can_be_chosen(self, visit):
        tab, _ = visit()
        paper = "getComputedStyle(document.body).backgroundColor"
        tab.size(1100, 800, prefers_color_scheme="light")
        light = tab.js(paper)
        tab.size(1100, 800, prefers_color_scheme="dark")
        tab.wait(f"{paper} !== '{light}'")
        tab.js("($('#theme').value = 'light', $('#theme').dispatchEvent(new Event('change')))")
        tab.shows(paper, light)

    def test_export(self, visit):
        tab, _ = visit(ANSWER)
        ask(tab, "Hello")
        tab.js("(window.kept = [], URL.createObjectURL = (blob) => (kept.push(blob), 'blob:x'))")
        tab.js("($('#export-markdown').click(), $('#export-json').click())")
        markdown, exported = tab.js("Promise.all(kept.map((blob) => blob.text()))")
        assert "# Hello" in markdown
        assert "## tiny" in markdown
        assert "> Hm." in markdown
        assert "Forty-two, é!" in markdown
        nodes = json.loads(exported)["nodes"]
        assert [node.get("role") for node in nodes.values()] == [None, "user", "assistant"]
