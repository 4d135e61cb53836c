"""What `livesnap standalone` refuses before it creates anything."""

from pathlib import Path
from typing import Any

import pytest

from common.ids import require_name
from manager.cli.failures import CommandFailed, Status
from manager.standalone.options import Options, StorageRoot, default_host_id, parsed


def parse(tmp_path: Path, **changed: Any) -> Options:
    given: dict[str, Any] = {
        "state_dir": tmp_path / "state",
        "libvirt_uri": "qemu:///session",
        "storage_domains": [f"images={tmp_path}"],
        "http": None,
        "broker_url": None,
        "database_url": None,
        "host_id": None,
    }
    return parsed(**{**given, **changed})


def test_the_least_that_is_needed(tmp_path: Path) -> None:
    options = parse(tmp_path)
    assert options.storage == (StorageRoot(name="images", path=tmp_path),)
    assert (options.http_host, options.http_port) == ("127.0.0.1", 0)
    assert not options.state_dir.exists()


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:8470", ("127.0.0.1", 8470)), ("[::1]:80", ("::1", 80)), (":0", ("127.0.0.1", 0))],
)
def test_an_address_is_host_and_port(tmp_path: Path, text: str, address: tuple[str, int]) -> None:
    options = parse(tmp_path, http=text)
    assert (options.http_host, options.http_port) == address


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        pytest.param({"storage_domains": []}, "settings_invalid", id="no storage domain"),
        pytest.param({"storage_domains": ["/srv"]}, "settings_invalid", id="no name"),
        pytest.param({"storage_domains": ["images="]}, "settings_invalid", id="no path"),
        pytest.param({"storage_domains": ["Images=/"]}, "settings_invalid", id="not a name"),
        pytest.param({"storage_domains": ["a=/tmp/.."]}, "settings_invalid", id="the whole machine"),
        pytest.param({"storage_domains": ["a=/usr", "a=/tmp"]}, "settings_invalid", id="a name twice"),
        pytest.param({"storage_domains": ["a=/tmp", "b=/tmp"]}, "settings_invalid", id="a path twice"),
        pytest.param({"storage_domains": ["a=/nonexistent/images"]}, "storage_unavailable", id="no such folder"),
        pytest.param({"http": "8470"}, "settings_invalid", id="port only"),
        pytest.param({"http": "127.0.0.1:http"}, "settings_invalid", id="port in words"),
        pytest.param({"http": "127.0.0.1:65536"}, "settings_invalid", id="port too high"),
        pytest.param({"host_id": "my host"}, "settings_invalid", id="host name with a blank"),
        pytest.param({"broker_url": "http://broker"}, "settings_invalid", id="not a broker"),
        pytest.param({"database_url": "mysql://database"}, "settings_invalid", id="not a database that is supported"),
        pytest.param({"state_dir": Path("a\nb")}, "settings_invalid", id="a path with a line break"),
    ],
)
def test_wrong_options_are_refused_with_code_and_hint(tmp_path: Path, changed: dict[str, Any], code: str) -> None:
    with pytest.raises(CommandFailed) as refused:
        parse(tmp_path, **changed)
    assert refused.value.code == code
    assert refused.value.hint
    assert refused.value.status is Status.REFUSED


def test_this_machine_has_a_name_that_queues_can_carry() -> None:
    require_name(default_host_id())
