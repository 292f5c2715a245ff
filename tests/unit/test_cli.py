"""The command line: exit statuses, one-line errors, and what a room's process imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from seawall.api.decision.v1 import decision_pb2
from seawall.cli import run, submit, terminal
from seawall.cli.demo import _chosen
from seawall.core.errors import Fatal
from seawall.local.mesh import BESIDE, ROOMS, running
from seawall.local.supervisor import State, Status


def seawall(*arguments: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SEAWALL_")}
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, "-m", "seawall.cli", *arguments],
        env={**clean, "PYTHONPATH": paths, "SEAWALL_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", [["why", "g-1"], ["submit", "--prompt", "a fox"], ["topics", "check"]])
def test_without_a_mesh_every_command_says_how_to_get_one(command: list[str], tmp_path: Path) -> None:
    done = seawall(*command, home=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: NO_MESH: no mesh runs on {tmp_path}: start one with `seawall up`, "
        "or set SEAWALL_KAFKA__BOOTSTRAP_SERVERS"
    ]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["submit"], "NOTHING_TO_SCAN: nothing to send: give --prompt, --image or --input-image"),
        (["submit", "--image", "/nonexistent.png"], "UNREADABLE_FILE: /nonexistent.png: No such file or directory"),
        (["why", "not an id"], "BAD_HANDLE: give a generation's id"),
        (["demo", "--only", "nonsense"], "NO_SUCH_CATEGORY: there is no category 'nonsense': one of across-turns, "),
    ],
)
def test_errors_are_one_line_with_the_mend(command: list[str], expected: str, tmp_path: Path) -> None:
    done = seawall(*command, home=tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {expected}")


@pytest.mark.parametrize("command", [["run", "kitchen"], ["models", "install", "other"], ["nonsense"], ["why"]])
def test_wrong_usage_is_status_2(command: list[str], tmp_path: Path) -> None:
    done = seawall(*command, home=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_help_names_every_command(tmp_path: Path) -> None:
    done = seawall("--help", home=tmp_path)
    assert done.returncode == 0
    for command in ("up", "demo", "submit", "why", "run", "topics", "models"):
        assert f"  {command} " in done.stdout, command


def test_a_broker_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    done = seawall("why", "g-1", home=tmp_path, SEAWALL_KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:9")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: BROKER_UNAVAILABLE: ")
    assert "kafka.bootstrap_servers" in line


def test_a_room_with_bad_settings_ends_with_one_line(tmp_path: Path) -> None:
    done = seawall("run", "aggregator", home=tmp_path, SEAWALL_JOIN__MAX_OPEN="none")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: BAD_SETTINGS: settings of aggregator: join.max_open: ")


def test_a_room_that_is_no_model_room_imports_no_model_runtime(tmp_path: Path) -> None:
    # Started as the supervisor starts it, and ended by a policy that is not there.
    script = """
import json, sys
sys.argv = ["seawall", "run", "aggregator"]
from seawall.cli import main
try:
    main()
except SystemExit:
    print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "SEAWALL_HOME": str(tmp_path),
            "SEAWALL_POLICY": str(tmp_path / "absent.yaml"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "BAD_POLICY" in done.stderr
    modules = set(json.loads(done.stdout))
    assert "cel_expr_python" in modules
    assert not modules & {"onnxruntime", "numba", "numpy", "PIL", "re2", "skimage", "jgo", "typer"}


def test_rooms_of_the_mesh_are_rooms_that_can_be_run() -> None:
    # These may be started beside a mesh; no decision waits for them.
    assert set(run.ROOMS) - set(BESIDE) == set(ROOMS)


def test_a_relay_runs_with_its_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[object] = []
    modules = {
        "seawall.classification.stage": SimpleNamespace(STAGE="the stage"),
        "seawall.relay.run": SimpleNamespace(run=ran.append),
    }
    monkeypatch.setattr(run, "import_module", modules.__getitem__)
    run.run("classification.relay")
    assert ran == ["the stage"]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr(run, "import_module", missing)
    with pytest.raises(Fatal, match=r"classification needs the package onnxruntime: pip install 'seawall\[classif"):
        run.run("classification")


def test_every_outcome_has_an_exit_status_of_its_own() -> None:
    outcomes = set(decision_pb2.Outcome.values()) - {decision_pb2.OUTCOME_UNSPECIFIED}
    assert set(submit.EXIT_STATUS) == outcomes
    statuses = [*submit.EXIT_STATUS.values(), submit.EXIT_NO_DECISION]
    assert len(set(statuses)) == len(statuses)
    # 1 and 2 are errors and wrong usage; 126 and above are the shell's.
    assert submit.EXIT_STATUS[decision_pb2.OUTCOME_ALLOW] == 0
    assert all(status == 0 or 2 < status < 126 for status in statuses)


def test_a_mesh_that_ended_without_a_word_is_not_running(tmp_path: Path) -> None:
    assert running(tmp_path) is None
    (tmp_path / "run").mkdir()
    announced = tmp_path / "run" / "mesh.json"
    ended = subprocess.Popen([sys.executable, "-S", "-c", ""])
    ended.wait()
    announced.write_text(json.dumps({"pid": ended.pid, "bootstrap_servers": "127.0.0.1:1", "rooms": []}))
    assert running(tmp_path) is None
    announced.write_text(json.dumps({"pid": os.getpid(), "bootstrap_servers": "127.0.0.1:1", "rooms": ["aggregator"]}))
    found = running(tmp_path)
    assert found is not None
    assert found.bootstrap_servers == "127.0.0.1:1"
    announced.write_text("{")
    assert running(tmp_path) is None


def test_one_category_can_be_chosen() -> None:
    assert {sample.category for sample in _chosen(["duplicate"])} == {"duplicate"}
    assert len(_chosen([])) > 300


def test_status_lines_say_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = terminal.StatusLines(terminal.console())
    lines(Status("aggregator", State.WAITING, None, 2, "ended with SIGKILL; restart in 0 s"))
    lines(Status("aggregator", State.STOPPED, None, 2, ""))
    (line,) = capsys.readouterr().out.splitlines()
    assert " ".join(line.split()) == "aggregator waiting restart 2 ended with SIGKILL; restart in 0 s"
