"""Names for the ids inside specs and statuses: asked for when one is to be shown, all of a kind together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from scloud.cli.human import short_id

if TYPE_CHECKING:
    from scloud.client.http import Client

FEW = 4


class Names:
    """Looks up names. What may not be seen (a tenant asks for a node's) stays a shortened id.

    `wanted` are the ids, by collection, that might be asked for: they are fetched with the first of them, one by one
    if they are few, else as a list.
    """

    def __init__(self, client: Client, wanted: Mapping[str, Iterable[str]]) -> None:
        self._client = client
        self._wanted = wanted
        self._known: dict[str, dict[str, str]] = {}

    def of(self, collection: str, ref: str | None) -> str:
        """The name, or what there is instead; empty for None."""
        if not ref:
            return ""
        if collection not in self._known:
            self._known[collection] = self._load(collection, {*self._wanted.get(collection, ()), ref})
        return self._known[collection].get(ref) or short_id(ref)

    def all(self, collection: str, refs: Iterable[str]) -> str:
        return ", ".join(self.of(collection, ref) for ref in refs)

    def _load(self, collection: str, refs: Iterable[str]) -> dict[str, str]:
        from scloud.client.problems import cloud_error
        from scloud.model.ids import is_id

        ids = sorted(ref for ref in refs if is_id(ref))
        known: dict[str, str] = {}
        try:
            if len(ids) > FEW:
                return {item["id"]: item["name"] for item in self._client.pages(f"/{collection}")}
            for ref in ids:
                known[ref] = self._client.get(f"/{collection}/{ref}")["name"]
        except Exception as error:
            if cloud_error(error) is None:
                raise
            # Not the caller's to see: the ids have to do.
        return known
