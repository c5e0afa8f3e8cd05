"""Overlays as kustomize renders them."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).parents[2] / "k8s"
OVERLAYS = ("kind", "cloud", "cloud-queues")
Document = dict[str, Any]


def render(folder: Path) -> list[Document]:
    """Run kustomize on a folder."""
    for program in (("kustomize", "build"), ("kubectl", "kustomize")):
        if shutil.which(program[0]):
            ended = subprocess.run(
                [*program, str(folder)], capture_output=True, text=True, check=False
            )
            assert ended.returncode == 0, ended.stderr
            return list(yaml.safe_load_all(ended.stdout))
    pytest.skip("neither kustomize nor kubectl is installed")


def of_kind(documents: list[Document], kind: str) -> dict[str, Document]:
    """Map the names of a kind's documents to them."""
    return {found["metadata"]["name"]: found for found in documents if found["kind"] == kind}
