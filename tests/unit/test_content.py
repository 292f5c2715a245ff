from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from seawall.api.generation.v1 import generation_pb2
from seawall.core.errors import Fatal, Poison, Retryable
from seawall.runtime.content import ContentStore
from seawall.runtime.settings import ContentSettings

DATA = bytes(range(256)) * 300


def reference(uri: str, data: bytes = DATA) -> generation_pb2.ContentRef:
    return generation_pb2.ContentRef(
        uri=uri, sha256=hashlib.sha256(data).digest(), media_type="image/png", size_bytes=len(data)
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "a folder with spaces" / "media"
    folder.mkdir(parents=True)
    (folder / "ok.bin").write_bytes(DATA)
    (tmp_path / "outside.bin").write_bytes(DATA)
    return folder


@pytest.fixture
def store(root: Path) -> ContentStore:
    return ContentStore(ContentSettings(allowed_prefixes=[root.as_uri() + "/"], max_bytes=100_000))


def refusal(store: ContentStore, ref: generation_pb2.ContentRef) -> str:
    with pytest.raises(Poison) as caught:
        store.get(ref)
    assert not ref.uri or ref.uri not in str(caught.value)
    return caught.value.reason


def test_a_file_below_the_prefix_is_read_however_it_is_quoted(store: ContentStore, root: Path) -> None:
    assert store.get(reference((root / "ok.bin").as_uri())) == DATA
    assert store.get(reference(f"file://{root}/ok.bin")) == DATA
    assert store.get(reference((root / "ok.bin").as_uri().replace("ok.bin", "%6fk.bin"))) == DATA


def test_what_is_put_is_read_back_and_putting_again_changes_nothing(store: ContentStore, root: Path) -> None:
    ref = store.put(DATA, "image/png")
    assert (ref.media_type, ref.size_bytes) == ("image/png", len(DATA))
    assert store.get(ref) == DATA
    (stored,) = (path for path in root.rglob("*") if path.name == ref.sha256.hex())
    before = stored.stat().st_mtime_ns
    assert store.put(DATA, "image/png") == ref
    assert stored.stat().st_mtime_ns == before
    assert store.get(store.put(b"", "application/octet-stream")) == b""


@pytest.mark.parametrize(
    "tail",
    [
        "../../outside.bin",
        "%2e%2e/%2e%2e/outside.bin",
        "..%2f..%2foutside.bin",
        "./ok.bin",
        "sub//ok.bin",
        "",
        "ok.bin/",
        "ok.bin%00",
        "a\\b",
    ],
)
def test_a_path_that_is_not_plain_is_refused(store: ContentStore, root: Path, tail: str) -> None:
    assert refusal(store, reference(f"{root.as_uri()}/{tail}")) == "REF_NOT_ALLOWED"


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/hostname",
        "file://host/etc/hostname",
        "/etc/hostname",
        "",
        "s3://bucket/ok.bin",
        "http://127.0.0.1:1/ok.bin",
        "https://127.0.0.1:1/ok.bin",
        "memory:///ok.bin",
    ],
)
def test_a_ref_outside_every_prefix_is_refused(store: ContentStore, uri: str) -> None:
    assert refusal(store, reference(uri)) == "REF_NOT_ALLOWED"


def test_plain_http_is_refused_with_the_reason(store: ContentStore) -> None:
    with pytest.raises(Poison, match="never fetched"):
        store.get(reference("http://127.0.0.1:1/ok.bin"))


def test_a_sibling_folder_with_the_same_beginning_is_refused(store: ContentStore, root: Path) -> None:
    sibling = root.parent / "media-private"
    sibling.mkdir()
    (sibling / "ok.bin").write_bytes(DATA)
    assert refusal(store, reference((sibling / "ok.bin").as_uri())) == "REF_NOT_ALLOWED"


def test_symbolic_links_may_not_leave_the_prefix(store: ContentStore, root: Path, tmp_path: Path) -> None:
    (root / "file-link").symlink_to(tmp_path / "outside.bin")
    (root / "folder-link").symlink_to(tmp_path)
    (root / "inside-link").symlink_to(root / "ok.bin")
    assert refusal(store, reference((root / "file-link").as_uri())) == "REF_NOT_ALLOWED"
    assert refusal(store, reference((root / "folder-link").as_uri() + "/outside.bin")) == "REF_NOT_ALLOWED"
    assert store.get(reference((root / "inside-link").as_uri())) == DATA


def test_a_prefix_that_is_itself_a_link_works(root: Path, tmp_path: Path) -> None:
    (tmp_path / "mount").symlink_to(root)
    store = ContentStore(ContentSettings(allowed_prefixes=[(tmp_path / "mount").as_uri() + "/"]))
    assert store.get(reference((tmp_path / "mount" / "ok.bin").as_uri())) == DATA


def test_folders_and_pipes_are_refused_without_waiting(store: ContentStore, root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    assert refusal(store, reference((root / "pipe").as_uri())) == "REF_NOT_ALLOWED"
    assert refusal(store, reference((root / "folder").as_uri())) == "REF_NOT_ALLOWED"


def test_an_absent_object_is_not_found(store: ContentStore, root: Path) -> None:
    assert refusal(store, reference((root / "absent").as_uri())) == "NOT_FOUND"
    assert refusal(store, reference((root / "ok.bin" / "below-a-file").as_uri())) == "NOT_FOUND"
    assert refusal(store, reference(f"{root.as_uri()}/{'x' * 1000}")) == "NOT_FOUND"


def test_changed_bytes_and_sizes_are_noticed(store: ContentStore, root: Path) -> None:
    uri = (root / "ok.bin").as_uri()
    (root / "ok.bin").write_bytes(DATA[:-1] + b"x")
    assert refusal(store, reference(uri)) == "DIGEST_MISMATCH"
    (root / "ok.bin").write_bytes(DATA + b"x")
    assert refusal(store, reference(uri)) == "DIGEST_MISMATCH"
    (root / "ok.bin").write_bytes(DATA[:-1])
    assert refusal(store, reference(uri)) == "DIGEST_MISMATCH"


def test_a_digest_of_another_length_is_refused(store: ContentStore, root: Path) -> None:
    ref = reference((root / "ok.bin").as_uri())
    ref.sha256 = ref.sha256[:16]
    assert refusal(store, ref) == "BAD_REF"


def test_too_much_is_refused_before_it_is_read(store: ContentStore, root: Path) -> None:
    uri = (root / "big.bin").as_uri()
    with (root / "big.bin").open("wb") as file:
        file.truncate(1 << 40)  # Sparse: reading it would never end.
    ref = reference(uri)
    assert refusal(store, ref) == "TOO_LARGE"
    ref.size_bytes = 1 << 40
    assert refusal(store, ref) == "TOO_LARGE"
    with pytest.raises(Poison, match="TOO_LARGE"):
        store.put(bytes(100_001), "image/png")


def test_an_unreadable_store_is_worth_another_try(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ContentStore(ContentSettings(allowed_prefixes=[root.as_uri() + "/"]))

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(Retryable, match="EIO"):
        store.get(reference((root / "ok.bin").as_uri()))


def test_a_place_that_cannot_be_written_is_worth_another_try(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = ContentStore(ContentSettings(allowed_prefixes=[(tmp_path / "file").as_uri() + "/"]))
    with pytest.raises(Retryable, match="STORE_UNAVAILABLE"):
        store.put(DATA, "image/png")


def test_object_stores_behave_like_files() -> None:
    settings = ContentSettings(allowed_prefixes=["s3://bucket/media/"], max_bytes=100_000)
    store = ContentStore(settings, stores={"s3://bucket/media/": MemoryStore()})
    ref = store.put(DATA, "image/png")
    assert ref.uri.startswith("s3://bucket/media/")
    assert store.get(ref) == DATA
    assert store.put(DATA, "image/png") == ref
    assert refusal(store, reference("s3://bucket/media/absent")) == "NOT_FOUND"
    assert refusal(store, reference("s3://bucket/media/../other/x")) == "REF_NOT_ALLOWED"
    assert refusal(store, reference("s3://other/media/x")) == "REF_NOT_ALLOWED"
    other = reference(ref.uri, DATA[:-1] + b"x")
    assert refusal(store, other) == "DIGEST_MISMATCH"
    longer = reference(ref.uri)
    longer.size_bytes += 1
    assert refusal(store, longer) == "DIGEST_MISMATCH"
    small = ContentStore(
        ContentSettings(allowed_prefixes=["s3://bucket/media/"], max_bytes=100),
        stores={"s3://bucket/media/": store._stores["s3://bucket/media/"]},
    )
    ref.size_bytes = 100
    assert refusal(small, ref) == "TOO_LARGE"


class S3(BaseHTTPRequestHandler):
    """Answers GET as S3 would: the object's name says how."""

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        status = {"ok": 200, "huge": 200, "short": 200, "absent": 404, "forbidden": 403}.get(name, 500)
        length = {"huge": 1 << 40}.get(name, len(DATA))
        self.send_response(status)
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.send_header("Content-Length", str(length if status == 200 else 0))
        self.send_header("Connection", "close")
        self.end_headers()
        if status == 200:
            self.wfile.write(DATA[:1000] if name == "short" else DATA)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def s3() -> Iterator[ContentStore]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), S3)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    settings = ContentSettings.model_validate(
        {
            "allowed_prefixes": ["s3://bucket/media/"],
            "max_bytes": 100_000,
            "timeout_seconds": 2,
            "store_options": {
                "endpoint": f"http://127.0.0.1:{server.server_port}",
                "region": "local",
                "skip_signature": "true",
            },
        }
    )
    yield ContentStore(settings)
    server.shutdown()
    thread.join()
    server.server_close()


def test_s3_answers_become_the_right_errors(s3: ContentStore) -> None:
    assert s3.get(reference("s3://bucket/media/ok")) == DATA
    assert refusal(s3, reference("s3://bucket/media/absent")) == "NOT_FOUND"
    # Refused by its announced length: the body would be a terabyte.
    assert refusal(s3, reference("s3://bucket/media/huge")) == "TOO_LARGE"
    for name in ("forbidden", "broken", "short"):
        with pytest.raises(Retryable, match="STORE_UNAVAILABLE"):
            s3.get(reference(f"s3://bucket/media/{name}"))


def test_options_that_make_no_client_are_fatal_and_not_shown() -> None:
    settings = ContentSettings.model_validate(
        {"allowed_prefixes": ["s3://bucket/media/"], "store_options": {"no_such_option": "hush"}}
    )
    with pytest.raises(Fatal, match="BAD_SETTINGS") as caught:
        ContentStore(settings)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "prefix", ["http://host/", "https://host/", "file://relative/", "s3://bucket", "ftp://x/", "file:///a/../b/"]
)
def test_a_prefix_that_would_allow_too_much_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match=r"prefix|http"):
        ContentSettings(allowed_prefixes=[prefix])
