"""Whose turn it is."""

from hypothesis import given
from hypothesis import strategies as st

from common.ids import HostId, JobId
from manager.flows import delete
from manager.loads import Counted, Limits, Load, loads_of, turns
from tests.unit.manager.doctor.scene import volume
from tests.unit.manager.flows.delete_kit import PLAN

H1: Load = ("host", "h1")
H2: Load = ("host", "h2")
POOL: Load = ("pool", "default")


def limits(**set_for: int) -> Limits:
    found = {
        ("host", "" if name == "each_host" else name) if name != "pool" else ("pool", ""): n
        for name, n in set_for.items()
    }
    return Limits(set_for=found, names={"id-1": "main"})


def job(name: str, *loads: Load, waits: bool = True) -> Counted:
    return Counted(job=JobId(name), loads=loads, is_waiting=waits)


def ready(jobs: list[Counted], limits: Limits) -> list[str]:
    return [name for name, why in turns(jobs, limits).items() if not why]


def test_a_deletion_is_counted_for_where_it_merges() -> None:
    found = loads_of(delete.begin(PLAN, HostId("h1")))
    assert found == (H1, ("pool", "default"), ("storage_domain", str(volume("A").storage_domain_id)))


def test_without_limits_nobody_waits() -> None:
    assert ready([job("a", H1), job("b", H1)], limits()) == ["a", "b"]


def test_the_oldest_begins_and_the_next_says_why_it_waits() -> None:
    found = turns([job("a", H1, waits=False), job("b", H1), job("c", H1)], limits(each_host=2))
    assert found[JobId("b")] == ""
    assert found[JobId("c")] == "its turn: 2 job(s) of host h1 come first, of which 2 may be at work at once"


def test_a_limit_of_its_own_wins_over_that_of_each() -> None:
    jobs = [job("a", H1), job("b", H1), job("c", H2), job("d", H2)]
    assert ready(jobs, limits(each_host=1, h2=2)) == ["a", "c", "d"]
    assert ready(jobs, limits(h1=1)) == ["a", "c", "d"]


def test_a_storage_domain_is_known_by_name_or_id() -> None:
    jobs = [job("a", ("storage_domain", "id-1")), job("b", ("storage_domain", "id-1"))]
    for name in ("main", "id-1"):
        known = Limits(set_for={("storage_domain", name): 1}, names={"id-1": "main"})
        assert ready(jobs, known) == ["a"]
        assert "storage domain main" in turns(jobs, known)[JobId("b")]


def test_who_waits_keeps_its_place_in_every_scope() -> None:
    """b waits for its host; c, of another host, would take the pool's last place from it, and does not."""
    jobs = [job("a", H1, POOL, waits=False), job("b", H1, POOL), job("c", H2, POOL)]
    assert ready(jobs, limits(h1=1, pool=2)) == []
    assert ready(jobs, limits(h1=1, pool=3)) == ["c"]


LOADS = st.sets(st.sampled_from([H1, H2, POOL, ("storage_domain", "s")]), min_size=1).map(
    lambda found: tuple(sorted(found))
)
JOBS = st.lists(st.tuples(LOADS, st.booleans()), max_size=12).map(
    lambda rows: [job(str(n), *loads, waits=waits) for n, (loads, waits) in enumerate(rows)]
)
LIMITS = st.dictionaries(st.sampled_from([H1, H2, POOL, ("host", "")]), st.integers(1, 4)).map(
    lambda found: Limits(set_for=found, names={})
)


@given(JOBS, LIMITS)
def test_no_limit_is_exceeded_and_somebody_goes_on(jobs: list[Counted], known: Limits) -> None:
    begins = set(ready(jobs, known))
    at_work = [each for each in jobs if not each.is_waiting or each.job in begins]
    for load in {load for each in jobs for load in each.loads}:
        limit, before = known.of(load), sum(load in each.loads for each in jobs if not each.is_waiting)
        assert limit is None or sum(load in each.loads for each in at_work) <= max(limit, before)
    if jobs and all(each.is_waiting for each in jobs):
        assert jobs[0].job in begins, "with nothing at work, the oldest begins: nobody waits for ever"
