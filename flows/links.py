"""Links in what Prefect's pages show: to runs, and to what lies in the workspace."""

import os
from pathlib import Path
from urllib.parse import quote

from hvkf.records import Summary

AWS_CONSOLE = "https://s3.console.aws.amazon.com/s3/object"


def run_link(text: str, run_id: object) -> str:
    """Link to a flow run's page; it is on the server whose page shows the link."""
    return f"[{text}](/runs/flow-run/{run_id})"


def object_link(text: str, workspace: str, path: str, endpoint: str | None) -> str:
    """Link to an object of the workspace, its address beside it for programs.

    Args:
        text: What it is.
        workspace: A folder or s3://bucket/prefix.
        path: Where the object lies in it.
        endpoint: The address of an S3 service that is not AWS; it has no page for people.
    """
    address = f"{workspace}/{path}"
    if "://" not in workspace:
        return f"[{text}]({Path(address).absolute().as_uri()}) (`{address}`)"
    if endpoint:
        return f"{text}: `{address}`"
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return f"[{text}]({AWS_CONSOLE}/{quote(bucket)}?prefix={quote(key, safe='')}) (`{address}`)"


def links_of(summary: Summary, workspace: str) -> list[str]:
    """Link what a stage's summary names."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    return [object_link(name, workspace, path, endpoint) for name, path in summary.links.items()]
