"""What a Kubernetes API refuses, in one sentence with the fix: from statuses and their text."""

import re
from collections.abc import Mapping
from typing import Any

from hvkf.errors import AlreadyExists, BadInput, HvkfError

FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\S+) resource "(?P<resource>[^"]*)" '
    r'in API group "(?P<group>[^"]*)"'
)
QUOTA = re.compile(
    r"exceeded quota: (?P<quota>[^,]+), requested: (?P<requested>.*), used: (?P<used>.*), "
    r"limited: (?P<limited>.*)"
)
BUSY = (429, 500, 502, 503, 504)


class ApiDown(HvkfError):
    """The API gave no answer, or asked to come back later; never ends a process."""

    def __init__(self, sentence: str, retry_after_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.retry_after_s = retry_after_s


class Gone(HvkfError):
    """A watch's place was forgotten: list again; never ends a process."""


class Changed(HvkfError):
    """An object is no longer as it was seen: look again; never ends a process."""


class NotFound(HvkfError):
    """There is no such object; never ends a process."""


def explain(
    status: int,
    body: Mapping[str, Any],
    namespace: str,
    host: str,
    headers: Mapping[str, str] | None = None,
) -> HvkfError:
    """Turn a refusal into the fault it is.

    Args:
        status: The HTTP status.
        body: The Status object that came with it, or an empty one.
        namespace: Where the request went.
        host: The API's address.
        headers: Of the answer.
    """
    message = str(body.get("message", ""))
    details = body.get("details") or {}
    if status in BUSY:
        retry_after = (headers or {}).get("Retry-After", "0")
        seconds = float(retry_after) if retry_after.isdigit() else 0.0
        return ApiDown(f"HTTP {status} {message}".strip(), seconds)
    if status == 401:
        return BadInput(
            f"The Kubernetes API at {host} does not accept this token or certificate (401): it has "
            "expired or is of another cluster; log in again, or renew the kubeconfig."
        )
    if status == 403:
        return _explain_forbidden(message, namespace)
    if status == 404:
        if details.get("kind") == "namespaces":
            return BadInput(
                f"There is no namespace {namespace!r}: kubectl create namespace {namespace}, or "
                "set jobs.cluster.namespace."
            )
        return NotFound(message)
    if status == 409:
        taken = body.get("reason") == "AlreadyExists"
        return AlreadyExists(message) if taken else Changed(message)
    if status == 410:
        return Gone(message)
    return BadInput(f"The Kubernetes API refused the request ({status}): {message}")


def _explain_forbidden(message: str, namespace: str) -> HvkfError:
    if (words := quota_words(message)) is not None:
        return BadInput(words)
    found = FORBIDDEN.search(message)
    if found is None:
        return BadInput(f"The Kubernetes API forbids it: {message}")
    group, resource, verb = found["group"], found["resource"], found["verb"]
    return BadInput(
        f"{found['user']} may not {verb} {resource} in namespace {namespace}: add the rule "
        f'{{apiGroups: ["{group}"], resources: ["{resource}"], verbs: ["{verb}"]}} to its Role '
        "(k8s/base has it)."
    )


def quota_words(message: str) -> str | None:
    """Say which quota a request exceeds; None where the message is of anything else."""
    found = QUOTA.search(message)
    if found is None:
        return None
    return (
        f"Quota {found['quota']} is exceeded (requested {found['requested']}, "
        f"used {found['used']}, limit {found['limited']}): wait for other jobs, ask for less "
        "(workers, nodes, gpus_per_pod), or raise the quota."
    )


def exceeds_whole_quota(message: str) -> bool:
    """Whether a request would not fit a quota of which nothing is used."""
    found = QUOTA.search(message)
    if found is None:
        return False
    limits = dict(pair.split("=") for pair in found["limited"].split(",") if "=" in pair)
    wanted = dict(pair.split("=") for pair in found["requested"].split(",") if "=" in pair)
    return any(_amount(wanted[name]) > _amount(limits[name]) for name in wanted.keys() & limits)


def _amount(quantity: str) -> float:
    """Read a quantity such as 4, 500m or 8Gi."""
    units = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
    units |= {f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTP", start=1)}
    number = quantity.rstrip("".join({*"mkMGTPKi"}))
    return float(number) * units.get(quantity[len(number) :], 1.0)


def explain_connection(fault: Exception, host: str) -> HvkfError:
    """Say why there was no answer: some of these never pass."""
    text = str(fault)
    if "certificate is not yet valid" in text or "certificate has expired" in text:
        return BadInput(
            f"The certificate of the Kubernetes API at {host} is not valid at this machine's time "
            "(not yet, or no longer): set the clock right (chronyc makestep), or renew it."
        )
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return BadInput(
            f"The certificate of the Kubernetes API at {host} is not one that the kubeconfig "
            "trusts: fetch the kubeconfig again."
        )
    return ApiDown(_short(fault))


def _short(fault: Exception) -> str:
    """Find the words of the innermost fault: urllib3 wraps them in its objects' names."""
    reason = getattr(fault, "reason", None) or fault
    text = str(reason)
    return text.rsplit(": ", 1)[-1] if ": " in text else text
