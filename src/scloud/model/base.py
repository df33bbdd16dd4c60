"""The frozen base of every value type."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """An immutable, closed record: unknown fields are refused, so a misspelt one never passes unseen."""

    model_config = ConfigDict(frozen=True, extra="forbid")
