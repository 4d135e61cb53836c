"""A ring reaches everybody who listens, in every process, and never stops who rings."""

import os
import select
from multiprocessing import get_context
from pathlib import Path

import pytest

from common.errors import LivesnapError
from manager.store.bell import Ear
from manager.store.session import Database

pytest_plugins = ["tests.databases"]

SOON_MS, NOT_MS = 10_000, 100


def rung(ear: Ear, within_ms: int = SOON_MS) -> bool:
    """Tell whether somebody rings within that time, and take it."""
    poll = select.poll()
    poll.register(ear, select.POLLIN)
    ready = bool(poll.poll(within_ms))
    ear.hear()
    return ready


def folder(database: Database) -> Path:
    return Path(f"{database.engine.url.database}.listeners")


def ring_once(url: str) -> None:
    database = Database(url)
    database.ring()
    database.close()


def listen_and_die(url: str) -> None:
    with Database(url).listening():
        os._exit(0)


def test_a_ring_of_another_process_reaches_all_who_listen(database: Database, database_url: str) -> None:
    other = Database(database_url)
    with database.listening() as one, other.listening() as two:
        assert not rung(one, NOT_MS)
        ringer = get_context("spawn").Process(target=ring_once, args=(database_url,))
        ringer.start()
        assert rung(one)
        assert rung(two)
        assert not rung(one, NOT_MS)
        ringer.join()
    other.close()


def test_rings_end(database: Database) -> None:
    with database.listening() as ear:
        for _ in range(100):
            database.ring()
        assert rung(ear)
        heard = 1
        while rung(ear, NOT_MS):
            heard += 1
        assert heard <= 100


def test_where_nobody_listens_a_ring_does_nothing(database: Database) -> None:
    database.ring()
    with database.listening():
        pass
    database.ring()
    with database.listening() as ear:
        assert not rung(ear, NOT_MS)


def test_one_who_never_takes_what_is_rung_stops_nobody(database: Database) -> None:
    with database.listening() as deaf, database.listening() as ear:
        for _ in range(70_000 if database.is_sqlite else 100):  # more than a pipe holds
            database.ring()
            ear.hear()
        database.ring()
        assert rung(ear)
        assert rung(deaf)


def test_what_a_killed_listener_leaves_goes_with_the_next_ring(database: Database, database_url: str) -> None:
    killed = get_context("spawn").Process(target=listen_and_die, args=(database_url,))
    killed.start()
    killed.join()
    if database.is_sqlite:
        assert len(list(folder(database).iterdir())) == 1
    with database.listening() as ear:
        database.ring()
        assert rung(ear)
    if database.is_sqlite:
        assert not list(folder(database).iterdir())


def test_who_listens_is_told_of_trouble_and_who_rings_is_not_stopped_by_it(database: Database) -> None:
    if database.is_sqlite:
        folder(database).write_text("in the way")
        database.ring()
        with pytest.raises(LivesnapError, match="listening beside the database"), database.listening():
            raise AssertionError("it listened to a file")
        return
    with pytest.raises(LivesnapError, match="database_unavailable"), database.listening() as ear:
        throw_everybody_out(database, ear)
    database.ring()


def throw_everybody_out(database: Database, ear: Ear) -> None:
    with database.write() as connection:
        connection.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    rung(ear)
    rung(ear)
