"""The one door to a Kubernetes API: few calls, plain JSON objects, faults in words with the fix.

Objects stay the JSON that the API sent: a newer cluster's unknown fields then do no harm. What is
sent is checked against the client's models first.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from pydantic import ValidationError

from hvkf.errors import BadInput, ConfigError, TryAgain
from hvkf.jobs.kubernetes_config import load_configuration, renew_credentials
from hvkf.jobs.kubernetes_faults import ApiDown, Gone, explain, explain_connection
from hvkf.jobs.manifest import CONTAINER, OWNER_PREFIX, Manifest
from hvkf.settings.jobs import ClusterJobs

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
# A watch is closed by the server after this long, and resumed: a dead connection is noticed soon.
WATCH_S = 60
MAX_CLOCK_SKEW_S = 300.0
FIRST_CONTACT_S = 15.0
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0)
LIST_CHUNK = 500


class Cluster:
    """The API of one namespace. May be used by several threads."""

    def __init__(self, settings: ClusterJobs) -> None:
        configuration, self.namespace = load_configuration(settings)
        configuration.retries = urllib3.Retry(0, redirect=3)
        configuration.connection_pool_maxsize = 100
        self.settings = settings
        self.host: str = configuration.host
        self._api = client.ApiClient(configuration)
        self._jobs = client.BatchV1Api(self._api)
        self._core = client.CoreV1Api(self._api)
        self._skew_s = 0.0
        self.ride_out(self._compare_clocks, FIRST_CONTACT_S)

    def close(self) -> None:
        """Give connections back."""
        self._api.close()

    def now(self) -> float:
        """Return the API server's clock, in seconds since 1970: all owners of a job share it."""
        return time.time() + self._skew_s

    def ride_out(self, call: Callable[[], Any], limit_s: float | None = None) -> Any:
        """Call again while the API is away or busy, for at most `limit_s` (api_outage_s).

        Raises:
            HvkfError: what the API refused, or that it stayed away.
        """
        limit_s = self.settings.api_outage_s if limit_s is None else limit_s
        began_s = time.monotonic()
        attempt = 0
        while True:
            try:
                return call()
            except ApiDown as fault:
                delay_s = max(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)], fault.retry_after_s)
                if time.monotonic() - began_s + delay_s > limit_s:
                    raise TryAgain(
                        f"The Kubernetes API at {self.host} gave no answer for {limit_s:.0f} s "
                        f"({fault}): check that it runs, and that this machine reaches it."
                    ) from fault
            time.sleep(delay_s)
            attempt += 1

    def list(self, kind: str, selector: str = "") -> tuple[list[Manifest], str]:
        """Return all objects of a kind (job, pod, event), and the version they are of.

        Raises:
            ApiDown: it gave no answer, or none to the end; list again.
        """
        items: list[Manifest] = []
        page: str | None = None
        while True:
            options: dict[str, Any] = {"limit": LIST_CHUNK}
            if page:
                options["_continue"] = page
            try:
                answer = self._json(self._lister(kind), label_selector=selector, **options)
            except Gone as fault:  # so slow that the server has forgotten where it was
                raise ApiDown(str(fault)) from fault
            items += answer["items"]
            page = answer["metadata"].get("continue")
            if not page:
                return items, answer["metadata"]["resourceVersion"]

    def watch(
        self, kind: str, selector: str, version: str, opened: Callable[[Any], None]
    ) -> Iterator[tuple[str, Manifest]]:
        """Yield what happened since a version, until the server ends the watch.

        Args:
            kind: job, pod or event.
            selector: Labels.
            version: A resourceVersion.
            opened: Is given the open answer, so that another thread can break it off.

        Raises:
            Gone: the version is too old; list again.
            ApiDown: the connection was lost; watch again from the last version.
        """
        response = self._open(
            self._lister(kind),
            namespace=self.namespace,
            label_selector=selector,
            resource_version=version,
            watch=True,
            allow_watch_bookmarks=True,
            timeout_seconds=WATCH_S,
            _request_timeout=(CONNECT_TIMEOUT_S, WATCH_S + 15.0),
        )
        opened(response)
        for line in _lines(response):
            kind, seen = _event_of(line)
            if kind == "ERROR":
                raise explain(seen.get("code", 500), seen, self.namespace, self.host)
            yield kind, seen

    def create_job(self, manifest: Manifest) -> Manifest:
        """Create a job.

        Raises:
            AlreadyExists: there is one of that name.
            ConfigError: the API does not know a field; nothing was sent.
        """
        try:
            body = client.V1Job.model_validate(manifest)
        except ValidationError as fault:
            places = "; ".join(
                f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in fault.errors()
            )
            raise ConfigError(
                f"The manifest of {manifest['metadata']['name']} is not a Job ({places}): "
                "check pod_patch."
            ) from None
        return self._json(self._jobs.create_namespaced_job, body=body)

    def set_owner(self, job: str, owner: str, lease: str | None) -> Manifest:
        """Write until when a job is kept for an owner; None: it no longer is. Return the job."""
        patch = {"metadata": {"annotations": {OWNER_PREFIX + owner: lease}}}
        return self._json(
            self._jobs.patch_namespaced_job,
            name=job,
            body=patch,
            _content_type="application/merge-patch+json",
        )

    def delete_job(self, job: Manifest) -> None:
        """Delete a job as it was seen, with its pods, which have their grace period.

        Raises:
            Changed: it has changed since; look again.
        """
        metadata = job["metadata"]
        options = client.V1DeleteOptions(
            propagation_policy="Foreground",
            preconditions=client.V1Preconditions(
                uid=metadata["uid"], resource_version=metadata["resourceVersion"]
            ),
        )
        self._json(self._jobs.delete_namespaced_job, name=metadata["name"], body=options)

    def get_job(self, name: str) -> Manifest:
        """Return a job; NotFound when there is none."""
        return self._json(self._jobs.read_namespaced_job, name=name)

    def follow_log(
        self,
        pod: str,
        since: str | None,
        opened: Callable[[Any], None],
        num_lines: int | None = None,
    ) -> Iterator[str]:
        """Yield a pod's lines, each behind its time, until its container ends.

        Args:
            pod: Its name.
            since: The time of the last line that was read; None: from the beginning.
            opened: Is given the open answer, so that another thread can break it off.
            num_lines: Without `since`, begin with so many of the newest lines.
        """
        options: dict[str, Any] = {}
        if since is not None:
            options["since_seconds"] = self._seconds_since(since)
        elif num_lines is not None:
            options["tail_lines"] = num_lines
        response = self._open(
            self._core.read_namespaced_pod_log,
            name=pod,
            namespace=self.namespace,
            container=CONTAINER,
            follow=True,
            timestamps=True,
            _request_timeout=(CONNECT_TIMEOUT_S, 24 * 3600.0),
            **options,
        )
        opened(response)
        for line in _lines(response, with_rest=True):
            yield line.decode(errors="replace")

    def _seconds_since(self, moment: str) -> int:
        """Count whole seconds since a log line's time, and one more: none may be lost."""
        seen_s = datetime.fromisoformat(moment[:19] + "+00:00").timestamp()
        return max(1, int(self.now() - seen_s) + 2)

    def _lister(self, kind: str) -> Callable[..., Any]:
        return {
            "job": self._jobs.list_namespaced_job,
            "pod": self._core.list_namespaced_pod,
            "event": self._core.list_namespaced_event,
        }[kind]

    def _json(self, call: Callable[..., Any], **options: Any) -> Manifest:
        options |= {"namespace": self.namespace}
        options |= {"_request_timeout": (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)}
        with closing(self._open(call, **options)) as response:
            answer: Manifest = json.loads(_whole(response))
        return answer

    def _open(self, call: Callable[..., Any], **options: Any) -> Any:
        """Send a request, and return the answer unread.

        Raises:
            HvkfError: what the API refused, in words.
            ApiDown: it gave no answer, or is busy.
        """
        try:
            response = self._send(call, options)
        except ApiException as fault:
            body = json.loads(fault.body) if fault.body else {}
            raise explain(fault.status, body, self.namespace, self.host) from None
        except (urllib3.exceptions.HTTPError, OSError) as fault:
            raise explain_connection(fault, self.host) from fault
        if response.status >= 300:
            with closing(response):
                raise explain(
                    response.status, _status(response), self.namespace, self.host, response.headers
                )
        return response

    def _send(self, call: Callable[..., Any], options: dict[str, Any]) -> Any:
        """Send a request; once more when its token has expired and there is a new one."""
        configuration = self._api.configuration
        token = dict(configuration.api_key)
        try:
            return call(_preload_content=False, **options)
        except ApiException as fault:
            if fault.status != 401:
                raise
            renew_credentials(configuration, self.settings)
            if configuration.api_key == token:  # no other thread has renewed it, either
                raise
        return call(_preload_content=False, **options)

    def _compare_clocks(self) -> None:
        """Learn how far the API's clock is from this one.

        Raises:
            BadInput: too far for signatures and leases.
        """
        response = self._open(
            client.VersionApi(self._api).get_code,
            _request_timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
        )
        with closing(response):
            stated = response.headers.get("Date")
            response.read()
        if stated is None:
            return
        self._skew_s = parsedate_to_datetime(stated).timestamp() - time.time()
        if abs(self._skew_s) > MAX_CLOCK_SKEW_S:
            side = "behind" if self._skew_s > 0 else "ahead of"
            raise BadInput(
                f"This machine's clock is {abs(self._skew_s):.0f} s {side} the Kubernetes API's: "
                "set it right (chronyc makestep), since S3 and tokens refuse times far off."
            )


def _event_of(line: bytes) -> tuple[str, Manifest]:
    """Read a line of a watch: what happened, and to which object.

    Raises:
        ApiDown: it is none, as what comes of a connection that was closed meanwhile.
    """
    try:
        event = json.loads(line)
        return event["type"], event["object"]
    except (ValueError, KeyError, TypeError) as error:  # bytes that are no text are a ValueError
        raise ApiDown(f"the watch sent {line[:80]!r}, which is no event") from error


def _lines(response: Any, *, with_rest: bool = False) -> Iterator[bytes]:
    """Yield an open answer's lines as they come.

    Args:
        response: The answer.
        with_rest: Count what comes behind the last line's end as a line; else it is one that was
            cut off with the connection.

    Raises:
        ApiDown: the connection broke.
    """
    rest = b""
    with closing(response):
        try:
            for chunk in response.stream(amt=None, decode_content=False):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line for line in lines if line)
        except (urllib3.exceptions.HTTPError, OSError, AttributeError) as fault:
            # urllib3 raises AttributeError when another thread has closed the answer.
            raise ApiDown(f"the connection was lost: {fault}") from fault
    if rest and with_rest:
        yield rest


def _whole(response: Any) -> bytes:
    try:
        data: bytes = response.read()
    except (urllib3.exceptions.HTTPError, OSError) as fault:
        raise ApiDown(f"the connection was lost: {fault}") from fault
    return data


def _status(response: Any) -> Manifest:
    """Read the Status that comes with a refusal; proxies in between send other things."""
    try:
        body = json.loads(_whole(response))
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
