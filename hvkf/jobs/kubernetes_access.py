"""What this process may do on the cluster, and what is there: it asks, and changes nothing."""

import json
from collections.abc import Callable
from contextlib import closing
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from hvkf.errors import BadInput, TryAgain
from hvkf.jobs.kubernetes_config import load_configuration
from hvkf.settings.jobs import ClusterJobs

TIMEOUT_S = (5.0, 15.0)
QUEUE_GROUP, QUEUE_VERSION = "kueue.x-k8s.io", "v1beta2"


class Access:
    """Answers of the API of one cluster to one user.

    Raises (each method, too):
        ConfigError: no cluster is configured.
        BadInput: the credentials are not accepted.
        TryAgain: the API does not answer.
    """

    def __init__(self, settings: ClusterJobs) -> None:
        configuration, self.namespace = load_configuration(settings)
        configuration.retries = urllib3.Retry(2, redirect=3)
        self.host: str = configuration.host
        self._api = client.ApiClient(configuration)

    def close(self) -> None:
        """Give connections back."""
        self._api.close()

    def version(self) -> str:
        """Ask for the API's version."""
        return str(self._ask(client.VersionApi(self._api).get_code)["gitVersion"])

    def may(self, verb: str, group: str, resource: str) -> bool:
        """Ask whether this user may do something in the namespace; resource/subresource works."""
        name, _, subresource = resource.partition("/")
        attributes = {"namespace": self.namespace, "verb": verb, "group": group, "resource": name}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, "subresource": subresource}},
        }
        ask = client.AuthorizationV1Api(self._api).create_self_subject_access_review
        answer = self._ask(ask, client.V1SelfSubjectAccessReview.model_validate(review))
        return bool(answer["status"]["allowed"])

    def node_gpus(self, resource: str) -> dict[str, int] | None:
        """Map the nodes that can be scheduled on to their GPUs; None where reading is forbidden."""
        nodes = self._ask(client.CoreV1Api(self._api).list_node, unreadable=True)
        if nodes is None:
            return None
        return {
            node["metadata"]["name"]: int(node["status"].get("allocatable", {}).get(resource, 0))
            for node in nodes["items"]
            if not node["spec"].get("unschedulable")
        }

    def headless_service(self, name: str) -> bool | None:
        """Say whether a headless Service is there; None where reading is forbidden."""
        read = client.CoreV1Api(self._api).read_namespaced_service
        found = self._ask(read, name, self.namespace, unreadable=True)
        return None if found is None else found.get("spec", {}).get("clusterIP") == "None"

    def queue(self, name: str) -> bool | None:
        """Say whether a LocalQueue of Kueue is there; None where reading is forbidden."""
        read = client.CustomObjectsApi(self._api).get_namespaced_custom_object
        where = (QUEUE_GROUP, QUEUE_VERSION, self.namespace, "localqueues", name)
        found = self._ask(read, *where, unreadable=True)
        return None if found is None else bool(found)

    def _ask(self, call: Callable[..., Any], *arguments: Any, unreadable: bool = False) -> Any:
        """Ask, and return the JSON that was answered; {} where there is no such thing.

        With `unreadable`, None stands for what may not be read.
        """
        try:
            response = call(*arguments, _preload_content=False, _request_timeout=TIMEOUT_S)
            with closing(response):
                status, content = response.status, response.read()
        except ApiException as fault:
            status, content = fault.status, b""
        except (urllib3.exceptions.HTTPError, OSError) as fault:
            raise TryAgain(
                f"The Kubernetes API at {self.host} gives no answer ({fault}): check that it runs, "
                "and that this machine reaches it."
            ) from None
        if status < 300:
            return json.loads(content)
        if unreadable and status in (403, 404):
            return None if status == 403 else {}
        if status in (401, 403):
            raise BadInput(
                f"The Kubernetes API at {self.host} does not accept these credentials ({status}): "
                "sign in anew, or set KUBECONFIG or jobs.cluster.context to a user that may be "
                "here."
            )
        raise TryAgain(f"The Kubernetes API at {self.host} answered {status}: {content[:200]!r}.")
