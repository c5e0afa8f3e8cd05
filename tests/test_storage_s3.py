"""The workspace in S3 keeps the promises of the one in a folder, on a failing service as well."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvkf import storage_s3
from hvkf.errors import AlreadyExists, BadInput, DiskFull, TryAgain
from hvkf.s3_connection import file_system
from hvkf.storage import open_store
from hvkf.storage_s3 import S3Store
from tests.s3_faults import CONDITIONS, Fault, FaultyS3, Refused, Request, faulty_s3, random_faults
from tests.s3_server import S3Service


@pytest.fixture
def store(s3: S3Service) -> S3Store:
    return S3Store(s3.new_url())


@pytest.fixture
def proxy(s3: S3Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """Put a proxy between this test's stores and the service."""
    with faulty_s3(s3.address) as running:
        s3.use(monkeypatch, running.address)
        yield running


def test_what_was_put_is_read_back(store: S3Store) -> None:
    store.put("a/b.json", b"one")
    store.put("a/b.json", b"two")
    assert store.read("a/b.json") == b"two"
    assert store.exists("a/b.json")
    assert not store.exists("a")
    assert store.stat("a/b.json").size == 3
    assert abs(store.stat("a/b.json").modified_s - time.time()) < 60


def test_an_empty_object_is_read_back(store: S3Store, tmp_path: Path) -> None:
    store.put("empty", b"")
    assert store.read("empty") == b""
    store.download("empty", tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_missing_object_is_a_file_not_found_error(store: S3Store, tmp_path: Path) -> None:
    for look in (store.read, store.stat, lambda path: store.download(path, tmp_path / "file")):
        with pytest.raises(FileNotFoundError):
            look("missing")
    store.delete("missing")
    assert list(store.list("nothing")) == []
    assert list(tmp_path.iterdir()) == []


def test_put_if_replaces_only_what_is_as_expected(store: S3Store) -> None:
    store.put_if("changing", b"first", None)
    with pytest.raises(AlreadyExists):
        store.put_if("changing", b"second", None)
    with pytest.raises(AlreadyExists):
        store.put_if("changing", b"second", b"other")
    store.put_if("changing", b"second", b"first")
    assert store.read("changing") == b"second"
    with pytest.raises(AlreadyExists):
        store.put_if("gone", b"second", b"first")


def test_put_new_writes_once(store: S3Store) -> None:
    store.put_new("once", b"first")
    for data in (b"second", b"first"):
        with pytest.raises(AlreadyExists):
            store.put_new("once", data)
    assert store.read("once") == b"first"


def test_replace_writes_only_what_is_as_it_was_seen(store: S3Store) -> None:
    store.put("history", b"1")
    tag = store.stat("history").tag
    store.replace("history", b"2", tag)
    with pytest.raises(AlreadyExists, match="changed meanwhile"):
        store.replace("history", b"3", tag)
    assert store.read("history") == b"2"


@pytest.mark.parametrize("size", [0, 1, 5 << 20, (5 << 20) + 1, 16 << 20])
def test_a_file_goes_up_and_comes_down(
    store: S3Store, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "CHUNK_BYTES", 5 << 20)  # S3's smallest part
    source = tmp_path / "source"
    source.write_bytes(os.urandom(size))
    store.upload(source, "files/one")
    store.download("files/one", tmp_path / "back" / "one")
    assert (tmp_path / "back" / "one").read_bytes() == source.read_bytes()
    assert store.read("files/one") == source.read_bytes()
    store.take(source, "files/two")
    assert store.read("files/two") == store.read("files/one")
    assert list(store.list("files")) == ["files/one", "files/two"]


def test_a_listing_goes_on_behind_its_first_page(
    store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"many/{number:03d}" for number in range(7)]
    for name in names:
        store.put(name, b"1")
    store.put("many-others/1", b"1")
    send = store._call
    monkeypatch.setattr(
        store, "_call", lambda method, **arguments: send(method, **arguments, MaxKeys=3)
    )
    assert list(store.list("many")) == names


def test_a_workspace_is_opened_again(store: S3Store) -> None:
    for _ in range(2):
        assert open_store(store.url).read("hvkf-workspace") == b"1\n"


def read_in_a_fork(url: str) -> bytes:
    return S3Store(url).read("inherited")


def test_a_forked_process_reads_as_well(store: S3Store) -> None:
    store.put("inherited", b"bytes")
    context = multiprocessing.get_context("fork")
    with context.Pool(1) as pool:
        assert pool.apply_async(read_in_a_fork, (store.url,)).get(30) == b"bytes"


def test_sixty_percent_of_faults_are_ridden_out(
    store: S3Store, proxy: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "CHUNK_BYTES", 5 << 20)
    monkeypatch.setattr(storage_s3, "LONGEST_WAIT_S", 0.5)
    proxy.rule = random_faults(0.6, seed=3)
    big = tmp_path / "big"
    big.write_bytes(os.urandom(12 << 20))
    for number in range(8):
        store.put(f"puts/{number}", bytes([number]) * 1000)
        store.put_new(f"new/{number}", bytes([number]))
        with pytest.raises(AlreadyExists):
            store.put_new(f"new/{number}", b"other")
    store.upload(big, "big")
    store.download("big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    assert list(store.list("puts")) == [f"puts/{number}" for number in range(8)]
    for number in range(8):
        assert store.read(f"puts/{number}") == bytes([number]) * 1000
        assert store.read(f"new/{number}") == bytes([number])
        store.delete(f"puts/{number}")
    assert list(store.list("puts")) == []
    assert proxy.lost_conditional >= 4
    assert len(proxy.counts) == 6, "every kind of fault was met"


def test_a_conditional_put_whose_answer_is_lost_is_known_as_ones_own(
    store: S3Store, proxy: FaultyS3
) -> None:
    faults = iter([Fault.LOST])
    proxy.rule = lambda request: next(faults, None) if request.is_conditional else None
    store.put_new("record", b"mine")
    assert proxy.lost_conditional == 1
    with pytest.raises(AlreadyExists):
        store.put_new("record", b"mine")


def test_a_completed_upload_whose_answer_is_lost_is_found_done(
    store: S3Store, proxy: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "CHUNK_BYTES", 5 << 20)
    # Of a multipart upload only its beginning and its end are POSTs.
    faults = iter([None, Fault.LOST])
    proxy.rule = lambda request: next(faults, None) if request.method == "POST" else None
    big = tmp_path / "big"
    big.write_bytes(os.urandom(6 << 20))
    store.upload(big, "big")
    assert store.read("big") == big.read_bytes()
    assert proxy.counts[Fault.LOST] == 1


def test_bytes_that_change_on_their_way_up_are_sent_again(store: S3Store, proxy: FaultyS3) -> None:
    faults = iter([Fault.FLIPPED, Fault.FLIPPED])
    proxy.rule = lambda request: next(faults, None) if request.method == "PUT" else None
    store.put("file", b"as it was written")
    assert store.read("file") == b"as it was written"
    assert proxy.counts[Fault.FLIPPED] == 2


def test_an_outage_ends_in_one_sentence(store: S3Store, proxy: FaultyS3) -> None:
    patient = S3Store(store.url, patience_s=1.0)
    patient.put("before", b"1")
    proxy.rule = lambda request: Fault.DROPPED
    with pytest.raises(TryAgain, match="check that the S3 service runs and that its address"):
        patient.read("before")


def test_a_wrong_address_is_found_out_soon(
    store: S3Store, s3: S3Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "FIRST_PATIENCE_S", 0.5)
    s3.use(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(TryAgain, match=r"its address is right \(http://127.0.0.1:9\)"):
        open_store(store.url)


def test_a_missing_bucket_is_named(s3: S3Service) -> None:
    for look in (open_store, lambda url: list(S3Store(url).list("folder"))):
        with pytest.raises(BadInput, match=r"There is no bucket 'nowhere'.*create it"):
            look("s3://nowhere/prefix")


@pytest.mark.parametrize(
    ("variable", "code"),
    [
        ("AWS_ACCESS_KEY_ID", "InvalidAccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "SignatureDoesNotMatch"),
    ],
)
def test_wrong_keys_are_said_to_be_wrong(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch, variable: str, code: str
) -> None:
    monkeypatch.setenv(variable, "wrong")
    with pytest.raises(BadInput, match=rf"does not know these AWS keys \({code}\)"):
        open_store(s3.new_url())


def test_missing_keys_are_said_to_be_missing(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(BadInput, match="There are no AWS credentials"):
        open_store(s3.new_url())


def test_a_wrong_clock_is_named(store: S3Store, proxy: FaultyS3) -> None:
    proxy.rule = lambda request: Fault.SKEWED
    with pytest.raises(BadInput, match="The clock of this machine differs"):
        store.read("file")


PASSING = [
    *(Refused(status, "") for status in (408, 425, 429, 500, 502, 503, 504, 509, *range(520, 531))),
    *(Refused(400, code) for code in ("RequestTimeout", "IncompleteBody", "BadDigest")),
    *(
        Refused(503, code)
        for code in ("SlowDown", "ServiceUnavailable", "XMinioServerNotInitialized")
    ),
    *(Refused(409, code) for code in ("OperationAborted", "ConditionalRequestConflict")),
    *(Refused(403, code) for code in ("RequestLimitExceeded", "TooManyRequestsException")),
]


@pytest.mark.parametrize("answer", PASSING, ids=lambda answer: f"{answer.status}-{answer.code}")
def test_what_passes_is_tried_again_for_every_kind_of_request(
    store: S3Store, proxy: FaultyS3, answer: Refused
) -> None:
    store.put("folder/file", b"1")
    refused: dict[str, int] = {}

    def rule(request: Request) -> Refused | None:
        """Refuse the first request of each kind."""
        kind = f"{request.method} {request.path.endswith('file')}"
        refused[kind] = refused.get(kind, 0) + 1
        is_explaining = request.method == "GET" and answer.status in (400, 403)
        return answer if refused[kind] == 1 and not is_explaining else None

    proxy.rule = rule
    assert store.stat("folder/file").size == 1
    assert store.read("folder/file") == b"1"
    store.put("folder/file", b"2")
    assert list(store.list("folder")) == ["folder/file"]
    store.delete("folder/file")
    assert proxy.counts[answer] >= 3


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (Refused(403, "RequestTimeTooSkewed"), BadInput, "The clock of this machine differs"),
        (Refused(400, "ExpiredToken"), BadInput, "have expired"),
        (Refused(403, "InvalidAccessKeyId"), BadInput, "does not know these AWS keys"),
        (Refused(403, "AccessDenied"), BadInput, "Access to s3://.* was refused"),
        (Refused(400, "AuthorizationHeaderMalformed"), BadInput, "another region"),
        (Refused(400, "InvalidBucketName"), BadInput, "names no bucket"),
        (Refused(501, "NotImplemented"), BadInput, "refused a request"),
        (Refused(405, "MethodNotAllowed"), BadInput, "refused a request"),
        (Refused(507, "XMinioStorageFull"), DiskFull, "no room left"),
    ],
    ids=lambda value: value.code if isinstance(value, Refused) else "",
)  # fmt: skip
def test_what_does_not_pass_is_one_sentence_with_its_reason_for_every_kind_of_request(
    store: S3Store, proxy: FaultyS3, answer: Refused, error: type[Exception], said: str
) -> None:
    """Also for HEAD, whose answers have no body and so no reason."""
    store.put("file", b"1")
    proxy.rule = lambda request: answer
    for ask in (store.stat, store.read, lambda path: store.put(path, b""), store.delete):
        with pytest.raises(error, match=said) as caught:
            ask("file")
        assert len(str(caught.value)) < 500


def test_a_head_that_stays_unanswered_ends_in_one_sentence(store: S3Store, proxy: FaultyS3) -> None:
    hurried = S3Store(store.url, patience_s=1.0)
    hurried.put("file", b"1")
    proxy.rule = lambda request: Refused(400, "") if request.method == "HEAD" else None
    with pytest.raises(TryAgain, match="HEAD was answered 400"):
        hurried.stat("file")


@pytest.mark.parametrize(
    "url",
    ["s3://", "s3:///prefix", "s3://a b/x", "s3://Bad_Bucket!/x", "s3://ünï/x", "s3://bucket:8080/x",
     "s3://a\nb/x", "s3://" + "a" * 300 + "/x", "s3://%62/x", "s3://arn:aws:s3:eu-west-1:1:accesspoint/x",
     "s3://key:S3cr3t@bucket/x"],
)  # fmt: skip
def test_a_bucket_with_a_bad_name_is_one_sentence(url: str) -> None:
    with pytest.raises(BadInput, match="write s3://bucket/prefix") as caught:
        open_store(url)
    assert "S3cr3t" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_aws_settings_that_cannot_be_used_are_one_sentence(
    s3: S3Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("AWS_ENDPOINT_URL", "no address"), ("AWS_PROFILE", "unknown-profile")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            file_system.cache_clear()
            with pytest.raises(BadInput, match="check the AWS_"):
                open_store(s3.new_url())
    file_system.cache_clear()


def puts_on_condition(request: Request) -> bool:
    return request.method == "PUT" and bool(request.headers & CONDITIONS)


def test_a_service_that_knows_no_newer_checksums_works(
    store: S3Store, proxy: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "CHUNK_BYTES", 5 << 20)

    def rule(request: Request) -> Refused | None:
        newer = [name for name in request.headers if "checksum" in name or name == "x-amz-trailer"]
        return Refused(501, "NotImplemented") if newer else None

    proxy.rule = rule
    big = tmp_path / "big"
    big.write_bytes(os.urandom(6 << 20))
    store.put("file", b"1")
    store.put_new("new", b"1")
    store.replace("new", b"2", store.stat("new").tag)
    store.upload(big, "big")
    assert store.read("big") == big.read_bytes()
    assert store.read("file") == b"1"
    assert set(proxy.counts) == {None}


def test_a_service_without_conditional_writes_is_one_sentence(
    s3: S3Service, proxy: FaultyS3
) -> None:
    proxy.rule = lambda request: (
        Refused(501, "NotImplemented") if puts_on_condition(request) else None
    )
    with pytest.raises(BadInput, match=r"has no conditional writes \(If-None-Match\)") as caught:
        open_store(s3.new_url())
    assert caught.value.exit_code == 65


def test_a_service_that_ignores_conditions_is_found_before_a_record_is_trusted(
    store: S3Store, s3: S3Service, proxy: FaultyS3
) -> None:
    proxy.rule = lambda request: Fault.UNCONDITIONAL
    with pytest.raises(BadInput, match=r"has no conditional writes \(If-None-Match\)"):
        open_store(s3.new_url())
    with pytest.raises(BadInput, match=r"has no conditional writes \(If-None-Match\)"):
        S3Store(store.url).put_new("record", b"1")
    tag = store.stat("record").tag
    with pytest.raises(BadInput, match=r"has no conditional writes \(If-Match\)"):
        store.replace("record", b"2", tag)


def test_a_service_that_keeps_conditions_is_looked_at_once(store: S3Store, proxy: FaultyS3) -> None:
    for number in range(3):
        store.put_new(f"new/{number}", b"1")
    puts = proxy.counts.total()
    assert puts == 3 + 1
    for number in range(3):
        store.replace("new/0", bytes([number]), store.stat("new/0").tag)
    assert proxy.counts.total() - puts == 2 * 3 + 1
    assert store.read("new/0") == bytes([2])
