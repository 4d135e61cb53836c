"""Settings that every process shares. Each option: default, unit, why, when to change it.

Values come from the environment (`LIVESNAP_…`) over a TOML file that `LIVESNAP_CONFIG` names. No secret is ever an
argument: the process list is public.
"""

import os
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource


class SharedSettings(BaseSettings):
    """Broker, keys and logs."""

    model_config = SettingsConfigDict(env_prefix="LIVESNAP_", env_nested_delimiter="__", extra="ignore", frozen=True)

    broker_url: str = Field(default="redis://127.0.0.1:6379/0")
    """Redis (`redis://`, `rediss://`, `redis+socket://`) or RabbitMQ (`amqp://`). Change it for a fleet."""

    key_file: Path = Field(default=Path("/etc/livesnap/own.key"))
    """This process's private Ed25519 key (PEM, mode 0600). Its public half stands in the others' `keys_dir`."""

    keys_dir: Path = Field(default=Path("/etc/livesnap/keys"))
    """Public keys of the senders this process listens to, one `<sender>.pub` each (`manager.pub`, `host.h1.pub`)."""

    log_format: str = Field(default="text", pattern="^(text|json)$")
    """`text` for people, `json` for collectors."""

    task_events: bool = Field(default=True)
    """Send Celery task events, for Flower. Switch off in fleets of hundreds of hosts, where they cost more than the
    work."""

    metrics_dir: Path | None = Field(default=None)
    """Folder into which each worker process writes its figures for Prometheus, every 10 s, for the textfile collector
    of `prometheus-node-exporter`. Default: none are written. Give it on machines that Prometheus watches."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file that LIVESNAP_CONFIG names."""
        config = os.environ.get("LIVESNAP_CONFIG")
        file_source = TomlConfigSettingsSource(settings_cls, toml_file=config) if config else None
        sources = (init_settings, env_settings)
        return (*sources, file_source) if file_source else sources
