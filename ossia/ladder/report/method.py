"""How to read the report, and how to reproduce it."""

from __future__ import annotations

from html import escape

from ossia.insight import page
from ossia.insight.svg import number
from ossia.ladder.report.words import threads
from ossia.ladder.results import Results


def method(results: Results) -> str:
    plan, text = results.plan, results.text
    size = sum(document.bytes for document in text.held_out)
    return "<h2>How to read this</h2>" + page.bullets(
        [
            f"Text: {escape(plan.data)}, {number(text.train.tokens, 0)} tokens in a vocabulary of "
            f"{plan.vocab_size}, from which batches are drawn. Held out from both models and "
            f"vocabulary: {number(size, 0)} bytes in {len(text.held_out)} texts, the same for all "
            "runs. No interval covers the choice of this text.",
            "A seed decides the initial weights, the batches and the dropout. Rungs with the same "
            "seed share their batches, and their initial weights as far as their shapes agree.",
            f"One recipe for all: AdamW, {plan.steps} steps of {plan.batch_size} x {plan.length} "
            f"tokens, learning rate {plan.learning_rate:g} after a warm-up over a tenth of the "
            "steps, then a cosine to zero. It was tuned for none of the rungs, which disadvantages "
            "those that need another one.",
            f"Dropout prevents overfitting to text that is read repeatedly. {_passes(results)}",
            "Training FLOPs are three times those of a forward pass: two per weight that a "
            "token is multiplied by, four times head_dim per attention score that a query sees. "
            "Document boundaries within a batch are ignored.",
            "The chosen experts together are as large as the dense network that they replace; "
            "SwiGLU's three matrices are as large as GELU's two.",
        ]
    )


def _passes(results: Results) -> str:
    share = results.tokens / results.text.train.tokens
    if share <= 1:
        part = number(100 * share, 0)
        return f"A run reads {part} % of the text and nothing twice, so it has little to prevent."
    return f"A run reads the text {number(share, 1)} times."


def reproduce(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    means, kind = threads(results.threads), "processor"
    if results.card is not None:
        means, kind = escape(results.card), "GPU"
    return f"<h2>Reproduce</h2><pre>{escape(results.command)}</pre>" + page.note(
        f"With {escape(versions)} and {means} the losses are the same bit for bit on the same kind "
        f"of {kind}; speeds are not. All figures on this page are in results.json."
    )
