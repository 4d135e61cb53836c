"""How a worker is started: what is wrong in its words is said, and nothing begins."""

import pytest

from common.messaging.start_worker import main


@pytest.mark.parametrize("words", [[], ["host.worker", "host@h1"], ["host.worker", "host@h1", "many"]])
def test_wrong_words_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "a module, a node's name and a number of threads" in capsys.readouterr().err
