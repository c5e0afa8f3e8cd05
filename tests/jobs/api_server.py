"""A Kubernetes API over HTTP: kmock, with what it lacks for jobs that are waited for.

kmock reads requests and serves discovery; here objects have versions, watches go on from one,
lists come in pages, selectors select, logs are text, and refusals are those that were recorded
from a real server (`transcripts/errors.json`).
"""

import asyncio
import copy
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

import kmock
from aiohttp import web

from tests.jobs.cluster_objects import KINDS, Object, Objects, Taken, random_suffix
from tests.jobs.small_cluster import NAMESPACE, SmallCluster

ERRORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "transcripts" / "errors.json").read_text()
)
BOOKMARK_S = 0.2
LABEL = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
MAX_LABEL = 63
VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}
Rule = Callable[[kmock.Request], str | None]


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, body: Object, headers: dict[str, str] | None = None) -> None:
        super().__init__(body["message"])
        self.body, self.headers = body, headers


def recorded(case: str, **words: str) -> Refusal:
    """Return a recorded refusal, with its names replaced."""
    text = json.dumps(ERRORS[case]["body"])
    for old, new in words.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return Refusal(json.loads(text))


def no_faults(request: kmock.Request) -> None:
    """Let everything pass."""


class ApiServer(kmock.KubernetesScaffold):
    """Serves a small cluster.

    `rule` may say of a request that it meets a fault: an HTTP status (429 asks to come back at
    once), "drop" (the connection closes), "lose" (it is done, and its answer is lost), or
    "later-drop" (a watch closes behind its first event).
    """

    def __init__(self, cluster: SmallCluster) -> None:
        super().__init__()
        self.cluster = cluster
        self.rule: Rule = no_faults
        self.user = "system:serviceaccount:hvkf:hvkf-flow"
        self.forbidden: set[tuple[str, str]] = set()
        self.tokens: set[str] | None = None
        self.skew_s = 0.0
        self.job_quota: int | None = None
        self.watch_limit_s = 3600.0
        self.log_limit_s = 3600.0
        self.is_away = False  # hangs up, on who is served already, too
        self.seen: list[kmock.Request] = []
        self.errors_met: Counter[str] = Counter()  # of the rule, by its word
        self.tokens_met: Counter[str] = Counter()
        self.num_expired_pages = 0
        self.watched_from: list[tuple[str, int]] = []

    @property
    def objects(self) -> Objects:
        """Return the cluster's objects."""
        return self.cluster.objects

    async def _handle(self, request: kmock.Request) -> web.StreamResponse:
        self.seen.append(request)
        fault = "drop" if self.is_away else self.rule(request)
        if fault is not None:
            self.errors_met[fault] += 1
        if fault == "drop":
            return _hang_up(request)
        if fault is not None and fault.isdigit():
            return _fault(int(fault))
        try:
            answer = await self._answer(request, fault)
        except ConnectionResetError:  # whoever asked has gone
            return _hang_up(request)
        except Refusal as refusal:
            answer = web.json_response(
                refusal.body, status=refusal.body["code"], headers=refusal.headers
            )
        return _hang_up(request) if fault == "lose" else answer

    async def _answer(self, request: kmock.Request, fault: str | None) -> web.StreamResponse:
        if self.tokens is not None:
            token = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if token not in self.tokens:
                raise recorded("unauthorized-bad-token")
            self.tokens_met[token] += 1
        if request.url.path == "/version/":
            date = formatdate(time.time() + self.skew_s, usegmt=True)
            return web.json_response({"gitVersion": "v1.36.0"}, headers={"Date": date})
        kind = request.resource.plural if request.resource is not None else None
        if kind == "selfsubjectaccessreviews":
            return self._review(request.data)
        if kind not in KINDS:
            return await super()._handle(request)
        assert isinstance(kind, str)
        self._authorise(request, kind)
        return await self._serve(request, kind, fault)

    def _authorise(self, request: kmock.Request, kind: str) -> None:
        verb = VERBS[request.method.value]
        if verb == "get" and request.name is None:
            verb = "watch" if _is_watch(request) else "list"
        resource = kind if request.subresource is None else f"{kind}/{request.subresource}"
        if (verb, resource) not in self.forbidden:
            return
        case = "forbidden-create-job" if kind == "jobs" else "forbidden-watch-pods"
        refusal = recorded(case, errors=str(request.namespace))
        message = refusal.body["message"]
        message = message.replace("system:serviceaccount:errors:weak", self.user)
        message = message.replace(f"system:serviceaccount:{request.namespace}:weak", self.user)
        old = "create" if kind == "jobs" else "watch"
        message = message.replace(f"cannot {old} ", f"cannot {verb} ")
        if kind not in ("jobs", "pods") or request.subresource:
            message = message.replace('resource "pods"', f'resource "{resource}"')
        raise Refusal({**refusal.body, "message": message})

    def _review(self, review: Object) -> web.Response:
        asked = review["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        allowed = (asked["verb"], resource) not in self.forbidden
        answer = copy.deepcopy(ERRORS["access-review-denied"]["ok"])
        answer |= {"spec": review["spec"], "status": {"allowed": allowed}}
        return web.json_response(answer, status=201)

    async def _serve(
        self, request: kmock.Request, kind: str, fault: str | None
    ) -> web.StreamResponse:
        method = request.method.value
        if request.name is None:
            if method == "POST":
                return self._create(request)
            if _is_watch(request):
                return await self._watch(request, kind, fault)
            return self._list(request, kind)
        found = self.objects.get(kind, request.name)
        if found is None:
            case = "job-missing" if kind == "jobs" else "log-of-missing-pod"
            raise recorded(case, absent=request.name)
        if request.subresource == "log":
            return await self._log(request, found)
        if method == "PATCH":
            patch = request.data or json.loads(request.body)
            found = self.objects.change(kind, request.name, lambda seen: _merge(seen, patch))
        elif method == "DELETE":
            self._delete(request, kind, found)
        return web.json_response(self.objects.get(kind, request.name) or found)

    def _create(self, request: kmock.Request) -> web.Response:
        if request.namespace != NAMESPACE:
            raise recorded("namespace-missing", absent=str(request.namespace))
        job = request.data
        if "generateName" in job["metadata"]:
            job["metadata"]["name"] = job["metadata"].pop("generateName") + random_suffix()
        name = job["metadata"]["name"]
        _check_labels(job)
        jobs = self.objects.all("jobs")
        if self.job_quota is not None and len(jobs) >= self.job_quota:
            refusal = recorded("job-count-quota-exceeded", third=name)
            counted = f"used: count/jobs.batch={len(jobs)}"
            limited = f"limited: count/jobs.batch={self.job_quota}"
            message = re.sub(r"used: \S+=\d+", counted, refusal.body["message"])
            message = re.sub(r"limited: \S+=\d+", limited, message)
            raise Refusal({**refusal.body, "message": message})
        try:
            return web.json_response(self.cluster.create_job(job), status=201)
        except Taken:
            raise recorded("already-exists", twice=name) from None

    def _delete(self, request: kmock.Request, kind: str, found: Object) -> None:
        options = request.data or {}
        wanted = options.get("preconditions") or {}
        name = found["metadata"]["name"]
        for field in ("uid", "resourceVersion"):
            if wanted.get(field) not in (None, found["metadata"][field]):
                message = (
                    f"Precondition failed: {field} in precondition: {wanted[field]}, "
                    f"{field} in object meta: {found['metadata'][field]}"
                )
                details = {"name": name, "kind": kind}
                body = {"kind": "Status", "status": "Failure", "code": 409, "details": details}
                raise Refusal({**body, "reason": "Conflict", "message": message})
        if kind == "pods":
            self.cluster.pods.delete(name)
        else:
            self.cluster.delete_job(name)

    def _list(self, request: kmock.Request, kind: str) -> web.Response:
        limit = int(request.params.get("limit", "0"))
        token = request.params.get("continue", "")
        version, _, start = token.partition(":")
        if token and self.num_expired_pages:
            self.num_expired_pages -= 1
            raise recorded("continue-token-expired")
        begin = int(start) if token else 0
        version = version or str(self.objects.version)
        items = [found for found in self.objects.all(kind) if _is_selected(found, request)]
        if request.namespace != NAMESPACE:
            items = []
        end = begin + limit if limit else len(items)
        metadata = {"resourceVersion": version}
        if end < len(items):
            metadata["continue"] = f"{version}:{end}"
        group = "batch/v1" if kind == "jobs" else "v1"
        made = {"apiVersion": group, "kind": f"{KINDS[kind]}List", "metadata": metadata}
        return web.json_response({**made, "items": items[begin:end]})

    async def _watch(
        self, request: kmock.Request, kind: str, fault: str | None
    ) -> web.StreamResponse:
        place = int(request.params.get("resourceVersion") or self.objects.version)
        self.watched_from.append((kind, place))
        response = await _begin(request)
        if place < self.objects.forgotten:
            event = copy.deepcopy(ERRORS["watch-too-old"]["ok"][0])
            event["object"]["message"] = (
                f"too old resource version: {place} ({self.objects.forgotten})"
            )
            await response.write(json.dumps(event).encode() + b"\n")
            return response
        loop = asyncio.get_running_loop()
        seconds = float(request.params.get("timeoutSeconds", "3600"))
        end_s = loop.time() + min(seconds, self.watch_limit_s)
        while (left_s := end_s - loop.time()) > 0:
            for entry in self.objects.since(kind, place):
                if request.namespace == NAMESPACE and _is_selected(entry.object, request):
                    event = {"type": entry.action, "object": entry.object}
                    await response.write(json.dumps(event).encode() + b"\n")
                    if fault == "later-drop":
                        return _hang_up(request, response)
                place = entry.version
            await self.objects.wait(min(left_s, BOOKMARK_S))
            if self.is_away:
                return _hang_up(request, response)
            if request.params.get("allowWatchBookmarks") and not self.objects.since(kind, place):
                place = self.objects.version
                metadata = {"resourceVersion": str(place)}
                bookmark = {"type": "BOOKMARK", "object": {"metadata": metadata}}
                await response.write(json.dumps(bookmark).encode() + b"\n")
        return response

    async def _log(self, request: kmock.Request, pod: Object) -> web.StreamResponse:
        name = pod["metadata"]["name"]
        logs = self.cluster.pods.logs
        if name not in logs:
            reason = "ContainerCreating"
            message = f'container "main" in pod "{name}" is waiting to start: {reason}'
            body = {"kind": "Status", "status": "Failure", "code": 400, "reason": "BadRequest"}
            raise Refusal({**body, "message": message})
        response = await _begin(request)
        place = _log_begin(logs[name], request)
        end_s = time.monotonic() + self.log_limit_s
        while time.monotonic() < end_s:
            while place < len(logs[name]):
                moment, line = logs[name][place]
                place += 1
                text = f"{moment} {line}\n" if request.params.get("timestamps") else f"{line}\n"
                await response.write(text.encode())
            if name not in self.cluster.pods.running or not request.params.get("follow"):
                if place == len(logs[name]):
                    return response
                continue
            await asyncio.sleep(0.02)
            if self.is_away:
                return _hang_up(request, response)
        return response


def _log_begin(lines: list[tuple[str, str]], request: kmock.Request) -> int:
    """Find the line that a request wants first."""
    place = 0
    if (count := request.params.get("tailLines")) is not None:
        place = max(0, len(lines) - int(count))
    if (seconds := request.params.get("sinceSeconds")) is not None:
        since_s = time.time() - int(seconds)
        moments = [datetime.fromisoformat(f"{x[:19]}+00:00").timestamp() for x, _ in lines]
        place = max(place, sum(moment_s < since_s - 1 for moment_s in moments))
    return place


def _is_watch(request: kmock.Request) -> bool:
    return request.params.get("watch", "").lower() == "true"


def _is_selected(found: Object, request: kmock.Request) -> bool:
    """Whether an object has the labels that a request asks for."""
    labels = found["metadata"].get("labels") or {}
    pairs = filter(None, request.params.get("labelSelector", "").split(","))
    return all(labels.get(name) == value for name, _, value in (x.partition("=") for x in pairs))


def _merge(seen: Object, patch: Object) -> None:
    """Apply a JSON merge patch."""
    for name, value in patch.items():
        if value is None:
            seen.pop(name, None)
        elif isinstance(value, dict):
            _merge(seen.setdefault(name, {}), value)
        else:
            seen[name] = value


def _check_labels(job: Object) -> None:
    """Refuse labels and names as the server does.

    Raises:
        Refusal: 422.
    """
    name = job["metadata"]["name"]
    for value in job["metadata"].get("labels", {}).values():
        if not LABEL.match(value):
            text = json.dumps(ERRORS["invalid-label-value"]["body"])
            body = json.loads(text.replace('\\"a b/c\\"', json.dumps(json.dumps(value))[1:-1]))
            body["message"] = body["message"].replace('"label"', f'"{name}"')
            body["details"]["name"] = name
            raise Refusal(body)
    if len(name) > MAX_LABEL:
        text = json.dumps(ERRORS["invalid-name-too-long"]["body"])
        raise Refusal(json.loads(re.sub("x{64}", name, text)))


def _fault(status: int) -> web.Response:
    reasons = {429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
    reason = reasons.get(status, "Unknown")
    message = f"{reason}, injected"
    body = {"kind": "Status", "code": status, "reason": reason, "message": message}
    headers = {"Retry-After": "1"} if status == 429 else {}
    return web.json_response(body, status=status, headers=headers)


async def _begin(request: kmock.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    assert request._raw_request is not None
    await response.prepare(request._raw_request)
    return response


def _hang_up(
    request: kmock.Request, response: web.StreamResponse | None = None
) -> web.StreamResponse:
    raw = request._raw_request
    if raw is not None and raw.transport is not None:
        raw.transport.abort()
    return response or web.Response()
