"""X-ray: what happens inside a model while it reads a text, as arrays and as a page."""

from ossia.insight.xray.attention import Look
from ossia.insight.xray.effects import Difference
from ossia.insight.xray.observed import Observed, Observer
from ossia.insight.xray.run import Xray, examine, xray
from ossia.insight.xray.trace import Trace
from ossia.insight.xray_options import XrayOptions

__all__ = [
    "Difference",
    "Look",
    "Observed",
    "Observer",
    "Trace",
    "Xray",
    "XrayOptions",
    "examine",
    "xray",
]
