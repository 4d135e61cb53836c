"""`livesnap host add|list|drain|resume|remove` and `pool`, `storage-domain`, on brokers where accounts count."""

import json
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import amqp
import pytest
import redis

from common.messaging.accounts import password_in
from common.messaging.identity import own_key, trusted
from hostagent.settings import HostSettings
from spm.settings import SpmSettings
from tests.bed.paths import short_dir
from tests.bed.servers import RabbitServer, RedisServer
from tests.brokers import BROKERS, always_on
from tests.integration.access_kit import Guarded, RabbitThief, RedisThief, guarded
from tests.integration.front_kit import Front, Ran, front
from tests.integration.manager_kit import vm
from tests.wait import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    with short_dir() as folder, guarded(request.param, folder, management=True) as made:
        yield made


@pytest.fixture
def served(broker: Guarded, tmp_path: Path) -> Iterator[Front]:
    """An API whose account at the broker is `manager`, and which has that of `registrar` too."""
    more: dict[str, Any] = {"broker_admin_url": broker.url_of("registrar")}
    if isinstance(broker.broker, RabbitServer):
        more["broker_management_url"] = broker.broker.management_url
    with front(tmp_path, broker_url=broker.url_of("manager"), **more) as made:
        made.fleet.report_spm()
        yield made


def added(served: Front, host: str, *words: str, output: str) -> tuple[Ran, Path]:
    path = served.token_file.parent / output
    return served.livesnap("host", "add", host, "--output", str(path), "--json", *words), path


def may_answer(url: str) -> bool:
    """Tell whether an account gets in, and may write to the Manager."""
    try:
        if url.startswith("redis"):
            return RedisThief(url).may("LPUSH", "manager.answers", "{}")
        send = amqp.Message("{}")
        return RabbitThief(url).may(
            lambda channel: channel.basic_publish_confirm(send, "to.answers", "manager.answers")
        )
    except (redis.AuthenticationError, amqp.AccessRefused):
        return False


def test_a_host_joins_with_one_file(served: Front, broker: Guarded) -> None:
    ran, path = added(served, "h7", "--libvirt-uri", "qemu:///session", output="h7.toml")
    assert (ran.status, ran.err) == (0, "")
    assert ran.json == {
        "id": "h7",
        "queue": "host.h7",
        "account": "host.h7",
        "file": str(path),
        "to_do": ran.json["to_do"],
    }
    assert "broker_url_for_others" in str(ran.json["to_do"]), "the test's broker is named by a loopback address"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = tomllib.loads(path.read_text())
    assert (written["host_id"], written["libvirt_uri"]) == ("h7", "qemu:///session")
    assert written["storage_domains"] == {"main": "/srv/images"}
    settings = HostSettings(**written)
    assert own_key(settings, "host.h7").public_pem == (served.fleet.settings.keys_dir / "host.h7.pub").read_bytes()
    manager = own_key(
        served.fleet.settings.model_copy(update={"key_file": served.token_file.parent / "manager.key"}), "manager"
    )
    trusted(settings).verify("manager", manager.sign(b"text"), b"text")
    assert password_in(settings.broker_url) not in ran.out + repr(settings.private_key)
    assert may_answer(settings.broker_url)
    if isinstance(broker.broker, RabbitServer):
        login = {"userid": "guest", "password": "guest"}
        with amqp.Connection(host=f"127.0.0.1:{broker.broker.port}", **login) as connection:
            assert connection.channel().queue_declare("host.h7", passive=True).message_count == 0
    [shown] = served.livesnap("host", "list", "--json").json
    assert (shown["id"], shown["state"], shown["duty"], shown["seen_at"]) == ("h7", "expected", "in_service", None)


@always_on("redis")
def test_adding_again_ends_the_earlier_file(served: Front) -> None:
    _, first = added(served, "h8", output="one.toml")
    taken, _ = added(served, "h8", output="one.toml")
    assert (taken.status, taken.json["error"]["code"]) == (2, "settings_invalid"), "no file is overwritten"
    again, second = added(served, "h8", output="two.toml")
    assert again.status == 0
    urls = [tomllib.loads(path.read_text())["broker_url"] for path in (first, second)]
    assert [may_answer(url) for url in urls] == [False, True]
    served.fleet.report_host(host="h8")  # type: ignore[arg-type]
    refused, third = added(served, "h8", output="three.toml")
    assert (refused.status, refused.json["error"]["code"]) == (2, "host_exists")
    assert not third.exists()
    assert may_answer(urls[1])
    renewed, third = added(served, "h8", "--renew", output="three.toml")
    assert renewed.status == 0
    assert [may_answer(url) for url in (urls[1], tomllib.loads(third.read_text())["broker_url"])] == [False, True]


def test_a_host_leaves_with_all_that_it_had(served: Front, broker: Guarded) -> None:
    _, path = added(served, "h9", output="h9.toml")
    url = tomllib.loads(path.read_text())["broker_url"]
    served.fleet.report_host(vm("web1"), host="h9")  # type: ignore[arg-type]
    assert served.livesnap("host", "drain", "h9", "--json").json == {"id": "h9", "duty": "drained", "jobs": []}
    refused = served.livesnap("snapshot", "create", "web1", "--json")
    assert (refused.status, refused.json["error"]["code"]) == (2, "host_drained")
    assert served.livesnap("host", "resume", "h9", "--json").json["duty"] == "in_service"
    if isinstance(broker.broker, RedisServer):
        with redis.Redis.from_url(broker.broker.url) as client:
            client.lpush("host.h9", "{}")
            client.hset("u:host.h9:unacked", "tag", "{}")
    gone = served.livesnap("host", "remove", "h9", "--json")
    assert (gone.status, gone.json["vms"], gone.json["to_do"]) == (0, ["web1"], [])
    assert not may_answer(url)
    assert not (served.fleet.settings.keys_dir / "host.h9.pub").exists()
    assert served.livesnap("host", "list", "--json").json == []
    if isinstance(broker.broker, RedisServer):
        with redis.Redis.from_url(broker.broker.url) as client:
            assert client.exists("host.h9", "u:host.h9:unacked") == 0
    else:
        login = {"userid": "guest", "password": "guest"}
        with (
            amqp.Connection(host=f"127.0.0.1:{broker.broker.port}", **login) as connection,
            pytest.raises(amqp.NotFound),
        ):
            connection.channel().queue_declare("host.h9", passive=True)
    again = served.livesnap("host", "remove", "h9", "--json")
    assert (again.status, again.json["error"]["code"]) == (2, "host_not_found")


def test_a_pool_joins_with_one_file(served: Front) -> None:
    path = served.token_file.parent / "spm.toml"
    words = ("pool", "add", "fast", "--storage-domain", "nvme=/srv/nvme", "--output", str(path), "--json")
    ran = served.livesnap(*words)
    assert (ran.status, ran.json["queue"]) == (0, "spm.fast")
    settings = SpmSettings(**tomllib.loads(path.read_text()))
    assert (settings.pool, dict(settings.storage_domains)) == ("fast", {"nvme": Path("/srv/nvme")})
    assert own_key(settings, "spm.fast").sender == "spm.fast"
    assert may_answer(settings.broker_url)
    assert [pool["id"] for pool in served.livesnap("pool", "list", "--json").json] == ["default"]
    refused = served.livesnap("pool", "add", "default", "--output", str(path.with_name("x.toml")), "--json")
    assert (refused.status, refused.json["error"]["code"]) == (2, "pool_exists")


@always_on("rabbitmq")
def test_a_storage_domain_is_made_where_it_is_mounted(served: Front, tmp_path: Path) -> None:
    root, settings = tmp_path / "images", tmp_path / "some.toml"
    root.mkdir()
    settings.write_text('pool = "default"\n\n[storage_domains]\n"main" = "/srv/main"\n')
    settings.chmod(0o600)
    words = ("storage-domain", "add", f"second={root}", "--settings", str(settings), "--json")
    ran = served.livesnap(*words)
    assert (ran.status, ran.json["changed"]) == (0, [str(settings)])
    assert json.loads((root / "livesnap.json").read_text())["id"] == ran.json["id"]
    assert tomllib.loads(settings.read_text())["storage_domains"] == {"main": "/srv/main", "second": str(root)}
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    again = served.livesnap(*words)
    assert (again.status, again.json["id"], again.json["changed"]) == (0, ran.json["id"], [])
    other = served.livesnap("storage-domain", "add", f"second={root}", "--pool", "fast", "--json")
    assert (other.status, other.json["error"]["code"]) == (2, "settings_invalid")
    assert [each["name"] for each in served.livesnap("storage-domain", "list", "--json").json] == ["main"]


@always_on("redis")
def test_a_broker_that_is_away_is_said(served: Front, broker: Guarded) -> None:
    broker.broker.stop()
    try:
        ran, path = added(served, "h6", output="h6.toml")
        assert (ran.status, ran.json["error"]["code"]) == (3, "broker_unavailable")
        assert not path.exists()
        assert password_in(broker.url_of("registrar")) not in ran.out + ran.err
    finally:
        broker.broker.start()
    eventually(lambda: added(served, "h6", output="h6.toml")[0].status == 0, timeout_s=30, what="the host to be added")
