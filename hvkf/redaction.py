"""Secrets that must not be printed: names and passwords in addresses."""

import re

# scheme://user:password@host: everything before the last @ ahead of a slash, a blank or a quote.
_USERINFO = re.compile(r"(?<=://)[^/\s'\"<>]*@")


def without_secrets(text: str) -> str:
    """Leave names and passwords out of every address in a text."""
    return _USERINFO.sub("", text)
