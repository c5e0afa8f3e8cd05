"""A namespace of a real cluster for one run of the tests, spoken to by kubectl."""

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

S3_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
ENDPOINT = "AWS_ENDPOINT_URL"
# The service's address as pods see it, where that is another than this machine's.
POD_ENDPOINT = "HVKF_E2E_POD_ENDPOINT_URL"
FLOW_IMAGE = "HVKF_E2E_FLOW_IMAGE"
GPU_IMAGE = "HVKF_E2E_IMAGE"
NEEDED = ("KUBECONFIG", FLOW_IMAGE, GPU_IMAGE, "HVKF_E2E_BUCKET", *S3_VARIABLES[:2])


def missing() -> list[str]:
    """List what `make e2e` needs and this machine lacks."""
    lacking = [name for name in NEEDED if not os.environ.get(name)]
    return lacking + (["kubectl"] if shutil.which("kubectl") is None else [])


def s3_variables() -> dict[str, str]:
    """Return the variables by which pods reach S3."""
    keys = {name: os.environ[name] for name in S3_VARIABLES if name in os.environ}
    if endpoint := os.environ.get(POD_ENDPOINT) or os.environ.get(ENDPOINT):
        keys[ENDPOINT] = endpoint
    return keys


class Namespace(NamedTuple):
    """A namespace of the cluster, spoken to by kubectl."""

    name: str

    def kubectl(self, *words: str, document: str | None = None) -> str:
        """Run kubectl in the namespace, and return what it printed."""
        ended = subprocess.run(
            ["kubectl", "--namespace", self.name, *words],
            input=document,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, f"kubectl {' '.join(words)}: {ended.stderr}"
        return ended.stdout

    def list(self, kind: str, selector: str) -> "list[dict[str, Any]]":
        """Return the objects of a kind that have these labels."""
        text = self.kubectl("get", kind, "--selector", selector, "--output", "json")
        found: list[dict[str, Any]] = json.loads(text)["items"]
        return found


@contextmanager
def new_namespace() -> Iterator[Namespace]:
    """Make a namespace with the Secret that S3 is reached by; remove both afterwards."""
    namespace = Namespace(f"hvkf-e2e-{uuid.uuid4().hex[:8]}")
    namespace.kubectl("create", "namespace", namespace.name)
    try:
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "hvkf-s3"},
            "stringData": s3_variables(),
        }
        namespace.kubectl("apply", "-f", "-", document=json.dumps(secret))
        yield namespace
    finally:
        namespace.kubectl("delete", "namespace", namespace.name, "--wait=false")
