"""A job's lines are found in text and JSON logs, in order, and nothing else is."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from manager.cli.log_lines import GUARD_AFTERWARDS, Wanted, collected, read

JOB, VM = "0d3c5a52-1111-4222-8333-444455556666", "9a9a9a9a-1111-4222-8333-444455556666"
NOON = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
WANTED = Wanted(job=JOB, vm=VM, began=NOON, ended=NOON + timedelta(seconds=10))


def text_line(second: float, **facts: object) -> str:
    at = (NOON + timedelta(seconds=second)).isoformat()
    return " ".join(f"{key}={value!r}" for key, value in {"at": at, "level": "info", "event": "x", **facts}.items())


def json_line(second: float, **facts: object) -> str:
    return json.dumps({"at": (NOON + timedelta(seconds=second)).isoformat(), "event": "x", **facts})


def test_lines_of_all_files_come_in_the_order_of_their_times(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(text_line(2, job=JOB, n=2) + "\n" + text_line(4, job=JOB, n=4) + "\n")
    (tmp_path / "b.log").write_text(json_line(3, job=JOB, n=3) + "\n" + json_line(9, job="other", n=9) + "\n")
    (tmp_path / "b.log.1").write_text(json_line(1, job=JOB, n=1) + "\n")
    (tmp_path / "c.txt").write_text(json_line(1, job=JOB, n=0) + "\n")
    assert [int(line["n"]) for line in collected([tmp_path], WANTED)] == [1, 2, 3, 4]
    assert [int(line["n"]) for line in collected([tmp_path / "c.txt"], WANTED)] == [0]


def test_the_guards_lines_are_those_of_the_machine_while_the_job_ran(tmp_path: Path) -> None:
    late = 10 + GUARD_AFTERWARDS.total_seconds()
    lines = [text_line(second, process="guard", vm=VM, n=second) for second in (-1, 0, 10, late, late + 1)]
    lines += [text_line(5, process="host.h1", vm=VM, n=5), text_line(5, process="guard", vm="another", n=6)]
    (tmp_path / "guard.log").write_text("\n".join(lines))
    assert [float(line["n"]) for line in collected([tmp_path], WANTED)] == [0, 10, late]


def test_a_line_is_read_whatever_its_values_hold() -> None:
    hard = {"job": JOB, "reason": 'it\'s "this" = that\nand\ttabs', "count": 3, "none": None, "list": ["a"]}
    line = read(text_line(0, **hard))
    assert line is not None
    assert (line["reason"], line["count"]) == (hard["reason"], "3")
    assert read(json_line(0, **hard)) == {"at": NOON.isoformat(), "event": "x", **hard}


def test_what_is_no_line_of_ours_is_left_out(tmp_path: Path) -> None:
    strange = [
        f"Traceback {JOB}",
        "{" + JOB,
        f"at='noon' event='x' job='{JOB}'",
        f"event='x' job='{JOB}'",
        "\x00" + JOB,
    ]
    strange += [f"at='2026-11-26T12:00:00' event='no zone' job='{JOB}'", f"at='2026-11-26T12:00:00Z' job='{JOB}'"]
    (tmp_path / "a.log").write_bytes("\n".join(strange).encode() + b"\xff" + JOB.encode())
    assert collected([tmp_path], WANTED) == []
