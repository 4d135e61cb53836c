"""What every test may rely on: a missing tool is a skip with its reason on a laptop, and a failure in CI."""

import os

import pytest

from tests.bed.need import need


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Hold back a test marked `needs("libvirtd", …)` when one of these tools is not there."""
    wanted = [tool for mark in item.iter_markers("needs") for tool in mark.args]
    reason = need(*wanted) if wanted else None
    if reason and os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(reason)
