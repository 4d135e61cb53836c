"""What the frozen window's rows say of pairs: ours, the floor's, and the guest's word against the receipt."""

from tests.bench.pairs import Pair, Taken
from tests.bench.window import rows_of


def taken(*, held: float, gap: float) -> Taken:
    return Taken(latency=200, window=held + 10, held=held, gap=gap, steps={"freeze": 10, "at pivoting": 50})


def test_a_guest_that_wrote_while_it_was_held_is_told() -> None:
    bare = taken(held=20, gap=35)
    honest, wrong = taken(held=22, gap=40), taken(held=50, gap=40)
    window, held, gap = rows_of(1, "writer", [Pair(ours=honest, bare=bare), Pair(ours=wrong, bare=bare)])
    assert (window.key, list(window.ours), list(window.floor)) == ("window/1-disk-writer", [32, 60], [30, 30])
    assert window.steps == {"freeze": 10, "bare freeze": 10, "bare at pivoting": 50}
    assert list(held.ours) == [22, 50]
    assert list(gap.ours) == [40, 40]
    assert "it wrote while it was held in 1 of 2" in gap.notes[0]
    assert "beyond the window 8 ms, beyond the bare one 5 ms" in gap.notes[0]


def test_an_idle_guest_has_no_word_of_its_own() -> None:
    idle = taken(held=20, gap=0)
    found = list(rows_of(8, "idle", [Pair(ours=idle, bare=idle)]))
    assert [row.key for row in found] == ["window/8-disk-idle", "window/8-disk-idle-held"]
