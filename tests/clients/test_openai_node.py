"""OpenAI's client for Node: openai.mjs does what its programs do."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.clients.scripts import ANSWER, call, final

PROGRAM = Path(__file__).with_name("openai.mjs")


def test_a_program(scripted, node):
    called = call("weather", '{"city": "Oslo"}')
    scripted(ANSWER, ANSWER, called, final("Rain."), called, final("Yes, rain."))
    with PROGRAM.open() as program:  # through stdin: modules are then found from the folder
        done = subprocess.run(
            ["node", "--input-type=module"],
            stdin=program,
            stdout=subprocess.PIPE,
            cwd=node,
            env={**os.environ, "OPENAI_BASE_URL": scripted.url},
            check=True,
            timeout=300,
        )
    seen = json.loads(done.stdout)
    assert seen["models"] == ["scripted"]
    assert seen["answer"] == seen["streamed"] == "Forty-two, é!"
    assert seen["usage"] == seen["streamedUsage"]
    assert (seen["city"], seen["afterCall"]) == ("Oslo", "Rain.")
    assert (seen["events"][0], seen["events"][-1]) == ("response.created", "response.completed")
    assert json.loads(seen["arguments"]) == {"city": "Oslo"}
    assert seen["last"] == "Yes, rain."
    assert seen["error"] == [True, 404, "model_not_found"]
