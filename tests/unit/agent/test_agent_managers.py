"""Which manager an agent dials."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest

from scloud.agent import managers as managers_module
from scloud.agent.managers import Managers

ONE, TWO, THREE = "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"


class Dialled:
    """Stands in for the network: those in `away` refuse, those in `hanging` never answer."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.hanging: set[str] = set()
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int, context: ssl.SSLContext, timeout_s: float) -> str:
        address = f"{host}:{port}"
        self.asked.append(address)
        if address in self.hanging:
            await asyncio.Event().wait()
        if address in self.away:
            raise ConnectionRefusedError(address)
        return address


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> Dialled:
    made = Dialled()
    monkeypatch.setattr(managers_module.channel, "dial", made)
    return made


def make(folder: Path) -> Managers:
    return Managers(ONE, folder / "managers.json", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


async def test_it_stays_with_the_one_that_answers_and_goes_to_another_when_that_fails(
    tmp_path: Path, dialled: Dialled
) -> None:
    managers = make(tmp_path)
    assert await managers.dial() == ONE
    managers.learn((TWO, ONE, THREE))
    managers.failed()
    assert await managers.dial() == TWO
    dialled.away = {TWO, ONE}
    assert await managers.dial() == THREE
    dialled.away, dialled.asked = set(), []
    assert await managers.dial() == THREE and dialled.asked == [THREE]


async def test_what_it_has_learnt_outlives_it_and_an_empty_word_takes_nothing_away(
    tmp_path: Path, dialled: Dialled
) -> None:
    make(tmp_path).learn((ONE, TWO))
    again = make(tmp_path)
    again.learn(())
    dialled.away = {ONE}
    assert await again.dial() == TWO


async def test_when_none_answers_the_last_refusal_is_told(tmp_path: Path, dialled: Dialled) -> None:
    managers = make(tmp_path)
    managers.learn((ONE, TWO))
    dialled.away = {ONE, TWO}
    with pytest.raises(ConnectionRefusedError, match=TWO):
        await managers.dial()
    (tmp_path / "managers.json").write_text("broken")
    assert make(tmp_path).addresses() == [ONE]


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Managers:
    monkeypatch.setattr(managers_module, "NEXT_AFTER_S", 0.01)
    managers = make(tmp_path)
    managers.learn((ONE, TWO, THREE))
    return managers


async def test_one_that_hangs_holds_nobody_up(three: Managers, dialled: Dialled) -> None:
    dialled.hanging = {ONE, TWO}
    assert await three.dial() == THREE
    assert three.addresses()[0] == THREE
    while others := [task for task in asyncio.all_tasks() if task.get_name().startswith("dial ")]:
        await asyncio.wait(others)  # they are given up


async def test_one_that_answers_and_leads_nowhere_keeps_nobody_from_the_next(three: Managers, dialled: Dialled) -> None:
    dialled.hanging = {ONE}
    assert await three.dial() == TWO
    three.failed()
    assert await three.dial() == THREE
