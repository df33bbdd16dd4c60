"""Contexts: what the file keeps, who may read it, and what the environment overrides."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from scloud.client.contexts import (
    Context,
    current_context,
    read_contexts,
    remove_context,
    save_context,
    use_context,
)
from scloud.client.keys import ensure_key, public_key_of
from scloud.model.errors import CloudError, ErrorKind

ONE = Context("one", "http://127.0.0.1:1", "secret-1", Path("/etc/one.pem"))
TWO = Context("two", "https://two.example:2", "secret-2")


def test_a_saved_context_is_read_back_and_is_current(config: Path) -> None:
    save_context(ONE)
    assert current_context() == ONE
    assert stat.S_IMODE((config / "contexts.json").stat().st_mode) == 0o600


def test_the_first_context_is_current_whatever_is_asked_and_later_ones_only_if_asked() -> None:
    save_context(ONE, make_current=False)
    save_context(TWO, make_current=False)
    assert current_context() == ONE
    assert use_context("two") == TWO
    assert current_context() == TWO


def test_removing_the_current_context_leaves_another_one_current() -> None:
    save_context(ONE)
    save_context(TWO)
    assert remove_context("two")
    assert current_context() == ONE
    assert not remove_context("two")
    assert remove_context("one")
    assert read_contexts().contexts == {}


def test_the_environment_picks_a_context_or_overrides_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    save_context(ONE)
    save_context(TWO)
    monkeypatch.setenv("SCLOUD_CONTEXT", "one")
    assert current_context() == ONE
    monkeypatch.setenv("SCLOUD_URL", "http://127.0.0.1:9")
    assert current_context() == Context("one", "http://127.0.0.1:9", "secret-1", ONE.ca)


def test_url_and_token_in_the_environment_need_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCLOUD_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SCLOUD_TOKEN", "t")
    assert current_context() == Context("environment", "http://127.0.0.1:9", "t")


def test_without_any_context_the_error_says_how_to_get_one() -> None:
    with pytest.raises(CloudError, match=r"\./scloud up"):
        current_context()


def test_a_context_that_is_not_there_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    save_context(ONE)
    monkeypatch.setenv("SCLOUD_CONTEXT", "three")
    with pytest.raises(CloudError, match="there are: one") as caught:
        current_context()
    assert caught.value.kind is ErrorKind.NOT_FOUND


@pytest.mark.parametrize("text", ["{", "[]", '{"contexts": {"a": {}}}', '{"contexts": 3}'])
def test_a_damaged_file_is_named(config: Path, text: str) -> None:
    config.mkdir()
    (config / "contexts.json").write_text(text)
    with pytest.raises(CloudError, match=r"contexts\.json"):
        read_contexts()


def test_the_secret_is_not_in_the_representation() -> None:
    assert "secret-1" not in repr(ONE)


def test_a_key_is_made_once_and_readable_by_its_owner_only(config: Path) -> None:
    first, again = ensure_key("default"), ensure_key("default")
    assert (first.made, again.made) == (True, False)
    assert first.path == config / "keys" / "default"
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    assert first.public_key.split()[:2] == again.public_key.split()[:2] == public_key_of(first.path).split()[:2]
    assert (config / "keys" / "default.pub").read_text().strip() == first.public_key


def test_a_file_that_is_no_key_is_refused_rather_than_replaced(config: Path) -> None:
    (config / "keys").mkdir(parents=True)
    (config / "keys" / "default").write_text("mine")
    with pytest.raises(CloudError, match="not an SSH private key"):
        ensure_key("default")
    assert (config / "keys" / "default").read_text() == "mine"
