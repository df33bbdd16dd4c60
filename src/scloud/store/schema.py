"""Bringing a database to the present schema."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from scloud.store.database import Store

MIGRATING = 0x5C10D
"""The number of an advisory lock; any would do."""
MIGRATIONS = Path(__file__).parent / "migrations"


def config() -> Config:
    result = Config()
    result.set_main_option("script_location", str(MIGRATIONS))
    return result


def migrate(store: Store) -> None:
    """Run the migrations that the database has not seen. Of several managers that start together one does it."""
    with store.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": MIGRATING})
        settings = config()
        settings.attributes["connection"] = connection
        command.upgrade(settings, "head")
