"""Commands for the jobs that flows left on a cluster."""

from contextlib import closing
from typing import Annotated

import typer

from hvkf.settings.jobs import ClusterJobs

jobs_app = typer.Typer(help="Jobs on a Kubernetes cluster.", no_args_is_help=True)
NamespaceOption = Annotated[str | None, typer.Option(help="Left out: the pod's or context's.")]
ContextOption = Annotated[str | None, typer.Option(help="Of the kubeconfig.")]


@jobs_app.command()
def reap(namespace: NamespaceOption = None, context: ContextOption = None) -> None:
    """Deletes unfinished jobs whose owners' leases have all ended."""
    from hvkf.jobs import owners
    from hvkf.jobs.kubernetes import Cluster

    with closing(Cluster(ClusterJobs(namespace=namespace, context=context))) as cluster:
        for name in owners.reap(cluster):
            print(f"{name} is deleted: no owner renewed its lease")


@jobs_app.command()
def release(
    owner: Annotated[str, typer.Argument(help="A flow run's id.")],
    namespace: NamespaceOption = None,
    context: ContextOption = None,
) -> None:
    """Ends a run's ownership of its jobs, and deletes those that no other run keeps."""
    from hvkf.jobs import owners
    from hvkf.jobs.kubernetes import Cluster

    with closing(Cluster(ClusterJobs(namespace=namespace, context=context))) as cluster:
        for name in owners.release(cluster, owner):
            print(f"{name} is deleted")
