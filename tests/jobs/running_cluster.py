"""A small cluster that runs: its API on a port of this machine, its pods as processes."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import kmock
import psutil
import pytest
import yaml

from hvkf.processes import PARENT_VARIABLE
from tests.jobs.api_server import ApiServer
from tests.jobs.cluster_objects import Object
from tests.jobs.job_look import INDEX, index_of
from tests.jobs.pod_runner import Container
from tests.jobs.small_cluster import NAMESPACE, SmallCluster

ROOT = Path(__file__).parents[2]
PACE = 0.05
LIMIT_S = 60.0
T = TypeVar("T")


class LocalContainer:
    """A pod's command as a process of this machine."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        command: list[str],
        environment: dict[str, str],
        say: Callable[[str], None],
        end: Callable[[int], None],
    ) -> None:
        self._loop, self._say, self._end = loop, say, end
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        threading.Thread(target=self._end_all, daemon=True).start()

    def _end_all(self) -> None:
        """End what the first process leaves behind, as a container does."""
        self.process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as output:
            for line in output:
                self._tell(self._say, line.rstrip("\n"))
        code = self.process.wait()
        self._tell(self._end, 128 - code if code < 0 else code)

    def _tell(self, what: Callable[[T], None], value: T) -> None:
        """Tell something in the cluster's thread; one that has ended hears nothing."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, value)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End all of it: Prefect starts a flow's process in a session of its own."""
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            below = psutil.Process(self.process.pid).children(recursive=True)
            os.killpg(self.process.pid, signal.SIGKILL)
            for process in below:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def close(self) -> None:
        """End the process, and wait for it."""
        self.kill()
        self._thread.join(LIMIT_S)


class RunningCluster:
    """A cluster, its API, and the thread in which they run."""

    def __init__(self, folder: Path, pace: float) -> None:
        self.folder = folder
        self.loop = asyncio.new_event_loop()
        self.cluster = SmallCluster(self.loop, self._launch, pace, time.time())
        self.api = ApiServer(self.cluster)
        self.address = ""
        # What an image brings along, where that is other than this process's environment.
        self.images: dict[str, dict[str, str]] = {}
        self._containers: list[LocalContainer] = []
        self._ports: dict[str, int] = {}
        self._server = kmock.Server(self.api)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._server.__aenter__(), self.loop).result(LIMIT_S)
        self.address = f"http://127.0.0.1:{self._server.port}"

    def stop(self) -> None:
        """End the API and all pods."""
        self.api.is_away = True
        for container in self._containers:
            container.close()
        ended = self._server.__aexit__(None, None, None)
        asyncio.run_coroutine_threadsafe(ended, self.loop).result(LIMIT_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def do(self, what: Callable[[SmallCluster], T]) -> T:
        """Do something to the cluster, in its thread."""

        async def done() -> T:
            return what(self.cluster)

        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(LIMIT_S)

    def wait(self, what: Callable[[SmallCluster], T], limit_s: float = LIMIT_S) -> T:
        """Wait until something is so, and return it."""
        end_s = time.monotonic() + limit_s
        while not (found := self.do(what)):
            assert time.monotonic() < end_s, f"not within {limit_s:g} s"
            time.sleep(0.02)
        return found

    def jobs(self) -> list[Object]:
        """Return all jobs."""
        return self.do(lambda cluster: list(cluster.objects.all("jobs")))

    def pods(self) -> list[Object]:
        """Return all pods."""
        return self.do(lambda cluster: list(cluster.objects.all("pods")))

    def running(self, index: int = 0) -> str:
        """Wait for a pod of an index to run and speak, and return its name."""

        def found(cluster: SmallCluster) -> str:
            for pod in cluster.objects.all("pods"):
                name = str(pod["metadata"]["name"])
                is_running = name in cluster.pods.running and cluster.pods.logs.get(name)
                if is_running and index_of(pod) == index:
                    return name
            return ""

        return self.wait(found)

    def _launch(
        self, pod: Object, say: Callable[[str], None], end: Callable[[int], None]
    ) -> Container:
        (container,) = pod["spec"]["containers"]
        index = pod["metadata"]["annotations"][INDEX]
        command = [
            self._with_address(word.replace("$(JOB_COMPLETION_INDEX)", index), pod)
            for word in [*container.get("command", ()), *container.get("args", ())]
        ]
        root = self.folder / "pods" / pod["metadata"]["name"]
        root.mkdir(parents=True)
        environment = _environment(pod, root, index, self.images.get(container["image"]))
        made = LocalContainer(self.loop, command, environment, say, end)
        self._containers.append(made)
        return made

    def _with_address(self, word: str, pod: Object) -> str:
        """Stand in for the cluster's names: a gang's first pod is found on this machine."""
        service = pod["spec"].get("subdomain", "-")
        name = pod["metadata"]["ownerReferences"][0]["name"]
        if not re.fullmatch(rf"{name}-0\.{service}:\d+", word):
            return word
        if name not in self._ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._ports[name] = probe.getsockname()[1]
        return f"127.0.0.1:{self._ports[name]}"


def _environment(
    pod: Object, root: Path, index: str, image: dict[str, str] | None
) -> dict[str, str]:
    """Set what a container finds; its volumes are folders of this machine."""
    (container,) = pod["spec"]["containers"]
    own = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    environment = {
        **(own if image is None else image),
        PARENT_VARIABLE: str(os.getpid()),
        "JOB_COMPLETION_INDEX": index,
    }
    for variable in container.get("env", ()):
        value = str(variable.get("value") or _field(pod, variable["valueFrom"]))
        if value == "/tmp" or value.startswith("/cache"):
            value = f"{root}{value}"
            Path(value).mkdir(parents=True, exist_ok=True)
        environment[variable["name"]] = value
    return environment


def _field(pod: Object, source: Object) -> str:
    """Read a field of the pod, as the downward API does."""
    value: Any = pod
    for name in source["fieldRef"]["fieldPath"].split("."):
        value = value[name]
    return str(value)


@contextmanager
def running_cluster(folder: Path, pace: float = PACE) -> Iterator[RunningCluster]:
    """Run a cluster until the test is done."""
    cluster = RunningCluster(folder, pace)
    cluster.start()
    try:
        yield cluster
    finally:
        cluster.stop()


def use_kubeconfig(
    folder: Path, address: str, monkeypatch: pytest.MonkeyPatch, **user: Any
) -> Path:
    """Point the Kubernetes client, and processes that are started, at an API."""
    file = folder / "kubeconfig"
    context = {"cluster": "test", "user": "test", "namespace": NAMESPACE}
    kubeconfig = {
        "clusters": [{"name": "test", "cluster": {"server": address}}],
        "users": [{"name": "test", "user": user or {"token": "token"}}],
        "contexts": [{"name": "test", "context": context}],
        "current-context": "test",
    }
    file.write_text(yaml.safe_dump(kubeconfig))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(file))
    # The client reads the variable when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    return file
