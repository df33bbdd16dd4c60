"""Tables whose rows are one JSON document each, beside the columns that rows are looked for by."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy import Select, Table, bindparam, delete, insert, select, update

from scloud.store.database import Tx

T = TypeVar("T", bound=BaseModel)


class Documents(Generic[T]):
    """`table` has the columns `id`, `ended_at` and `data`; a change is told of as `NAME OF THE TABLE/id`."""

    def __init__(self, table: Table, model: type[T]) -> None:
        self._table = table
        self._model = model
        self._by_id = select(table.c.data).where(table.c.id == bindparam("id"))

    def save(self, tx: Tx, id: str, value: T, **columns: Any) -> T:
        """Keep it, new or changed."""
        table = self._table
        values = {**columns, "data": value.model_dump_json()}
        done = tx.conn.execute(update(table).where(table.c.id == id).values(**values))
        if done.rowcount == 0:
            tx.conn.execute(insert(table).values(id=id, **values))
        tx.touch(f"{table.name}/{id}")
        return value

    def read(self, data: str) -> T:
        return self._model.model_validate_json(data)

    def all(self, tx: Tx, query: Select[Any], **given: Any) -> list[T]:
        """Of a query that selects `data`, with what is given for its parameters."""
        return [self.read(row.data) for row in tx.conn.execute(query, given)]

    def first(self, tx: Tx, query: Select[Any], **given: Any) -> T | None:
        """The same, of one row at most."""
        data = tx.conn.execute(query, given).scalar()
        return None if data is None else self.read(data)

    def find(self, tx: Tx, id: str) -> T | None:
        return self.first(tx, self._by_id, id=id)

    def forget_old(self, tx: Tx, before: float) -> None:
        """Those that ended before a time, seconds since 1970."""
        tx.conn.execute(delete(self._table).where(self._table.c.ended_at < before))
