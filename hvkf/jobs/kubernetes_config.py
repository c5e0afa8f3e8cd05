"""Where the cluster is and who asks: the pod this runs in, or the kubeconfig."""

import os
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes import config as kube_config

from hvkf.errors import ConfigError
from hvkf.settings.jobs import ClusterJobs

# Where k8s/ installs: what a context that names no namespace means here.
INSTALLED_NAMESPACE = "hvkf"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def load_configuration(settings: ClusterJobs) -> tuple[Any, str]:
    """Return the client's configuration, and the namespace that jobs go to.

    Raises:
        ConfigError: no cluster is configured here.
    """
    configuration = client.Configuration()
    try:
        namespace = _load(configuration, settings.context)
    except (kube_config.ConfigException, OSError) as fault:
        raise ConfigError(
            f"No Kubernetes cluster is configured here ({fault}): set KUBECONFIG to a kubeconfig "
            "file, or jobs.cluster.context to one of its contexts."
        ) from None
    return configuration, settings.namespace or namespace


def renew_credentials(configuration: Any, settings: ClusterJobs) -> None:
    """Read the token again: files and commands give new ones.

    Raises:
        ConfigError: there is no configuration any more.
    """
    fresh, _ = load_configuration(settings)
    configuration.api_key = fresh.api_key
    configuration.refresh_api_key_hook = fresh.refresh_api_key_hook


def _load(configuration: Any, context: str | None) -> str:
    if context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        kube_config.load_incluster_config(client_configuration=configuration)
        return NAMESPACE_FILE.read_text().strip()
    kube_config.load_kube_config(context=context, client_configuration=configuration)
    contexts, current = kube_config.list_kube_config_contexts()
    chosen = next((found for found in contexts if found["name"] == context), current)
    namespace: str = chosen["context"].get("namespace") or INSTALLED_NAMESPACE
    return namespace
