"""The waiting task, over real HTTP against a small API whose pods are local steps."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hvkf.errors import BadInput
from hvkf.jobs.cluster import run_plan
from hvkf.jobs.spec import Listener
from hvkf.records import Part, Plan
from hvkf.settings.jobs import ClusterJobs, StageJobs
from hvkf.storage import FolderStore

CONDITIONS = {0: ("Complete", "CompletionsReached"), 65: ("Failed", "FailedIndexes")}


class SmallApi(ThreadingHTTPServer):
    """One namespace: jobs that are created run one pod, which ends with `code`."""

    daemon_threads = True

    def __init__(self, work: Any, code: int, refuse: str | None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.work, self.code, self.refuse = work, code, refuse
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        self.jobs: dict[str, dict[str, Any]] = {}
        self.num_drops = 0

    def put(self, kind: str, action: str, seen: dict[str, Any]) -> None:
        seen["metadata"]["resourceVersion"] = str(len(self.events) + 1)
        self.events.append((kind, action, json.loads(json.dumps(seen))))

    def start(self, job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        job["metadata"]["uid"] = "uid"
        self.jobs[name] = job
        self.put("jobs", "ADDED", job)
        labels = {"batch.kubernetes.io/job-name": name}
        pod = {"metadata": {"name": f"{name}-0-abcde", "labels": labels}, "status": {}}
        pod["status"] = _status("Running", {"running": {}})
        self.put("pods", "ADDED", pod)
        if self.code < 0:
            return  # it runs on
        self.work()
        phase = "Failed" if self.code else "Succeeded"
        pod["status"] = _status(phase, {"terminated": {"exitCode": self.code, "reason": "Error"}})
        self.put("pods", "MODIFIED", pod)
        kind, reason = CONDITIONS[self.code]
        job["status"] = {"conditions": [{"type": kind, "status": "True", "reason": reason}]}
        self.put("jobs", "MODIFIED", job)


def _status(phase: str, state: dict[str, Any]) -> dict[str, Any]:
    return {"phase": phase, "containerStatuses": [{"name": "main", "state": state}]}


class Handler(BaseHTTPRequestHandler):
    server: SmallApi

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self, body: Any, status: int = 200) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        kind = path.rsplit("/", 1)[-1]
        if kind == "log":
            line = "error: row 3 is no picture" if self.server.code else "all well"
            self.answer(f"2026-01-01T00:00:00.1Z {line}\n")
        elif kind == "version":
            self.answer({})
        elif "watch=" not in query:
            metadata = {"resourceVersion": str(len(self.server.events))}
            self.answer({"items": [], "metadata": metadata})
        else:
            self.stream(kind, int(query.split("resourceVersion=")[1].split("&")[0]))

    def stream(self, kind: str, place: int) -> None:
        """Stream what happened since; break off after each event, as bad networks do."""
        self.send_response(200)
        self.end_headers()
        end_s = time.monotonic() + 1.0
        while time.monotonic() < end_s:
            for seen_kind, action, seen in self.server.events[place:]:
                place += 1
                if seen_kind == kind:
                    line = json.dumps({"type": action, "object": seen})
                    self.wfile.write(line.encode() + b"\n")
                    self.server.num_drops += 1
                    return
            time.sleep(0.05)

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.refuse is not None:
            self.answer({"message": self.server.refuse}, 403)
            return
        self.answer({**job, "metadata": {**job["metadata"], "resourceVersion": "1"}})
        threading.Thread(target=self.server.start, args=[job], daemon=True).start()

    def do_PATCH(self) -> None:
        patch = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        job = self.server.jobs[self.path.rsplit("/", 1)[-1]]
        for name, value in patch["metadata"]["annotations"].items():
            if value is None:
                job["metadata"]["annotations"].pop(name, None)
            else:
                job["metadata"]["annotations"][name] = value
        self.answer(job)

    def do_DELETE(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.put("jobs", "DELETED", self.server.jobs.pop(self.path.rsplit("/", 1)[-1]))
        self.answer({})


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    servers = []

    def start(code: int = 0, refuse: str | None = None) -> SmallApi:
        api = SmallApi(lambda: FolderStore(tmp_path).put("out/0", b"done"), code, refuse)
        threading.Thread(target=api.serve_forever, daemon=True).start()
        servers.append(api)
        user: dict[str, Any] = {
            "clusters": [
                {"name": "c", "cluster": {"server": f"http://127.0.0.1:{api.server_port}"}}
            ]
        }
        user |= {"contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}]}
        user |= {"users": [{"name": "u", "user": {}}], "current-context": "x"}
        (tmp_path / "kubeconfig").write_text(json.dumps(user))
        monkeypatch.setattr(
            "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION",
            str(tmp_path / "kubeconfig"),
        )
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        return api

    yield start
    for api in servers:
        api.shutdown()
        api.server_close()


def make_plan() -> Plan:
    mount = ({"op": "add", "path": "/spec/volumes/-", "value": {"name": "w", "emptyDir": {}}},)
    jobs = StageJobs(executor="kubernetes", pod_patch=mount)
    sections = {"cache": jobs.model_dump(), "cluster": ClusterJobs(image="i:1").model_dump()}
    part = Part(index=0, outputs=("out/0",), work={})
    return Plan(stage="cache", digest="d", config={"jobs": sections}, inputs={}, parts=(part,))


def test_a_job_is_done_although_every_watch_breaks_off(serve: Any, tmp_path: Path) -> None:
    api = serve()
    lines: list[str] = []
    run_plan(make_plan(), FolderStore(tmp_path), Listener(lambda *_: None, lines.append), "me")
    assert "all well" in lines
    assert api.num_drops >= 4


def test_a_failed_index_is_named_with_its_pods_words(serve: Any, tmp_path: Path) -> None:
    api = serve(code=65)
    api.work = lambda: None
    with pytest.raises(BadInput, match=r"cache index 0 .*row 3 is no picture"):
        run_plan(make_plan(), FolderStore(tmp_path), Listener(lambda *_: None, print), "me")


def test_what_is_forbidden_comes_with_its_rule(serve: Any, tmp_path: Path) -> None:
    refuse = (
        'jobs.batch is forbidden: User "weak" cannot create resource "jobs" in API group "batch" '
        'in the namespace "default"'
    )
    serve(refuse=refuse)
    with pytest.raises(BadInput, match=r'apiGroups: \["batch"\].*verbs: \["create"\]'):
        run_plan(make_plan(), FolderStore(tmp_path), Listener(lambda *_: None, print), "me")


def test_an_interrupted_wait_deletes_its_job(serve: Any, tmp_path: Path) -> None:
    api = serve(code=-1)

    def interrupt(line: str) -> None:
        if line == "error: row 3 is no picture" or "all well" in line or "created" in line:
            deadline_s = time.monotonic() + 5
            while not api.jobs and time.monotonic() < deadline_s:
                time.sleep(0.05)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(make_plan(), FolderStore(tmp_path), Listener(lambda *_: None, interrupt), "me")
    assert not api.jobs
