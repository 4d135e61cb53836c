"""What is kept is what stands on the page, and only between its marks."""

import pytest

from tests.bench.__main__ import PAGE
from tests.bench.compare import kept
from tests.bench.published import BEGIN, END, published, with_block
from tests.bench.row import Row, Target

MACHINE = {"at": "2026-01-01 00:00 UTC", "load_at_start": (0.5, 0, 0), "load_at_end": (1.25, 0, 0)}
ROWS = (
    Row(
        key="fleet/x",
        unit="/s",
        ours=[5, 5],
        floor=[10, 10],
        targets=(Target(measure="ratio", limit=0.6, at_least=True),),
        simulated=True,
        steps={"a step": 3.0},
    ),
    Row(key="idle/x", unit="MiB", ours=[70, 80], notes=["with a guest"]),
    Row(key="absent", why_not="no tool"),
)


def test_a_row_says_all_of_it() -> None:
    text = published(kept(ROWS, MACHINE))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert (
        "| `fleet/x` (simulated) | 2 | 5, 5 /s | 10 /s | 0.50 [0.50, 0.50] | -5 /s | ratio ≥ 0.6: missed |"
        " 2026-01-01 00:00 UTC, 0.5 to 1.2 |" in lines
    )
    assert "| `idle/x` | 2 | 75, 79.5 MiB | – | – | – | reported | 2026-01-01 00:00 UTC, 0.5 to 1.2 |" in lines
    assert "- `fleet/x`: a step 3." in text
    assert "- `idle/x`: with a guest." in text
    assert "absent" not in text


def test_the_rest_of_the_page_stays() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = with_block(page, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert with_block(once, "new") == once
    with pytest.raises(ValueError, match="once each"):
        with_block("no marks", "new")


def test_the_page_has_the_marks() -> None:
    with_block(PAGE.read_text(), "anything")
