"""An idle agent is measured with what a hypervisor has installed, and nothing else."""

import os
import subprocess
import sys

import pytest

from tests.bench.installed import as_on_a_hypervisor


def test_what_the_host_extra_does_not_bring_is_hidden() -> None:
    hidden = set(as_on_a_hypervisor()["BENCH_HIDDEN"].split())
    assert {"rich", "sqlalchemy", "flower", "yaml", "pytest"} <= hidden
    needed = {
        "celery",
        "kombu",
        "redis",
        "packaging",
        "pydantic",
        "structlog",
        "libvirt",
        "hostagent",
        "common",
        "tests",
    }
    assert not needed & hidden


@pytest.mark.slow
def test_a_process_does_not_find_it_and_has_all_that_an_agent_needs() -> None:
    environment = {**os.environ, **as_on_a_hypervisor()}
    script = "import hostagent.worker, celery.bin.celery, sys; print({'rich', 'flower', 'yaml'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("set()\n", "")
