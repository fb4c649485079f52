"""Equations as MathML, which browsers draw themselves: no script, no fonts, no network."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

log = logging.getLogger(__name__)

SPELT = (
    (r"\\arg(?![a-zA-Z])", r"\\operatorname{arg}"),
    (r"\\texttt\{([^}]*)\}", lambda found: rf"\texttt{{{found[1].replace(chr(92) + '_', '_')}}}"),
    (r"\\!", r"\\hspace{-0.167em}"),
    (r"\{aligned\}", "{split}"),
)
"""What the converter would leave as it is, and the same in words that it knows."""


def mathml(latex: str, display: str = "inline") -> str:
    """The MathML of an equation. Raises ValueError, naming it, where a command is not known."""
    text = latex
    for pattern, better in SPELT:
        text = re.sub(pattern, better, text)
    if "\\\\" in text and "\\begin" not in text:
        text = rf"\begin{{split}}{text}\end{{split}}"
    try:
        converted = convert(text, display=display)
    except Exception as error:
        raise ValueError(f"This equation cannot be converted: {latex!r} ({error!r})") from error
    if "\\" in converted:
        unknown = re.findall(r"\\\w*", converted)
        raise ValueError(f"This equation has commands that are not known {unknown}: {latex!r}")
    return converted


def inline(writer: Any, node: nodes.Element) -> None:
    """Write an equation of a line."""
    writer.body.append(f'<span class="math">{_converted(node, "inline")}</span>')
    raise nodes.SkipNode


def block(writer: Any, node: nodes.Element) -> None:
    """Write an equation that stands alone; it scrolls inside where the window is small."""
    writer.body.append(f'<div class="math" tabindex="0">{_converted(node, "block")}</div>')
    raise nodes.SkipNode


def _converted(node: nodes.Element, display: str) -> str:
    try:
        return mathml(node.astext(), display)
    except ValueError as error:
        log.warning(str(error), location=node)  # which ends the build
        return f"<code>{node.astext()}</code>"
