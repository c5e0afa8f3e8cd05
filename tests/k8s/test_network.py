"""What may reach what in a cluster: metadata addresses, Prefect's server, its sign-in."""

import ipaddress
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from flows.origin_middleware import Answered, answered_for
from tests.k8s.overlays import K8S, of_kind, render
from tests.k8s.test_overlays import OVERLAYS, Document, check, pod_specs

METADATA = {
    "AWS, Azure, Google and others": "169.254.169.254",
    "credentials of ECS and of EKS Pod Identity": "169.254.170.2",
    "EKS Pod Identity": "169.254.170.23",
    "Azure's WireServer": "168.63.129.16",
    "Alibaba": "100.100.100.200",
    "link-local": "fe80::a9fe:a9fe",
    "AWS on IPv6": "fd00:ec2::254",
    "EKS Pod Identity on IPv6": "fd00:ec2::23",
    "Google on IPv6": "fd20:ce::254",
}
# Addresses of object stores in the internet, in a private network and on IPv6.
STORES = ("52.216.1.1", "10.4.5.6", "192.168.3.4", "2600:1fa0:8000::1", "fd12:3456::1")
IDENTITIES = {
    "eks-pod-identity": ["169.254.170.23", "fd00:ec2::23"],
    "gke-workload-identity": ["169.254.169.254", "169.254.169.252"],
}


def policies_of_jobs(documents: list[Document]) -> list[Document]:
    found = of_kind(documents, "NetworkPolicy").values()
    labels = {"app.kubernetes.io/name": "hvkf"}
    return [
        policy["spec"]
        for policy in found
        if policy["spec"]["podSelector"].get("matchLabels") == labels
    ]


def may_reach(policies: list[Document], address: str, port: int) -> bool:
    """Say whether pods of these policies may reach an address that is no pod's."""
    target = ipaddress.ip_address(address)
    for policy in policies:
        for rule in policy.get("egress", []):
            if port not in [found["port"] for found in rule.get("ports", [{"port": port}])]:
                continue
            if "to" not in rule:
                return True
            for peer in rule["to"]:
                block = peer.get("ipBlock")
                if block and target in ipaddress.ip_network(block["cidr"]):
                    spared = map(ipaddress.ip_network, block.get("except", []))
                    if not any(target in network for network in spared):
                        return True
    return False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_gpu_pods_reach_object_stores_and_no_metadata_service(overlay: str) -> None:
    policies = policies_of_jobs(render(K8S / "overlays" / overlay))
    for port in (80, 443):
        reached = [name for name, address in METADATA.items() if may_reach(policies, address, port)]
        assert not reached, port
        assert all(may_reach(policies, address, port) for address in STORES)


@pytest.mark.parametrize("component", IDENTITIES)
def test_a_workload_identity_that_needs_a_metadata_service_has_its_own_and_no_more(
    component: str, tmp_path: Path
) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    overlay = tmp_path / "k8s" / "overlays" / "cloud" / "kustomization.yaml"
    settings = yaml.safe_load(overlay.read_text())
    settings["components"] = [f"../../components/{component}"]
    overlay.write_text(yaml.safe_dump(settings))
    documents = render(overlay.parent)
    (added,) = [
        policy for name, policy in of_kind(documents, "NetworkPolicy").items() if "identity" in name
    ]
    check(added)
    opened = {
        str(ipaddress.ip_network(peer["ipBlock"]["cidr"]).network_address)
        for rule in added["spec"]["egress"]
        for peer in rule["to"]
        if ipaddress.ip_network(peer["ipBlock"]["cidr"]).num_addresses == 1
    }
    assert opened == set(IDENTITIES[component])
    reached = {
        address
        for address in METADATA.values()
        if may_reach(policies_of_jobs(documents), address, 80)
    }
    assert reached <= opened


def server_container(documents: list[Document]) -> Document:
    (container,) = of_kind(documents, "Deployment")["hvkf-server"]["spec"]["template"]["spec"][
        "containers"
    ]
    found: Document = container
    return found


def answered_by(documents: list[Document]) -> Answered:
    """Say who is answered by the server of an overlay, as its command does."""
    container = server_container(documents)
    assert container["command"][:3] == ["python", "-m", "flows.server"]
    port, *options = container["command"][3:]
    assert options == ["--host", "0.0.0.0"]
    names = [
        value
        for flag, value in zip(container["args"][::2], container["args"][1::2], strict=True)
        if flag == "--name"
    ]
    pages = {variable["name"]: variable.get("value") for variable in container["env"]}
    return answered_for(pages["PREFECT_UI_API_URL"], int(port), names)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_is_known_under_the_name_that_worker_and_flows_have_for_it(overlay: str) -> None:
    documents = render(K8S / "overlays" / overlay)
    hosts = answered_by(documents).hosts
    addresses: set[Any] = {
        variable["value"]
        for _, _, spec in pod_specs(documents)
        for container in [*spec.get("initContainers", []), *spec["containers"]]
        for variable in container.get("env", [])
        if variable["name"] == "PREFECT_API_URL"
    }
    assert addresses
    assert {urlsplit(address).hostname for address in addresses} <= hosts
    assert {"127.0.0.1", "localhost"} <= hosts, "kubectl port-forward"


def test_in_a_cloud_only_the_signed_in_pages_origin_may_ask() -> None:
    documents = render(K8S / "overlays" / "cloud")
    (ingress,) = of_kind(documents, "Ingress").values()
    host = ingress["spec"]["rules"][0]["host"]
    assert answered_by(documents).origins == {f"https://{host}"}
    assert host in answered_by(documents).hosts
    (proxy,) = of_kind(documents, "Deployment")["hvkf-sign-in"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert "--pass-host-header=true" in proxy["args"]
    assert "--cookie-samesite=lax" in proxy["args"]
    assert re.search(r":v[\d.]+@sha256:[0-9a-f]{64}$", proxy["image"])
