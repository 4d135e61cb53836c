"""`python -m spm.register NAME PATH --pool POOL`: make a folder a storage domain, from any machine that has it."""

import argparse
import sys
from pathlib import Path

from common import logs
from common.errors import LivesnapError
from common.ids import PoolId
from spm.operations.register_storage_domain import register_storage_domain


def main(arguments: list[str] | None = None) -> int:
    """Register the storage domain and print its id; return 0, or 2 with the reason on standard error."""
    parser = argparse.ArgumentParser(prog="python -m spm.register", description=__doc__)
    parser.add_argument("name", help="what people call it; the settings of SPMs and hosts use the same name")
    parser.add_argument("path", type=Path, help="an existing folder or mount point")
    parser.add_argument("--pool", default="default", help="the pool that it belongs to (default: %(default)s)")
    parser.add_argument(
        "--read-only-base",
        action="append",
        default=[],
        metavar="PATH",
        help="a folder outside, whose images may be backing files and are never written to; may be repeated",
    )
    given = parser.parse_args(arguments)
    logs.configure(log_format="text", process="spm.register")
    try:
        identity = register_storage_domain(
            given.path.absolute(), given.name, PoolId(given.pool), read_only_bases=tuple(given.read_only_base)
        )
    except LivesnapError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n")
        return 2
    sys.stdout.write(f"{identity.storage_domain_id}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
