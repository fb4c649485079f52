"""The anchors of headings."""

from __future__ import annotations

import re


def anchor(heading: str) -> str:
    """The anchor of a heading, as web views of repositories make it, but without the section's
    number: a section that moves keeps its anchor.
    """
    plain = re.sub(r"^\d+(\.| ·) ", "", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
