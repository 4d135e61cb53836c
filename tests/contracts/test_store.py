"""What the Manager's store promises, on SQLite and on PostgreSQL alike."""

import threading
from datetime import timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from common.clock import SystemClock
from common.errors import LivesnapError
from common.ids import JobId, SnapshotId, VmId, new_id
from manager.flows.snapshot import begin
from manager.store import inventory, jobs, tables
from manager.store.jobs import NewJob, VersionConflict
from manager.store.session import Database, upsert
from manager.store.tables import hosts, metadata, vms
from tests.unit.manager.flows.saga_kit import H1, plan

pytest_plugins = ["tests.databases"]
CLOCK = SystemClock()


def add_vm(database: Database, vm: VmId) -> VmId:
    with database.write() as connection:
        upsert(connection, vms, [{"id": vm, "name": "web1", "off_chain": "", "created_at": CLOCK.now()}])
    return vm


def new_job(vm: VmId, key: str | None = None) -> NewJob:
    return NewJob(
        id=JobId(new_id()),
        kind="snapshot",
        vm=vm,
        snapshot=SnapshotId(new_id()),
        state=begin(plan(), H1),
        idempotency_key=key,
        request_hash="",
        created_at=CLOCK.now(),
    )


def test_migrations_arrive_at_the_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_partial_indexes_are_partial_in_the_database(database: Database) -> None:
    # compare_metadata does not look at a partial index's condition, and the vm's lock is one.
    with database.engine.connect() as connection:
        found = {
            index["name"]: " ".join(str(option) for option in index["dialect_options"].values())
            for table in ("jobs", "outbox", "snapshots")
            for index in inspect(connection).get_indexes(table)
        }
    assert "finished_at is null" in found["uq_jobs_unfinished_vm"].lower()
    assert "closed_at is null" in found["uq_outbox_open_job"].lower()
    assert "dropped" in found["uq_snapshots_vm_name"]


def test_upgrade_can_be_repeated_by_many_at_once(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    faults: list[Exception] = []

    def upgrade(database: Database) -> None:
        try:
            database.upgrade()
        except (LivesnapError, DBAPIError) as error:
            faults.append(error)

    threads = [threading.Thread(target=upgrade, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    with databases[0].read() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() == ["0002"]
    for database in databases:
        database.close()


def test_sqlite_is_durable_and_shared(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/folder/livesnap.sqlite")
    with database.read() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1
    database.close()


def test_a_vm_has_at_most_one_unfinished_job(database: Database) -> None:
    vm = add_vm(database, VmId(new_id()))
    with database.write() as connection:
        first = jobs.insert_job(connection, new_job(vm))
    with pytest.raises(IntegrityError), database.write() as connection:
        jobs.insert_job(connection, new_job(vm))
    with database.write() as connection:
        jobs.save(connection, first, change(is_over=True))
    with database.write() as connection:
        jobs.insert_job(connection, new_job(vm))
        assert jobs.busy_with(connection, vm) not in (None, first.id)


def test_an_idempotency_key_makes_one_job(database: Database) -> None:
    with database.write() as connection:
        made = jobs.insert_job(connection, new_job(add_vm_in(connection), key="k"))
    with pytest.raises(IntegrityError), database.write() as connection:
        jobs.insert_job(connection, new_job(add_vm_in(connection), key="k"))
    with database.read() as connection:
        assert jobs.by_idempotency_key(connection, "k") == (made.id, "")
        assert jobs.by_idempotency_key(connection, "other") is None


def add_vm_in(connection: Connection) -> VmId:
    vm = VmId(new_id())
    upsert(connection, vms, [{"id": vm, "name": "a", "off_chain": "", "created_at": CLOCK.now()}])
    return vm


def change(*, is_over: bool = False, detail: str = "said") -> jobs.Change:
    return jobs.Change(
        state=begin(plan(), H1), at=CLOCK.now(), wake_at=None, problem=None, is_over=is_over, detail=detail
    )


def test_a_job_is_saved_only_from_the_version_it_was_loaded_at(database: Database) -> None:
    vm = add_vm(database, VmId(new_id()))
    with database.write() as connection:
        old = jobs.insert_job(connection, new_job(vm))
        jobs.save(connection, old, change())
    with pytest.raises(VersionConflict), database.write() as connection:
        jobs.save(connection, old, change(is_over=True))
    with database.write() as connection:
        now = jobs.lock_job(connection, old.id)
    assert now is not None
    assert (now.version, now.finished_at, now.state) == (1, None, old.state)


def test_a_state_of_a_newer_version_is_not_guessed_at(database: Database) -> None:
    vm = add_vm(database, VmId(new_id()))
    with database.write() as connection:
        job = jobs.insert_job(connection, new_job(vm))
        from_the_future = (
            update(tables.jobs).where(tables.jobs.c.id == job.id).values(state_json='{"kind": "teleporting"}')
        )
        connection.execute(from_the_future)
    with pytest.raises(ValueError, match="teleporting"), database.write() as connection:
        jobs.lock_job(connection, job.id)


def test_what_a_failed_block_wrote_is_gone(database: Database) -> None:
    def fail() -> None:
        with database.write() as connection:
            add_vm_in(connection)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.read() as connection:
        assert connection.execute(select(vms)).all() == []


def test_attempts_only_grow_and_are_never_given_twice(database: Database) -> None:
    vm = add_vm(database, VmId(new_id()))
    taken: list[int] = []

    def take() -> None:
        for _ in range(20):
            with database.write() as connection:
                attempt = inventory.raise_attempt(connection, vm, H1)
            taken.append(attempt)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(1, 81))


@pytest.mark.parametrize(("highest", "after"), [(0, 3), (3, 3), (50, 50), (10**7, 3)])
def test_attempts_catch_up_with_what_can_be_believed(database: Database, highest: int, after: int) -> None:
    vm = add_vm(database, VmId(new_id()))
    with database.write() as connection:
        for _ in range(3):
            inventory.raise_attempt(connection, vm, None)
        assert inventory.catch_up(connection, vm, highest) == (after != 3)
    with database.write() as connection:
        assert inventory.raise_attempt(connection, vm, None) == after + 1


def test_times_come_back_in_utc_to_the_microsecond(database: Database) -> None:
    now = CLOCK.now().replace(microsecond=123456)
    local = now.astimezone(timezone(timedelta(hours=5, minutes=45)))
    with database.write() as connection:
        upsert(connection, vms, [{"id": VmId(new_id()), "name": "a", "off_chain": "", "created_at": local}])
    with database.read() as connection:
        stored = connection.execute(select(vms.c.created_at)).scalar_one()
        assert stored == now
        assert stored.utcoffset() == timedelta(0)
        assert connection.execute(select(vms).where(vms.c.created_at <= now)).all()
        assert not connection.execute(select(vms).where(vms.c.created_at < now)).all()


def test_text_that_no_database_can_store_is_replaced(database: Database) -> None:
    row = {
        "id": "h1",
        "boot_id": "",
        "libvirt_up": True,
        "problem": "a\x00b \ud800 é",
        "frozen_json": "[]",
        "mounts_json": "[]",
        "observed_at": CLOCK.now(),
        "seen_at": CLOCK.now(),
    }
    with database.write() as connection:
        upsert(connection, hosts, [row])
    with database.read() as connection:
        assert connection.execute(select(hosts.c.problem)).scalar_one() == "a\ufffdb ? é"


def test_readers_are_not_held_up_by_a_writer(database: Database) -> None:
    vm = add_vm(database, VmId(new_id()))
    with database.write() as writing:
        inventory.raise_attempt(writing, vm, None)
        with database.read() as reading:
            assert reading.execute(select(vms.c.attempt)).scalar_one() == 0


@pytest.mark.parametrize("url", ["mysql+pymysql://x/y", "sqlite://", "sqlite:///:memory:"])
def test_a_database_that_processes_cannot_share_is_refused(url: str) -> None:
    with pytest.raises(LivesnapError) as refused:
        Database(url)
    assert refused.value.code == "settings_invalid"


def test_a_database_that_is_away_is_named_so() -> None:
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(LivesnapError) as away, database.read():
        pass
    assert away.value.code == "database_unavailable"
    database.close()
