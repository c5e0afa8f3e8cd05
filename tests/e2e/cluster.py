"""A namespace of a real cluster for one run of the tests, from the installation's own manifests."""

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

BASE = Path(__file__).parents[2] / "k8s" / "base"
S3_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
ENDPOINT = "AWS_ENDPOINT_URL"
# The service's address as pods see it, where that is another than this machine's.
POD_ENDPOINT = "HVKF_E2E_POD_ENDPOINT_URL"
NEEDED = ("KUBECONFIG", "HVKF_E2E_IMAGE", "HVKF_E2E_BUCKET", *S3_VARIABLES[:2])


def missing() -> list[str]:
    """List what `make e2e` needs and this machine lacks."""
    lacking = [name for name in NEEDED if not os.environ.get(name)]
    return lacking + (["kubectl"] if shutil.which("kubectl") is None else [])


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
        assert ended.returncode == 0, f"kubectl {words[0]}: {ended.stderr}"
        return ended.stdout

    def list(self, kind: str, selector: str) -> "list[dict[str, Any]]":
        """Return the objects of a kind that have these labels."""
        text = self.kubectl("get", kind, "--selector", selector, "--output", "json")
        found: list[dict[str, Any]] = json.loads(text)["items"]
        return found


def wait_for(what: str, look: Callable[[], Any], limit_s: float = 300.0) -> Any:
    """Look until something is found; fail after the limit."""
    deadline_s = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < deadline_s, f"{what}: not within {limit_s:.0f} s"
        time.sleep(0.5)
    return found


@contextmanager
def new_namespace(folder: Path) -> Iterator[Namespace]:
    """Make a namespace with the base's accounts, roles, gang Service and pod standard."""
    namespace = Namespace(f"hvkf-e2e-{uuid.uuid4().hex[:8]}")
    names = ["namespace.yaml", "access.yaml", "jobs.yaml"]
    for name in names:
        shutil.copyfile(BASE / name, folder / name)
    kustomization = {"namespace": namespace.name, "resources": names}
    (folder / "kustomization.yaml").write_text(json.dumps(kustomization))
    subprocess.run(["kubectl", "apply", "-k", str(folder)], check=True, capture_output=True)
    try:
        keys = {name: os.environ[name] for name in S3_VARIABLES if name in os.environ}
        if endpoint := os.environ.get(POD_ENDPOINT) or os.environ.get(ENDPOINT):
            keys[ENDPOINT] = endpoint
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "hvkf-s3"},
            "stringData": keys,
        }
        namespace.kubectl("apply", "-f", "-", document=json.dumps(secret))
        yield namespace
    finally:
        namespace.kubectl("delete", "namespace", namespace.name, "--wait=false")
