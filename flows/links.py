"""Links in what Prefect's pages show: to runs, and to what lies in the workspace."""

import os
import shlex
from pathlib import PurePosixPath
from urllib.parse import quote

from flows.workspace_pages import shown_address
from hvkf.records import Summary

AWS_CONSOLE = "https://s3.console.aws.amazon.com/s3/object"
ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def run_link(text: str, run_id: object) -> str:
    """Link to a flow run's page; it is on the server whose page shows the link."""
    return f"[{text}](/runs/flow-run/{run_id})"


def object_link(text: str, workspace: str, path: str, endpoint: str | None) -> str:
    """Link to an object of the workspace where a browser can open it; else say how to get it.

    Args:
        text: What it is.
        workspace: A folder or s3://bucket/prefix.
        path: Where the object lies in it.
        endpoint: The address of an S3 service that is not AWS; it has no page for people.
    """
    address = f"{workspace}/{path}"
    if "://" not in workspace:
        # Without a server that shows it, none: browsers follow no link from a page to a file.
        page = shown_address(workspace, path)
        return f"[{text}]({page}) (`{address}`)" if page else f"{text}: `{address}`"
    if endpoint:
        return f"{text}: `{_command(workspace, path, endpoint)}`"
    bucket, _, key = address.removeprefix("s3://").partition("/")
    return f"[{text}]({AWS_CONSOLE}/{quote(bucket)}?prefix={quote(key, safe='')}) (`{address}`)"


def _command(workspace: str, path: str, endpoint: str) -> str:
    """Write the command that brings an object here, with all that belongs to it."""
    pure = PurePosixPath(path)
    if path.startswith("manifests/") and pure.name == "index.html":
        # The gallery's pictures and videos lie elsewhere: all of them, by the names of their rows.
        name = pure.parent.name
        return f"hvkf fetch {name} videos/ --workspace {shlex.quote(workspace)}"
    copy = f"aws s3 cp --endpoint-url {shlex.quote(endpoint)} {shlex.quote(f'{workspace}/{path}')}"
    return f"{copy} ." if pure.suffix else f"{copy} {shlex.quote(pure.name)} --recursive"


def link_of(text: str, workspace: str, path: str) -> str:
    """Link to an object, by the S3 service that this process uses."""
    endpoint = next(filter(None, map(os.environ.get, ENDPOINT_VARIABLES)), None)
    return object_link(text, workspace, path, endpoint)


def links_of(summary: Summary, workspace: str) -> list[str]:
    """Link what a stage's summary names."""
    return [link_of(name, workspace, path) for name, path in summary.links.items()]
