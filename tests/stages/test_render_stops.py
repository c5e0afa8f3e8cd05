"""SIGTERM to a rendering worker: it ends at once, gives its rows back, and no row pays for it."""

import os
import signal
from pathlib import Path

import pytest

from hvkf.errors import Stopped
from hvkf.model.renderer import Renderer
from hvkf.stages import render
from hvkf.stages.render_claims import last_claim
from hvkf.storage import FolderStore
from tests.stages.render_manifests import config_for, rendered, results, row, write_manifest

pytestmark = pytest.mark.usefixtures("takes_stops")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_stop_amid_a_row_ends_the_worker_and_costs_no_try(
    pairs: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    rows = [row("one"), row("two", seed=1)]
    config = config_for(write_manifest(pairs, rows), speed={"batch_size": batch_size})
    plan = render.plan(config, store)
    steps: list[int] = []
    sample = Renderer.render_batch

    def stopped_at_the_second_step(self: Renderer, *arguments: object, **options: object) -> object:
        on_step = options["on_step"]
        assert callable(on_step)

        def stop(step: int) -> None:
            steps.append(step)
            if len(steps) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            on_step(step)

        return sample(self, *arguments, **{**options, "on_step": stop})  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Renderer, "render_batch", stopped_at_the_second_step)
        with pytest.raises(Stopped):
            render.run(plan, store, plan.parts)
    assert len(steps) == 2, "it went on after it was told to stop"
    claims = [
        last_claim(store, Path(output).stem)[1] for part in plan.parts for output in part.outputs
    ]
    taken = [claim for claim in claims if claim is not None]
    assert len(taken) == batch_size
    assert {(claim.ended, claim.tries) for claim in taken} == {("released", 0)}
    assert [found["state"] for found in results(store, rendered(config, store))] == ["rendered"] * 2


def test_a_stop_that_the_model_turns_into_another_error_is_a_stop(
    pairs: Path, store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_for(write_manifest(pairs, [row("one")]))
    plan = render.plan(config, store)

    def masked(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            raise ValueError("a library's own words") from None

    with monkeypatch.context() as patched:
        patched.setattr(Renderer, "render_batch", masked)
        with pytest.raises(Stopped):
            render.run(plan, store, plan.parts)
    claim = last_claim(store, Path(plan.parts[0].outputs[0]).stem)[1]
    assert claim is not None
    assert (claim.ended, claim.tries) == ("released", 0)
