"""Bringing a database to the present schema."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config

from scloud.store.database import Store

MIGRATIONS = Path(__file__).parent / "migrations"


def config() -> Config:
    result = Config()
    result.set_main_option("script_location", str(MIGRATIONS))
    return result


def migrate(store: Store) -> None:
    """Run the migrations that the database has not seen."""
    with store.engine.begin() as connection:
        settings = config()
        settings.attributes["connection"] = connection
        command.upgrade(settings, "head")
