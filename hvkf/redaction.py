"""Secrets that nobody should read: in messages, tracebacks and printed manifests."""

import os
import re
from typing import Any

HIDDEN = "(hidden)"
SECRET_NAME = re.compile(
    r"(?i)(secret|token|passw|credential|api_?key|access_?key|private_?key|webhook|(^|_)auth)"
)
SECRET_VALUE = re.compile(
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|\b(hf|ghp|gho|glpat|sk|xox[abpr])[-_][A-Za-z0-9_-]{16,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)",
    re.DOTALL,
)
# scheme://user:password@host: all before the last @ ahead of a slash, a blank or a quote.
USERINFO = re.compile(r"(?<=://)[^/\s'\"<>]*@")
URL_QUERY = re.compile(r"(https?://[^\s'\"?]+\?)[^\s'\"]+")
MIN_SECRET_LENGTH = 6
"""Shorter values stand in ordinary words, which would be cut up."""


def without_userinfo(text: str) -> str:
    """Leave names and passwords out of every address in a text."""
    return USERINFO.sub("", text)


def without_secrets(text: str) -> str:
    """Hide the values of environment variables that hold secrets, keys, and what URLs hold."""
    secrets = {
        value
        for name, value in os.environ.items()
        if SECRET_NAME.search(name) and len(value) >= MIN_SECRET_LENGTH
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = SECRET_VALUE.sub(HIDDEN, without_userinfo(text))
    return URL_QUERY.sub(rf"\1{HIDDEN}", text)


def hide_secrets(value: Any) -> Any:
    """Hide secrets in JSON data such as a manifest: of variables, by their names; all else by look.

    References to secrets (`secretKeyRef`, `secretRef`) are no secrets, and stay.
    """
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, (list, tuple)):
        return [hide_secrets(item) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("value"), str) and SECRET_NAME.search(str(value.get("name", ""))):
        return {**value, "value": HIDDEN}
    return {key: hide_secrets(item) for key, item in value.items()}
