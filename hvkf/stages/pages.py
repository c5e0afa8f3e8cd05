"""HTML pages from the templates of the package; what is put into them is escaped."""

import base64
from functools import cache
from typing import Any

import jinja2

MEDIA_TYPES = {".mp4": "video/mp4", ".png": "image/png", ".jpg": "image/jpeg"}


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("hvkf", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render_page(template: str, **values: Any) -> bytes:
    """Fill a template; equal values give equal bytes."""
    return _environment().get_template(template).render(**values).encode()


def data_uri(data: bytes, suffix: str) -> str:
    """Write a picture's or video's bytes so that a page can hold them itself."""
    return f"data:{MEDIA_TYPES[suffix]};base64,{base64.b64encode(data).decode('ascii')}"
