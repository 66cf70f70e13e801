"""The gallery: every figure of the paper from the lab's own runs, each a few lines that anyone can take for theirs."""

from opd_probe.lab.gallery.data import Data
from opd_probe.lab.gallery.drawing import draw, draw_gallery, gallery, page, stored_fingerprint
from opd_probe.lab.gallery.entry import Entry
from opd_probe.lab.gallery.fingerprint import drawn_data, fingerprint

__all__ = [
    "Data",
    "Entry",
    "draw",
    "draw_gallery",
    "drawn_data",
    "fingerprint",
    "gallery",
    "page",
    "stored_fingerprint",
]
