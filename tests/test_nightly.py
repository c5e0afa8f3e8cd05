"""Nights on a simulated clock: new data or none, better or worse, two at once, crash and budget."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hvkf.catalog import commits_folder
from hvkf.config import Config
from hvkf.errors import BadInput, HvkfError, TryAgain, WorkStopped
from hvkf.ledger import put_commit
from hvkf.nightly import (
    STAGES,
    Decision,
    Night,
    NightRecord,
    NightRefused,
    Outcome,
    OutOfBudget,
    nights,
)
from hvkf.records import CatalogCommit, Summary
from hvkf.storage import FolderStore

HOUR = 3600.0
NEW_DATA = "datasets/default/catalog-{}.parquet"


class Clock:
    """Time that passes only when something is done."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


class House:
    """Stages that take time and leave what nights read, and a gate that says what it is told."""

    def __init__(self, store: FolderStore, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.data = 1
        self.better = True
        self.used: list[str] = []  # the registry's history
        self.ran: list[tuple[str, str | None]] = []
        self.lora_weights: str | None = None
        self.hours = {"encode": 0.5, "train": 2.0, "evaluate": 0.5}
        self.fault: dict[str, BaseException] = {}
        self.during: dict[str, Callable[[], None]] = {}

    def check(self, config: Config) -> None:
        if "check" in self.fault:
            raise self.fault.pop("check")

    def run(self, stage: str, config: Config, timeout_s: float | None) -> Summary:
        self.ran.append((stage, config.experiment.run_id))
        if stage in self.during:
            self.during[stage]()
        needed_s = self.hours.get(stage, 0.0) * HOUR
        if timeout_s is not None and needed_s > timeout_s:
            self.clock.now_s += timeout_s
            raise OutOfBudget("time is up")
        self.clock.now_s += needed_s
        if stage in self.fault:
            raise self.fault.pop(stage)
        if stage == "ingest":
            self._ingest()
        if stage == "train":
            self.lora_weights = config.network.lora_weights
        return Summary(stage=stage, result=f"{stage}/result.json", reused=False, text=stage)

    def _ingest(self) -> None:
        catalog = CatalogCommit(
            dataset="default",
            number=self.data,
            catalog=NEW_DATA.format(self.data),
            videos="v",
            num_clips=self.data,
            num_failed=0,
        )
        put_commit(self.store, commits_folder("default"), catalog)

    def in_use(self, config: Config) -> str | None:
        return f"registry:nightly@{len(self.used)}" if self.used else None

    def judge(self, config: Config, evaluation: Summary) -> Decision:
        if self.better:
            self.used.append(str(config.experiment.run_id))
        return Decision(self.better, "gain 0.4 dB [0.1, 0.7]" if self.better else "no gain")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.fixture
def house(store: FolderStore, clock: Clock) -> House:
    return House(store, clock)


def settings(**nightly: object) -> Config:
    return Config.model_validate({"nightly": {"max_gpu_hours": 10, "lease_minutes": 10, **nightly}})


def night(house: House, owner: str = "a", config: Config | None = None) -> NightRecord:
    """Begin and run a night, a day after the last."""
    house.clock.now_s += 24 * HOUR
    return Night(config or settings(), house.store, owner, house.clock).run(house)


def test_a_better_lora_is_promoted_and_the_next_trains_on_from_it(house: House) -> None:
    first = night(house)
    assert (first.outcome, first.began_from) == (Outcome.PROMOTED, "none")
    assert first.reason == "gain 0.4 dB [0.1, 0.7]"
    assert first.gpu_seconds == 3 * HOUR
    assert house.lora_weights is None
    house.data = 2
    second = night(house)
    assert (second.outcome, second.began_from) == (Outcome.PROMOTED, "registry:nightly@1")
    assert house.lora_weights == "registry:nightly@1"
    assert second.run_id != first.run_id


def test_what_a_later_stage_would_refuse_ends_the_night_before_the_first(house: House) -> None:
    house.fault["check"] = BadInput("Nothing was begun. There is no package adam8bit.")
    with pytest.raises(BadInput, match="Nothing was begun"):
        night(house)
    assert not house.ran
    (record,) = nights(house.store, "nightly")
    assert record.outcome == Outcome.FAILED
    assert record.reason == "Nothing was begun. There is no package adam8bit."
    assert night(house).outcome == Outcome.PROMOTED, "mended"


def test_no_new_data_is_skipped_with_the_reason(house: House) -> None:
    first = night(house)
    house.ran.clear()
    second = night(house)
    assert second.outcome == Outcome.SKIPPED
    assert f"those of night 1 ({first.started_at}), which trained {first.run_id}" in second.reason
    assert [stage for stage, _ in house.ran] == ["ingest"]
    assert second.gpu_seconds == 0
    assert night(house).outcome == Outcome.SKIPPED


def test_new_settings_are_work_but_more_workers_are_not(house: House) -> None:
    night(house)
    other = {"hparams": {"learning_rate": 1e-5}, "nightly": {"max_gpu_hours": 10}}
    more = {"jobs": {"encode": {"workers": 8}}, "nightly": {"max_gpu_hours": 100}}
    assert night(house, config=Config.model_validate(more)).outcome == Outcome.SKIPPED
    assert night(house, config=Config.model_validate(other)).outcome == Outcome.PROMOTED


def test_a_worse_lora_is_kept_out_of_use_and_not_trained_again(house: House) -> None:
    house.better = False
    assert night(house).outcome == Outcome.KEPT
    assert house.used == []
    assert night(house).outcome == Outcome.SKIPPED
    house.data, house.better = 2, True
    assert night(house).outcome == Outcome.PROMOTED


def test_from_scratch_ignores_what_is_in_use(house: House) -> None:
    night(house)
    house.data = 2
    record = night(house, config=settings(begin_from="scratch"))
    assert (record.outcome, record.began_from) == (Outcome.PROMOTED, "none")
    assert house.lora_weights is None


def test_after_a_roll_back_nothing_is_promoted_again_until_there_is_new_data(house: House) -> None:
    night(house)
    house.data = 2
    night(house)
    house.used.pop()
    assert night(house).outcome == Outcome.SKIPPED
    assert len(house.used) == 1
    house.data = 3
    assert night(house).began_from == "registry:nightly@1"


def test_the_second_of_two_at_once_is_refused(house: House) -> None:
    def another_begins() -> None:
        with pytest.raises(NightRefused, match=r"Night 1 of 'nightly' is running since .* by a\)"):
            Night(settings(), house.store, "b", house.clock)

    house.during["train"] = another_begins
    assert night(house).outcome == Outcome.PROMOTED
    assert len(nights(house.store, "nightly")) == 1


def test_of_two_that_begin_in_the_same_moment_one_wins(
    house: House, store: FolderStore, clock: Clock
) -> None:
    class Late(FolderStore):
        """Another night begins between the look at what there is and the put."""

        def put_new(self, path: str, data: bytes) -> None:
            Night(settings(), store, "b", clock)
            super().put_new(path, data)

    with pytest.raises(NightRefused, match="begun by b"):
        Night(settings(), Late(store.root), "a", clock)


@pytest.mark.parametrize("stage", ["ingest", *STAGES])
def test_a_killed_process_leaves_the_night_to_its_own_retry(house: House, stage: str) -> None:
    """A kill writes nothing: the lease is what remains, and the run id leads to the same work."""
    house.clock.now_s += 24 * HOUR
    config = settings(lease_minutes=600)
    killed = Night(config, house.store, "a", house.clock)
    killed._end = lambda outcome, reason: killed.record  # type: ignore[method-assign]
    house.fault[stage] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        killed.run(house)
    with pytest.raises(NightRefused):
        Night(config, house.store, "b", house.clock)
    record = Night(config, house.store, "a", house.clock).run(house)
    assert (record.outcome, record.number) == (Outcome.PROMOTED, 1)
    assert len({run for name, run in house.ran if name in STAGES}) == 1
    assert record.gpu_seconds >= 3 * HOUR


@pytest.mark.parametrize("stage", ["ingest", *STAGES])
def test_a_failed_stage_is_told_and_the_next_night_goes_on_with_the_same_run(
    house: House, stage: str
) -> None:
    house.fault[stage] = TryAgain(f"{stage} lost a peer")
    with pytest.raises(TryAgain):
        night(house)
    assert nights(house.store, "nightly")[0].outcome == Outcome.FAILED
    assert nights(house.store, "nightly")[0].reason == f"{stage} lost a peer"
    assert night(house, "b").outcome == Outcome.PROMOTED
    assert len({run for name, run in house.ran if name in STAGES}) == 1


def test_a_silent_night_is_over_when_its_lease_is(house: House, clock: Clock) -> None:
    silent = Night(settings(), house.store, "a", clock)
    clock.now_s += 11 * 60
    assert Night(settings(), house.store, "b", clock).record.number == 2
    with pytest.raises(WorkStopped, match=r"lease_minutes=10, and night 2 began"):
        silent.renew()


def test_a_renewed_lease_lasts(house: House, clock: Clock) -> None:
    running = Night(settings(), house.store, "a", clock)
    for _ in range(10):
        clock.now_s += 5 * 60
        running.renew()
    with pytest.raises(NightRefused):
        Night(settings(), house.store, "b", clock)


def test_the_budget_stops_a_night_cleanly_and_the_next_goes_on(house: House) -> None:
    house.hours["train"] = 8.0
    first = night(house, config=settings(max_gpu_hours=4))
    assert first.outcome == Outcome.STOPPED
    assert "max_gpu_hours=4 is spent in train (4.00 GPU hours)" in first.reason
    assert house.used == []
    house.hours["train"] = 1.0  # what is left after the checkpoint
    second = night(house, config=settings(max_gpu_hours=4))
    assert (second.outcome, second.run_id) == (Outcome.PROMOTED, first.run_id)


def test_a_budget_counts_every_gpu(house: House) -> None:
    jobs = {"train": {"workers": 4}, "encode": {"workers": 2}}
    config = Config.model_validate({"jobs": jobs, "nightly": {"max_gpu_hours": 10}})
    assert night(house, config=config).gpu_seconds == (0.5 * 2 + 2.0 * 4 + 0.5) * HOUR


def test_a_cancelled_night_frees_its_place(house: House) -> None:
    class TerminationSignal(BaseException):
        pass

    house.fault["train"] = TerminationSignal("cancelled")
    with pytest.raises(TerminationSignal):
        night(house)
    (record,) = nights(house.store, "nightly")
    assert (record.outcome, record.reason) == (
        Outcome.STOPPED,
        "ended by TerminationSignal: cancelled",
    )
    assert night(house, "b").outcome == Outcome.PROMOTED


def test_any_fault_of_the_gate_fails_the_night(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(config: Config, evaluation: Summary) -> Decision:
        raise HvkfError("fewer than 8 pairs: no verdict")

    monkeypatch.setattr(house, "judge", broken)
    with pytest.raises(HvkfError, match="no verdict"):
        night(house)
    assert nights(house.store, "nightly")[0].outcome == Outcome.FAILED
