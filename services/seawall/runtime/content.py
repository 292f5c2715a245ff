"""The content store: media by reference, read only from where the operator allows, and checked before use.

A `ContentRef` is trusted for nothing: its uri must lie below an allowed prefix (symbolic links resolved), its size is
checked before a byte is read and again while reading, and the bytes must have its SHA-256. Plain http(s) is never
fetched: an event's sender could make the service call any address.

Errors name the field and the mend, never the uri: a path may say more than an id should.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import unquote

import obstore
from obstore import exceptions as store_errors
from obstore.store import ObjectStore, from_url

from seawall.api.generation.v1 import generation_pb2
from seawall.core.errors import Fatal, Poison, Retryable
from seawall.runtime.settings import ContentSettings

_FILE = "file://"
#: A key's segments: none empty, none "." or "..", no control characters or backslashes.
_KEY = re.compile(r"(?!\.{1,2}(?:/|\Z))[^/\\\x00-\x1f\x7f]+(?:/(?!\.{1,2}(?:/|\Z))[^/\\\x00-\x1f\x7f]+)*\Z")
_CHUNK = 1024 * 1024


class _Folder(NamedTuple):
    """A local prefix: as it is written, and where it really is. Both end in a slash."""

    written: str
    real: str


class ContentStore:
    """Reads and writes media. Safe for threads; every call blocks.

    Args:
        stores: object stores by allowed prefix, instead of those that the prefix and `store_options` describe.

    Raises Fatal("BAD_SETTINGS") if an object store's options do not make a client.
    """

    def __init__(self, settings: ContentSettings, stores: Mapping[str, ObjectStore] | None = None) -> None:
        self._max_bytes = settings.max_bytes
        self._write_prefix = settings.write_prefix or settings.allowed_prefixes[0]
        self._folders: list[_Folder] = []
        self._stores: dict[str, ObjectStore] = {}
        for prefix in settings.allowed_prefixes:
            if prefix.startswith(_FILE):
                written = _local_path(prefix)
                self._folders.append(_Folder(written, os.path.join(os.path.realpath(written), "")))
            else:
                self._stores[prefix] = (stores or {}).get(prefix) or _object_store(prefix, settings)

    def get(self, ref: generation_pb2.ContentRef) -> bytes:
        """The bytes that ``ref`` names, at most `ContentSettings.max_bytes` of them.

        Raises:
            Poison: REF_NOT_ALLOWED, TOO_LARGE, NOT_FOUND, DIGEST_MISMATCH (size or SHA-256 differ) or BAD_REF.
            Retryable: STORE_UNAVAILABLE.
        """
        uri, size, digest = ref.uri, ref.size_bytes, ref.sha256
        if len(digest) != 32:
            raise Poison("BAD_REF", f"content.sha256 has {len(digest)} bytes: send the 32 bytes of SHA-256")
        if size > self._max_bytes:
            raise self._too_large("content.size_bytes says", size)
        data = self._read_file(uri, size) if uri.startswith(_FILE) else self._read_object(uri, size)
        if hashlib.sha256(data).digest() != digest:
            raise Poison("DIGEST_MISMATCH", "content.sha256 differs from the stored bytes: the object was changed")
        return data

    def put(self, data: bytes, media_type: str) -> generation_pb2.ContentRef:
        """Store ``data`` under its own SHA-256 and return the reference; putting the same bytes again changes nothing.

        Raises Poison("TOO_LARGE") or Retryable("STORE_UNAVAILABLE").
        """
        if len(data) > self._max_bytes:
            raise self._too_large("content has", len(data))
        digest = hashlib.sha256(data)
        name = digest.hexdigest()
        key = f"{name[:2]}/{name}"
        if self._write_prefix.startswith(_FILE):
            _write_file(os.path.join(_local_path(self._write_prefix), key), data)
        else:
            prefix, root = self._store_of(self._write_prefix + key)
            try:
                obstore.put(root, self._write_prefix.removeprefix(prefix) + key, data)
            except store_errors.BaseError as error:
                raise _unavailable(error) from None
        return generation_pb2.ContentRef(
            uri=self._write_prefix + key, sha256=digest.digest(), media_type=media_type, size_bytes=len(data)
        )

    def _read_file(self, uri: str, size: int) -> bytes:
        path = _local_path(uri)
        folder = next((folder for folder in self._folders if path.startswith(folder.written)), None)
        if folder is None:
            raise _not_allowed("lies below none of content.allowed_prefixes")
        if not _KEY.match(path[len(folder.written) :]):
            raise _not_allowed("must be a plain path without empty, '.' or '..' segments")
        try:
            # Opened without waiting: a named pipe would hold this thread until somebody writes to it.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                # The path of what was opened, not of what a second look would find.
                if not _real_path(descriptor, path).startswith(folder.real):
                    raise _not_allowed("leaves its prefix through a symbolic link")
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    raise _not_allowed("is not a regular file")
                self._check_size(size, status.st_size)
                return _read_exactly(descriptor, size)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                raise Poison("NOT_FOUND", "content.uri names no object: store it before the event is sent") from None
            name = errno.errorcode.get(error.errno or 0, "unknown")
            raise Retryable("STORE_UNAVAILABLE", f"content.uri cannot be read ({name})") from None

    def _read_object(self, uri: str, size: int) -> bytes:
        prefix, store = self._store_of(uri)
        key = uri[len(prefix) :]
        if not _KEY.match(key):
            raise _not_allowed("must be a plain key without empty, '.' or '..' segments")
        data = bytearray()
        try:
            result = obstore.get(store, key)
            self._check_size(size, result.meta["size"])
            for chunk in result.stream(min_chunk_size=_CHUNK):
                data += chunk
                if len(data) > size:
                    # The store sent more than it announced.
                    raise _size_differs(size)
        except (store_errors.NotFoundError, FileNotFoundError):
            raise Poison("NOT_FOUND", "content.uri names no object: store it before the event is sent") from None
        except store_errors.InvalidPathError:
            raise _not_allowed("is no key that the store accepts") from None
        except (store_errors.BaseError, OSError) as error:
            raise _unavailable(error) from None
        if len(data) != size:
            raise Retryable("STORE_UNAVAILABLE", "the object store ended its answer early")
        return bytes(data)

    def _store_of(self, uri: str) -> tuple[str, ObjectStore]:
        for prefix, store in self._stores.items():
            if uri.startswith(prefix):
                return prefix, store
        if uri.startswith(("http://", "https://")):
            raise _not_allowed("is plain http(s), which is never fetched: copy the media to an allowed store")
        raise _not_allowed("lies below none of content.allowed_prefixes")

    def _check_size(self, claimed: int, stored: int) -> None:
        if stored > self._max_bytes:
            raise self._too_large("the stored object has", stored)
        if stored != claimed:
            raise _size_differs(claimed)

    def _too_large(self, what: str, size: int) -> Poison:
        return Poison("TOO_LARGE", f"{what} {size} bytes, above content.max_bytes ({self._max_bytes})")


def _not_allowed(why: str) -> Poison:
    return Poison("REF_NOT_ALLOWED", f"content.uri {why}")


def _size_differs(claimed: int) -> Poison:
    return Poison("DIGEST_MISMATCH", f"content.size_bytes says {claimed}, the stored object has another size")


def _unavailable(error: Exception) -> Retryable:
    return Retryable("STORE_UNAVAILABLE", f"the object store did not answer as it should ({type(error).__name__})")


def _local_path(uri: str) -> str:
    path = uri[len(_FILE) :]
    return unquote(path, errors="surrogateescape") if "%" in path else path


def _real_path(descriptor: int, path: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        # No /proc here: resolve by name, and make sure that it is the file we hold.
        real = os.path.realpath(path, strict=True)
        if not os.path.samestat(os.stat(real), os.fstat(descriptor)):
            raise _not_allowed("changed while it was read") from None
        return real


def _read_exactly(descriptor: int, size: int) -> bytes:
    # One byte more than promised tells a file that grew from one that did not.
    data = os.read(descriptor, size + 1)
    while 0 < len(data) < size:
        more = os.read(descriptor, size + 1 - len(data))
        if not more:
            break
        data += more
    if len(data) != size:
        raise _size_differs(size)
    return data


def _write_file(path: str, data: bytes) -> None:
    try:
        if os.path.exists(path) and os.path.getsize(path) == len(data):
            return
        folder = os.path.dirname(path)
        os.makedirs(folder, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".put.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            # Readers see the whole object or none.
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "unknown")
        raise Retryable("STORE_UNAVAILABLE", f"content cannot be written ({name})") from None


def _object_store(prefix: str, settings: ContentSettings) -> ObjectStore:
    # The options are the operator's own words to the store's client; their types are checked by it.
    options: Any = {name: value.get_secret_value() for name, value in settings.store_options.items()}
    timeout = timedelta(seconds=settings.timeout_seconds)
    # A store on plain http is the operator's own choice of endpoint, as in a test or a closed network.
    plain = any("endpoint" in name and value.startswith("http://") for name, value in options.items())
    try:
        return from_url(
            prefix,
            config=options or None,
            client_options={"timeout": timeout, "connect_timeout": timeout, "allow_http": plain},
            # The relay retries within the event's budget; the store's own default would take three minutes.
            retry_config={"max_retries": 2, "retry_timeout": timeout},
        )
    except (store_errors.BaseError, ValueError, TypeError) as error:
        raise Fatal(
            "BAD_SETTINGS",
            f"content.allowed_prefixes: {prefix} makes no object store with content.store_options "
            f"({type(error).__name__}): check the options' names",
        ) from None
