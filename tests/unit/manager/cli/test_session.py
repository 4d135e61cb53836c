"""Which server a command speaks to."""

from pathlib import Path

import pytest

from manager.cli.failures import CommandFailed
from manager.cli.session import DEFAULT_URL, Server, Session, segment


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIVESNAP_URL", "LIVESNAP_TOKEN", "LIVESNAP_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    (tmp_path / "url").write_text("http://127.0.0.1:1234\n")
    (tmp_path / "token").write_text("kept\n")
    return tmp_path


def test_nothing_given_means_the_local_default() -> None:
    assert Session().server() == Server(url=DEFAULT_URL, token="")


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVESNAP_URL", "https://livesnap.example/")
    monkeypatch.setenv("LIVESNAP_TOKEN", "secret")
    assert Session().server() == Server(url="https://livesnap.example", token="secret")


def test_a_named_state_directory_wins_over_the_environment(instance: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVESNAP_URL", "http://elsewhere")
    monkeypatch.setenv("LIVESNAP_TOKEN", "other")
    assert Session(state_dir=instance).server() == Server(url="http://127.0.0.1:1234", token="kept")


def test_a_state_directory_of_the_environment_comes_last(instance: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVESNAP_STATE_DIR", str(instance))
    assert Session().server() == Server(url="http://127.0.0.1:1234", token="kept")
    monkeypatch.setenv("LIVESNAP_URL", "http://elsewhere")
    assert Session().server().url == "http://elsewhere"


def test_an_option_wins_over_all(instance: Path) -> None:
    given = Session(url="http://here", token="mine", state_dir=instance)
    assert given.server() == Server(url="http://here", token="mine")


@pytest.mark.parametrize(
    ("session", "code"),
    [
        pytest.param(Session(state_dir=Path("/nonexistent/livesnap")), "server_unreachable", id="no such instance"),
        pytest.param(Session(url="file:///etc/passwd"), "request_malformed", id="not http"),
        pytest.param(Session(token="a\r\nX-Header: b"), "token_wrong", id="a header in the token"),
    ],
)
def test_what_cannot_be_a_server_is_refused(session: Session, code: str) -> None:
    with pytest.raises(CommandFailed) as refused:
        session.server()
    assert refused.value.code == code
    assert refused.value.hint


def test_a_name_stays_one_part_of_a_path() -> None:
    assert segment("web1/before ?#upgrade") == "web1%2Fbefore%20%3F%23upgrade"


@pytest.mark.parametrize("name", ["", "\udcff", "a\nb"])
def test_a_name_that_no_path_can_hold_is_refused(name: str) -> None:
    with pytest.raises(CommandFailed):
        segment(name)
