"""Telling a webhook how a night ended."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

NUM_TRIES = 3
TIMEOUT_S = 10.0
PAUSE_S = 2.0
SCHEMES = ("http://", "https://")


def post_verdict(variable: str | None, verdict: Mapping[str, object]) -> str | None:
    """Post a verdict as JSON to the address that an environment variable holds.

    The address may hold a token: it is in no message. A webhook that is away fails no night.

    Args:
        variable: Name of the environment variable; None: nobody is to be told.
        verdict: What to post.

    Returns:
        A sentence when nobody could be told, else None.
    """
    if variable is None:
        return None
    address = os.environ.get(variable, "")
    if not address.startswith(SCHEMES):
        return f"The webhook was not told: the environment variable {variable} holds no address."
    request = urllib.request.Request(
        address,
        data=json.dumps(verdict).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    reason = ""
    for attempt in range(NUM_TRIES):
        if attempt:
            time.sleep(PAUSE_S)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return None
        except urllib.error.HTTPError as fault:
            reason = f"it answered {fault.code}"
            fault.close()
        except (urllib.error.URLError, OSError) as fault:
            reason = f"it cannot be reached ({type(fault).__name__})"
    return f"The webhook of {variable} was not told: {reason}, {NUM_TRIES} times."
