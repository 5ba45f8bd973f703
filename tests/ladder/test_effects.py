"""What the rungs did, read from a ladder's results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ossia.errors import OssiaError
from ossia.ladder.effects import effects
from ossia.ladder.results import Results
from ossia.ladder.statistics import Verdict

COMMITTED = Path(__file__).parents[2] / "docs" / "ablation"


def test_the_committed_ladder_in_words() -> None:
    results = Results.from_json(json.loads((COMMITTED / "results.json").read_text()))
    found = effects(COMMITTED)
    assert list(found) == [rung.name for rung in results.rungs[1:]]
    assert found == effects(COMMITTED / "results.json")
    for rung in results.rungs[1:]:
        assert rung.difference is not None
        lower = rung.difference.verdict is Verdict.BETTER
        assert ("lower loss" in found[rung.name]) == lower
        assert f"{abs(rung.difference.mean):.4f}" in found[rung.name]
    assert found["dropout"].endswith("bits per byte: lower loss")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "no results"), ('{"rungs": [1]}', "no results"), ("[", "JSON"), (None, "cannot read")],
)
def test_other_files_are_refused_by_name(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "results.json").write_text(text)
    with pytest.raises(OssiaError, match=message) as caught:
        effects(tmp_path)
    assert "results.json" in str(caught.value)
