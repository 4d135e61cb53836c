"""A broker's URL: which kind it is, and how it may be shown. Pure."""

import re


def is_redis(url: str) -> bool:
    """Tell whether the broker at `url` is Redis (`redis`, `rediss`, `redis+socket`), not RabbitMQ."""
    return url.startswith("redis")


def without_password(url: str) -> str:
    """Return `url` as it may stand in logs and error messages."""
    return re.sub(r"//[^@/]*@", "//***@", url)
