"""The options of an x-ray, which can be read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ossia.options import Option, Options


@dataclass(frozen=True)
class XrayOptions(Options):
    """What an x-ray looks for."""

    top: Annotated[int, Option("Alternatives of each token.", minimum=1, maximum=100)] = 8
    lens: Annotated[
        int | None,
        Option(
            "Positions of the logit lens, spread over the text; 0 leaves it out.",
            minimum=0,
            default="all, or as many as cost 2 TFLOP",
        ),
    ] = None
    maps: Annotated[
        tuple[str, ...],
        Option(
            "Keep the attention map of a head in full, such as 3.0 for head 0 of layer 3, of all "
            "heads of layer 3, or all; may be repeated.",
            metavar="LAYER.HEAD",
            default="none",
        ),
    ] = ()
    clamp: Annotated[bool, Option("Measure what SwiGLU's clamp cuts, in models that have one.")] = (
        True
    )
    effects: Annotated[
        bool, Option("Measure what int8 and MXFP4 change, each by another pass over the text.")
    ] = True
