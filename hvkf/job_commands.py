"""Commands for the jobs that flows left on a cluster."""

from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from hvkf.command_options import YesOption, ask_before_deleting, refuse_settings
from hvkf.settings.jobs import ClusterJobs

if TYPE_CHECKING:
    from hvkf.jobs.kubernetes import Cluster

jobs_app = typer.Typer(
    help="Jobs on a Kubernetes cluster.", no_args_is_help=True, rich_markup_mode=None
)
NamespaceOption = Annotated[
    str | None, typer.Option(help="Namespace; default: the pod's or the context's.")
]
ContextOption = Annotated[
    str | None, typer.Option(help="Context of the kubeconfig; default: the current one.")
]
NO_SETTINGS = "give --namespace and --context instead"


@jobs_app.command()
def reap(
    command: typer.Context,
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    yes: YesOption = False,
) -> None:
    """Deletes unfinished jobs whose owners' leases have all ended."""
    refuse_settings(command, NO_SETTINGS)
    from hvkf.jobs import owners
    from hvkf.jobs.kubernetes import Cluster

    with closing(Cluster(ClusterJobs(namespace=namespace, context=context))) as cluster:
        ask_before_deleting(f"Delete the jobs without owners in {_place(cluster)}?", yes=yes)
        for name in owners.reap(cluster):
            print(f"{name} is deleted: no owner renewed its lease")


@jobs_app.command()
def release(
    command: typer.Context,
    owner: Annotated[str, typer.Argument(help="A flow run's id.")],
    namespace: NamespaceOption = None,
    context: ContextOption = None,
    yes: YesOption = False,
) -> None:
    """Ends a run's ownership of its jobs, and deletes those that no other run keeps."""
    refuse_settings(command, NO_SETTINGS)
    from hvkf.jobs import owners
    from hvkf.jobs.kubernetes import Cluster

    with closing(Cluster(ClusterJobs(namespace=namespace, context=context))) as cluster:
        ask_before_deleting(f"Delete the jobs of {owner} alone in {_place(cluster)}?", yes=yes)
        for name in owners.release(cluster, owner):
            print(f"{name} is deleted")


def _place(cluster: "Cluster") -> str:
    return f"namespace {cluster.namespace} of {cluster.host}"
