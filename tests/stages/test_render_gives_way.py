"""A worker ends its part early when somebody more urgent waits, and the rest comes later."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hvkf.errors import GaveWay
from hvkf.jobs import turns
from hvkf.jobs.turns import ORDER_VARIABLE, LocalOrder
from hvkf.stages import render
from hvkf.stages.render_claims import last_claim
from hvkf.stages.render_records import LEDGER
from hvkf.storage import FolderStore
from tests.stages.render_manifests import config_for, rendered, results, row, write_manifest


@pytest.fixture
def urgent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An order in which somebody urgent waits while a normal one has the turn."""
    file = tmp_path / "order.json"
    monkeypatch.setenv(ORDER_VARIABLE, str(file))
    monkeypatch.setattr(turns, "LOOK_EVERY_S", 0.0)
    with (
        LocalOrder(file) as normal,
        normal.turn(1, pytest.fail),
        LocalOrder(file, priority="urgent") as waiting,
    ):
        assert waiting._begin() is not None
        yield file


def test_a_worker_gives_way_after_the_row_at_work(
    pairs: Path, store: FolderStore, urgent: Path
) -> None:
    config = config_for(write_manifest(pairs, [row(str(number), seed=number) for number in (0, 1)]))
    plan = render.plan(config, store)
    with pytest.raises(GaveWay):
        render.run(plan, store, plan.parts)
    assert len(list(store.list(LEDGER))) == 1
    with pytest.raises(GaveWay):
        render.run(plan, store, plan.parts)
    assert len(list(store.list(LEDGER))) == 2
    assert [found["state"] for found in results(store, rendered(config, store))] == ["rendered"] * 2


def test_an_urgent_worker_gives_way_to_none_and_neither_does_one_without_an_order(
    pairs: Path, store: FolderStore, urgent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_manifest(pairs, [row(str(number), seed=number) for number in (0, 1)])
    plan = render.plan(config_for(manifest, priority="urgent"), store)
    render.run(plan, store, plan.parts)
    assert len(list(store.list(LEDGER))) == 2


def test_a_row_is_given_back_amid_it_when_the_urgent_one_has_waited_for_long(
    pairs: Path, store: FolderStore, urgent: Path
) -> None:
    manifest = write_manifest(pairs, [row("one")])
    config = config_for(manifest, urgent_within_s=0.0, steps=3)
    plan = render.plan(config, store)
    with pytest.raises(GaveWay):
        render.run(plan, store, plan.parts)
    assert list(store.list(LEDGER)) == []
    (output,) = plan.parts[0].outputs
    _, claim = last_claim(store, Path(output).stem)
    assert claim is not None
    assert (claim.ended, claim.tries) == ("released", 0)
