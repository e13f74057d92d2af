"""Rendering: an icon of an iconify package as a square RGBA picture."""

from __future__ import annotations

import io
from dataclasses import dataclass

import resvg_py
from PIL import Image


class RenderError(ValueError):
    """A drawing that cannot be rendered, or that shows nothing."""


@dataclass(frozen=True)
class Drawing:
    """The body of an SVG and the box that it is drawn in."""

    body: str
    left: float = 0
    top: float = 0
    width: float = 16
    height: float = 16
    flipped: bool = False  # mirrored left to right

    def svg(self, size: int) -> str:
        """A whole SVG of ``size`` x ``size`` pixels, the box centred in it."""
        body = self.body
        if self.flipped:
            shift = 2 * self.left + self.width
            body = f'<g transform="translate({shift:g} 0) scale(-1 1)">{body}</g>'
        box = f"{self.left:g} {self.top:g} {self.width:g} {self.height:g}"
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{size}" height="{size}" viewBox="{box}">{body}</svg>'
        )


def render(drawing: Drawing, size: int) -> Image.Image:
    """Draw on a transparent ground: an RGBA picture of ``size`` x ``size`` pixels.

    Raises ``RenderError`` for a drawing that resvg refuses or that leaves every pixel clear.
    """
    try:
        png = resvg_py.svg_to_bytes(svg_string=drawing.svg(size), skip_system_fonts=True)
    except ValueError as error:
        raise RenderError(str(error)) from error
    picture = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if picture.getextrema()[3][1] == 0:
        raise RenderError("nothing is drawn")
    return picture


def encode(picture: Image.Image) -> bytes:
    """Lossless WebP; the colour of wholly clear pixels is not kept."""
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=True, quality=50, method=3, exact=False)
    return file.getvalue()


def render_webp(drawing: Drawing, sizes: tuple[int, ...]) -> dict[int, bytes] | str:
    """Render at every size; the reason as text when that fails, so that a pool carries on."""
    try:
        return {size: encode(render(drawing, size)) for size in sizes}
    except RenderError as error:
        return str(error)
