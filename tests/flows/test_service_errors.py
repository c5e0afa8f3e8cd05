"""Errors of the server's services, read in a log as it grows."""

from pathlib import Path

from flows.service_errors import TOLD_AFTER, ServiceErrors

RECORD = """\
17:47:43.814 | ERROR   | docket.dependencies - ↩ [    40ms] schedule_deployments(){schedule}
Traceback (most recent call last):
  File "prefect/server/services/scheduler.py", line 273, in schedule_deployments
    inserted_runs = await models.deployments._insert_scheduled_flow_runs(
                    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
sqlalchemy.exc.InvalidRequestError: Can't evaluate bulk DML statement
(Background on this error at: https://sqlalche.me/e/20/gkpj)
"""
OTHERS = """\
17:47:44.000 | INFO    | docket.worker - ↩ [    40ms] schedule_deployments(){schedule}
17:47:45.000 | ERROR   | prefect.flow_runs - The user's own error
"""


def test_a_service_that_fails_again_and_again_is_told_once(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.touch()
    errors = ServiceErrors(log)
    told: list[list[str]] = []
    for _ in range(TOLD_AFTER + 2):
        with log.open("a") as file:
            file.write(OTHERS + RECORD)
        errors.new()
        told.append(errors.new())
    found = [sentence for sentences in told for sentence in sentences]
    assert [bool(sentences) for sentences in told] == [False, False, True, False, False]
    (sentence,) = found
    assert "schedule_deployments: sqlalchemy.exc.InvalidRequestError: Can't evaluate" in sentence
    assert str(log) in sentence


def test_a_record_that_is_half_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(RECORD * (TOLD_AFTER - 1))
    errors = ServiceErrors(log)
    assert errors.new() == []
    with log.open("a") as file:
        file.write(RECORD[:-20])
        file.flush()
        assert errors.new() == []
        file.write(RECORD[-20:])
    errors.new()
    (sentence,) = errors.new()
    assert "Can't evaluate bulk DML statement" in sentence
