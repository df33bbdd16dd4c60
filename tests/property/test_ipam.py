"""Addresses of a subnet under any order of taking and giving back."""

from __future__ import annotations

import ipaddress
import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from scloud.api.intents.addresses import RESERVED, take_ip, take_mac
from scloud.model.errors import CloudError, ErrorKind
from scloud.model.kinds import Kind, State
from scloud.model.specs import SubnetSpec
from scloud.model.statuses import Status
from scloud.store import tables
from scloud.store.database import Store
from scloud.store.resources import create
from support.clock import Clock


class Addresses(RuleBasedStateMachine):
    """A model of who has which address, beside the real thing."""

    held = Bundle("held")

    @initialize(prefix=st.integers(24, 29), base=st.sampled_from(["10.0.0.0", "192.168.7.0"]))
    def begin(self, prefix: int, base: str) -> None:
        self.store = Store("sqlite://", clock=Clock(), rng=random.Random(1), inline=True)
        tables.metadata.create_all(self.store.engine)
        self.network = ipaddress.IPv4Network(f"{base}/{prefix}")
        spec = SubnetSpec(vpc="vpc-1", cidr=str(self.network))
        make = lambda tx: create(tx, Kind.SUBNET, "acc", "lan", spec, Status(state=State.READY))  # noqa: E731
        self.subnet = self.store.write_now(make)
        self.usable = {str(self.network[number]) for number in range(RESERVED, self.network.num_addresses - 1)}
        self.model: dict[str, str] = {}
        self.number = 0

    def take(self, wanted: str | None) -> str:
        self.number += 1
        owner = f"nic-{self.number}"
        address = self.store.write_now(lambda tx: take_ip(tx, self.subnet, owner, wanted))
        assert address in self.usable and address not in self.model
        assert wanted in (None, address)
        self.model[address] = owner
        return address

    @rule(target=held)
    def next(self) -> str:
        free = self.usable - self.model.keys()
        try:
            return self.take(None)
        except CloudError as error:
            assert error.kind is ErrorKind.NO_CAPACITY and not free
            return ""

    @rule(target=held, number=st.integers(-3, 300))
    def given(self, number: int) -> str:
        wanted = str(self.network.network_address + number)
        try:
            address = self.take(wanted)
        except CloudError as error:
            taken = wanted in self.model
            assert error.kind is (ErrorKind.CONFLICT if taken else ErrorKind.INVALID)
            assert taken or wanted not in self.usable
            return ""
        return address

    @rule(address=consumes(held))
    def give_back(self, address: str) -> None:
        owner = self.model.pop(address, None)
        if owner is not None:
            gone = tables.claim.delete().where(tables.claim.c.owner == owner)
            self.store.write_now(lambda tx: tx.conn.execute(gone))

    @rule()
    def a_failed_write_takes_nothing(self) -> None:
        def fails(tx):  # type: ignore[no-untyped-def]
            take_ip(tx, self.subnet, "nic-x", None)
            raise CloudError(ErrorKind.CONFLICT, "no")

        try:
            self.store.write_now(fails)
        except CloudError as error:
            assert error.kind in (ErrorKind.CONFLICT, ErrorKind.NO_CAPACITY)

    @invariant()
    def claims_are_what_was_taken(self) -> None:
        if hasattr(self, "store"):
            rows = self.store.read_now(lambda tx: list(tx.conn.execute(tables.claim.select())))
            assert {row.value: row.owner for row in rows} == self.model

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


Addresses.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None, derandomize=True)
TestAddresses = Addresses.TestCase


def test_macs_are_local_unicast_and_all_different() -> None:
    store = Store("sqlite://", clock=Clock(), rng=random.Random(1), inline=True)
    tables.metadata.create_all(store.engine)
    macs = [store.write_now(lambda tx, n=n: take_mac(tx, f"nic-{n}")) for n in range(500)]
    assert len(set(macs)) == 500 and all(mac.startswith("06:") and len(mac) == 17 for mac in macs)
    store.close()
