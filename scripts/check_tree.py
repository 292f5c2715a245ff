"""What no linter knows: shell scripts parse, no address or machine path is committed, links in documents resolve."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

# An index belongs in the environment of whoever installs: one clone must work behind any mirror.
_INDEX = re.compile(
    r"(?:index-url|find-links)[=\s]+\S*://|pypi\.org/simple|files\.pythonhosted|repo1?\.maven|artifactor[y]"
)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_BINARY = frozenset({".binpb", ".png", ".jpg", ".webp", ".gif", ".onnx", ".npz"})


def tracked(root: Path) -> list[Path]:
    """Every file git would commit: tracked, or new and not ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    return sorted({root / name for name in listing.split("\0") if name and (root / name).is_file()})


def machine_paths(root: Path) -> re.Pattern[str]:
    """Folders that no file may name: anybody's home, the clone's and, but in CI, its parent and this home."""
    folders = {root} if os.environ.get("CI") else {root, root.parent, Path.home()}
    names = [re.escape(f"{folder}/") for folder in sorted(folders) if folder not in (Path("/"), Path("/tmp"))]  # noqa: S108
    return re.compile("|".join([r"(?<![\w./-])/(?:root|home/\w+|Users/\w+)/", *(rf"(?<![\w./-]){n}" for n in names)]))


def shell_problems(path: Path, text: str) -> Iterator[str]:
    """A shell script that does not parse or cannot be executed."""
    if not text.startswith("#!/usr/bin/env bash"):
        return
    if not os.access(path, os.X_OK):
        yield "is not executable: chmod +x"
    parsed = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    if parsed.returncode:
        yield f"does not parse: {parsed.stderr.strip()}"


def address_problems(text: str, folders: re.Pattern[str], *, lock: bool) -> Iterator[str]:
    """A package index, or a path that exists on one machine only; in the lock file, any address."""
    for number, line in enumerate(text.splitlines(), start=1):
        if _INDEX.search(line) or (lock and "://" in line):
            yield f"line {number} names a package index: leave it to the environment"
        if folders.search(line):
            yield f"line {number} names a path of one machine"


def anchors(markdown: str) -> set[str]:
    """The anchors GitHub gives a document's headings."""
    headings = re.findall(r"^#+\s+(.+?)\s*$", _FENCE.sub("", markdown), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def link_problems(path: Path, text: str) -> Iterator[str]:
    """A relative link whose file or heading does not exist."""
    for match in _LINK.finditer(_FENCE.sub("", text)):
        target = match.group(1) or match.group(2)
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = path.parent / unquote(name) if name else path
        if not linked.exists():
            yield f"links to {target}, which does not exist"
        elif anchor and linked.suffix == ".md" and anchor not in anchors(linked.read_text("utf-8")):
            yield f"links to {target}, but there is no such heading"


def problems(root: Path) -> Iterator[str]:
    """Every problem of the tree, "path: what is wrong"."""
    folders = machine_paths(root)
    for path in tracked(root):
        if path.suffix in _BINARY:
            continue
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            yield f"{path.relative_to(root)}: is not UTF-8 text; add its suffix to _BINARY if it is meant to be binary"
            continue
        found = [*shell_problems(path, text), *address_problems(text, folders, lock=path.suffix == ".lock")]
        if path.suffix == ".md":
            found += link_problems(path, text)
        yield from (f"{path.relative_to(root)}: {problem}" for problem in found)


def main() -> int:
    found = list(problems(Path(__file__).resolve().parent.parent))
    print("\n".join(found) or "nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
