"""Settings of jobs: what a cluster needs, refused early, and what no form may set."""

import pytest

from hvkf.config_file import check_config, deployed_only_keys
from hvkf.errors import ConfigError
from hvkf.settings.jobs import STAGES, StageJobs


def test_settings_of_one_machine_stay_as_they_were() -> None:
    config = check_config({"jobs": {"encode": {"workers": 8}}}, "the test")
    assert config.jobs.encode.executor == "local"
    assert config.jobs.encode.num_ranks == 8


@pytest.mark.parametrize(
    ("jobs", "said"),
    [
        ({"encode": {"executor": "kubernetes"}}, "set cluster.image, or encode.image"),
        ({"encode": {"memory": "8 GB"}}, "jobs.encode.memory is '8 GB'"),
        ({"encode": {"tolerations": ["a b"]}}, "'a b' is not a taint"),
        ({"encode": {"pod_patch": [{"op": "put", "path": "/x"}]}}, "operation 0"),
        ({"encode": {"pod_patch": [{"op": "add", "path": "x", "value": 1}]}}, "operation 0"),
        ({"encode": {"pod_patch": [{"op": "add", "path": "/x"}]}}, "operation 0"),
        ({"cluster": {"lease_s": 60}}, "lease_s=60 must be more than api_outage_s=600"),
        ({"encode": {"grace_s": 1}}, "jobs.encode.grace_s is 1"),
    ],
)
def test_what_cannot_work_is_refused_with_the_fix(jobs: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as fault:
        check_config({"jobs": jobs}, "the test")
    assert said in str(fault.value)


def test_an_image_of_the_cluster_serves_all_stages() -> None:
    jobs: dict[str, object] = {stage: {"executor": "kubernetes"} for stage in STAGES}
    config = check_config({"jobs": {**jobs, "cluster": {"image": "hvkf:1"}}}, "the test")
    assert config.jobs.train.executor == "kubernetes"


def test_ingest_looks_at_videos_where_cache_decodes_them_unless_it_is_told_otherwise() -> None:
    cache = {"executor": "kubernetes", "memory": "16Gi", "workers": 16}
    jobs: dict[str, object] = {"cluster": {"image": "hvkf:1"}, "cache": cache}
    config = check_config({"jobs": jobs}, "the test")
    assert config.jobs.ingest == config.jobs.cache
    config = check_config({"jobs": {**jobs, "ingest": {"memory": "1Gi"}}}, "the test")
    assert config.jobs.ingest.executor == "kubernetes"
    assert (config.jobs.ingest.workers, config.jobs.ingest.memory) == (16, "1Gi")
    assert config.jobs.cache.memory == "16Gi"
    for again in (config.model_dump(mode="json"), config.model_dump(exclude_unset=True)):
        assert check_config(again, "the test").jobs == config.jobs


def test_a_value_of_cache_that_is_wrong_is_told_once() -> None:
    with pytest.raises(ConfigError) as fault:
        check_config({"jobs": {"cache": {"memory": "8 GB"}}}, "the test")
    assert str(fault.value).count("8 GB") == 1


def test_ranks_are_the_gpus_of_all_nodes() -> None:
    assert StageJobs(executor="kubernetes", nodes=2, gpus_per_pod=8, workers=3).num_ranks == 16
    assert StageJobs(executor="kubernetes", nodes=2, workers=3).num_ranks == 6
    assert StageJobs(nodes=2, gpus_per_pod=8, workers=3).num_ranks == 3


def test_what_a_pod_is_comes_from_the_deployed_settings_only() -> None:
    keys = deployed_only_keys()
    for stage in STAGES:
        assert {f"jobs.{stage}.{name}" for name in ("image", "env", "pod_patch")} <= set(keys)
    assert "jobs.cluster.service_account" in keys
    assert "jobs.encode.workers" not in keys
