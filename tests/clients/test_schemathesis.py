"""schemathesis asks every endpoint what its OpenAPI document allows and forbids: nothing is a 5xx,
and the answers are as documented. OSSIA_EXAMPLES is how many of each endpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.conftest import Scripted

ST = Path(sys.executable).with_name("st")
EXAMPLES = os.environ.get("OSSIA_EXAMPLES", "25")
ANSWER = "<|channel|>final<|message|>Yes.<|return|>"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)  # not positive_data_acceptance: what two parameters may be together, no schema says


@pytest.mark.skipif(not ST.exists(), reason="schemathesis is not installed: make clients")
def test_no_endpoint_fails_or_answers_what_is_not_documented(
    scripted: Scripted, tmp_path: Path
) -> None:
    scripted(*[ANSWER] * 60_000)
    command = [
        *(str(ST), "run", f"{scripted.root}/openapi.json", "--mode", "all"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES),
        *("--checks", ",".join(CHECKS), "--suppress-health-check", "all"),
        *("--continue-on-failure", "--warnings", "off", "--no-color"),
        *("--request-timeout", "300"),  # of a machine that others use too
    ]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout[-20_000:]
