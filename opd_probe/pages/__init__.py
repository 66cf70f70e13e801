"""Pages to look at in a browser: plain values in, one self-contained HTML text out.

Nothing here reads a trace, a model or a path. A page loads nothing: its style and its script are inside.
"""

from opd_probe.pages.report import render_report
from opd_probe.pages.tokens import render_tokens

__all__ = ["render_report", "render_tokens"]
