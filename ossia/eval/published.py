"""Figures as their makers published them, in percent, each with its source.

They were made with other prompts, samplings and graders, so that they stand beside measured ones
and are never mixed with them. Without tools throughout.
"""

from __future__ import annotations

from collections.abc import Iterable

from ossia.eval.results import Published

_GPT_OSS = "gpt-oss model card, arXiv:2508.10925, table 3"
_GPT_5 = "openai.com/index/introducing-gpt-5-for-developers, 7 August 2025"
_QWEN3 = "qwenlm.github.io/blog/qwen3, 29 April 2025"
_EFFORTS = ("low", "medium", "high")

# The figures of gpt-oss by effort, low to high.
_BY_EFFORT = {
    ("aime-2024", "gpt-oss-120b"): (56.3, 80.4, 95.8),
    ("aime-2024", "gpt-oss-20b"): (42.1, 80.0, 92.1),
    ("aime-2025", "gpt-oss-120b"): (50.4, 80.0, 92.5),
    ("aime-2025", "gpt-oss-20b"): (37.1, 72.1, 91.7),
    ("gpqa-diamond", "gpt-oss-120b"): (67.1, 73.1, 80.1),
    ("gpqa-diamond", "gpt-oss-20b"): (56.8, 66.0, 71.5),
}
_AT_HIGH = {
    "aime-2025": {"GPT-5": 94.6, "GPT-5 mini": 91.1, "GPT-5 nano": 85.2, "o4-mini": 92.7},
    "gpqa-diamond": {"GPT-5": 85.7, "GPT-5 mini": 82.3, "GPT-5 nano": 71.2, "o4-mini": 81.4},
}
_THINKING = {
    "aime-2024": {"Qwen3-235B-A22B": 85.7, "Qwen3-30B-A3B": 80.4},
    "aime-2025": {"Qwen3-235B-A22B": 81.5, "Qwen3-30B-A3B": 70.9},
}

PUBLISHED = (
    *(
        Published(data_set, model, effort, percent, _GPT_OSS)
        for (data_set, model), figures in _BY_EFFORT.items()
        for effort, percent in zip(_EFFORTS, figures, strict=True)
    ),
    *(
        Published(data_set, model, "high", percent, _GPT_5)
        for data_set, figures in _AT_HIGH.items()
        for model, percent in figures.items()
    ),
    *(
        Published(data_set, model, "thinking", percent, _QWEN3)
        for data_set, figures in _THINKING.items()
        for model, percent in figures.items()
    ),
)


def about(data_sets: Iterable[str]) -> tuple[Published, ...]:
    """The figures on some data sets."""
    wanted = set(data_sets)
    return tuple(figure for figure in PUBLISHED if figure.data_set in wanted)
