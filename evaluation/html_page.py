"""Self-contained HTML pages: a template, one common style, embedded pictures; nothing is loaded from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

from torch import Tensor

from evaluation.images import png_bytes

STYLE = Path(__file__).with_name("page.css")


def render_page(template: Path, values: Mapping[str, object]) -> str:
    """Fill the places `$name` of a template; `$style` becomes the common style. Values are HTML already."""
    content = Template(template.read_text(encoding="utf-8"))
    return content.substitute({"style": STYLE.read_text(encoding="utf-8"), **values})


def cells(first: str, *others: tuple[str, object]) -> str:
    """One heading cell and cells of a class each (`n`: a number); everything is escaped."""
    row = "".join(f'<td class="{kind}">{escape(str(value))}</td>' for kind, value in others)
    return f'<th scope="row">{escape(first)}</th>{row}'


def data_uri(image: Tensor) -> str:
    """A uint8 image [3, H, W] as the source of an `<img>`."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
