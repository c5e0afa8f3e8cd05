"""What a run would create on a cluster, told without creating it."""

import importlib
from collections.abc import Iterator

import yaml

from hvkf import ledger
from hvkf.config import Config
from hvkf.jobs.manifest import build_manifest
from hvkf.jobs.spec import UNKNOWN, JobSpec, job_for
from hvkf.records import Plan
from hvkf.redaction import hide_secrets
from hvkf.settings.jobs import StageJobs
from hvkf.shown import counted
from hvkf.storage import Store, open_folder


def dry_run(config: Config) -> Iterator[str]:
    """Yield what each stage of the chain would do: a sentence, or a manifest as YAML.

    The first stage that is not done is planned; those behind it have `?` for what it will tell.
    A workspace in S3 is read for that, which is said first. No secret is shown.
    """
    store = open_folder(config.workspace)  # unlike a workspace that is run in, not marked as one
    if "://" in store.url:
        yield f"# reads {store.url} to see what is done, and writes nothing"
    stages = ["ingest", "cache", "encode", "train", "evaluate"]
    if config.render.manifest is not None:
        stages.append("render")
    is_known = True
    for stage in stages:
        plan = None
        if is_known:
            plan = importlib.import_module(f"hvkf.stages.{stage}").plan(config, store)
            # Ingest never says committed: it has no parts where no video is new.
            is_known = plan.committed is not None or not plan.parts
        yield _of_stage(stage, config, store, plan)


def _of_stage(stage: str, config: Config, store: Store, plan: Plan | None) -> str:
    jobs: StageJobs = getattr(config.jobs, stage)
    if plan is not None and (plan.committed is not None or not plan.parts):
        return f"# {stage}: done before"
    if jobs.executor == "local":
        return f"# {stage}: {counted(jobs.workers, 'process', 'processes')} where the flow runs"
    if plan is None:
        job = JobSpec(
            stage=stage,
            workspace=store.url,
            plan=UNKNOWN,
            parts=None,
            attempt=1,
            jobs=jobs,
            cluster=config.jobs.cluster,
        )
    else:
        pending = ledger.pending_parts(store, plan)
        if not pending:
            return f"# {stage}: all parts are done; only the commit lacks"
        job = job_for(plan, store.url, pending, attempt=1)
    manifest = hide_secrets(build_manifest(job))
    return yaml.dump(manifest, Dumper=_PlainDumper, sort_keys=False, width=100)


class _PlainDumper(yaml.SafeDumper):
    """Writes what is used twice twice, as people do."""

    def ignore_aliases(self, data: object) -> bool:
        return True
