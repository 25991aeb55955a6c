"""The books of a machine: nobody gets what is not there, and all comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from micro_ray.errors import Unavailable
from micro_ray.runtime.machine import Amount, Machine, here


def machine() -> Machine:
    return Machine(cpu=2, memory=1_000, devices=[0, 1])


def test_what_is_there_is_given_once() -> None:
    books = machine()
    books.take("a", Amount(cpu=1.5, memory=600))
    with pytest.raises(Unavailable, match=r"1 cpu asked for; of 2 that this machine has 0\.5 are"):
        books.take("b", Amount(cpu=1))
    with pytest.raises(Unavailable, match="500 memory asked for; of 1000"):
        books.take("b", Amount(memory=500))
    books.take("b", Amount(cpu=0.5, memory=400))
    books.give_back("a")
    books.give_back("a")
    books.give_back("never heard of")
    books.take("c", Amount(cpu=1.5, memory=600))


def test_nothing_is_asked_for() -> None:
    books = Machine(cpu=0, memory=0)
    for number in range(100):
        assert books.take(str(number), Amount()) == Amount()


def test_fractions_add_up() -> None:
    books = machine()
    for number in range(20):
        books.take(str(number), Amount(cpu=0.1))
    with pytest.raises(Unavailable):
        books.take("more", Amount(cpu=0.1))


def test_devices() -> None:
    """Fractions share the fullest that fits; whole ones are alone."""
    books = machine()
    assert books.take("a", Amount(gpu=0.5)).devices == (0,)
    assert books.take("b", Amount(gpu=0.5)).devices == (0,)
    assert books.take("c", Amount(gpu=0.25)).devices == (1,)
    with pytest.raises(Unavailable, match="1 gpu asked for"):
        books.take("d", Amount(gpu=1))
    books.give_back("a")
    assert books.take("e", Amount(gpu=0.5)).devices == (0,)
    books.give_back("c")
    assert books.take("f", Amount(gpu=1)).devices == (1,)
    for who in "bef":
        books.give_back(who)
    assert books.take("g", Amount(gpu=2)).devices == (0, 1)


def test_devices_that_are_in_pieces() -> None:
    """Enough in all, but no device has so much left."""
    books = machine()
    books.take("a", Amount(gpu=0.6))
    books.take("b", Amount(gpu=0.6))
    with pytest.raises(Unavailable, match="no device of this machine has that much left"):
        books.take("c", Amount(gpu=0.7))
    books.give_back("a")
    with pytest.raises(Unavailable, match="no device"):
        books.take("c", Amount(gpu=1.2))


def test_what_an_earlier_life_has_given() -> None:
    """It is entered as it was, also when it is more than there is; and once."""
    books = machine()
    had = Amount(cpu=3, gpu=1, devices=(1,))
    books.has("old", had)
    books.has("old", had)
    with pytest.raises(Unavailable, match="of 2 that this machine has 0 are free"):
        books.take("new", Amount(cpu=0.1))
    assert books.take("new", Amount(gpu=1)).devices == (0,)
    books.give_back("old")
    assert books.take("newer", Amount(cpu=2, gpu=1)).devices == (1,)


AMOUNTS = st.builds(
    Amount,
    cpu=st.sampled_from([0, 0.1, 0.5, 1, 1.5]),
    gpu=st.sampled_from([0, 0.25, 0.5, 1, 2]),
    memory=st.sampled_from([0, 300, 700]),
)


@given(st.lists(st.tuples(st.integers(0, 5), st.one_of(st.none(), AMOUNTS)), max_size=60))
def test_the_books_balance(entries: list[tuple[int, Amount | None]]) -> None:
    books, held = machine(), dict[str, Amount]()
    for number, amount in entries:
        who = str(number)
        if amount is None or who in held:
            books.give_back(who)
            held.pop(who, None)
            continue
        try:
            held[who] = books.take(who, amount)
        except Unavailable:
            continue
        assert sum(a.cpu for a in held.values()) <= 2 + 1e-3
        assert sum(a.memory for a in held.values()) <= 1_000
        for device in (0, 1):
            assert sum(min(1, a.gpu) for a in held.values() if device in a.devices) <= 1 + 1e-3
    for who in list(held):
        books.give_back(who)
    assert books.take("all", Amount(cpu=2, gpu=2, memory=1_000)).devices == (0, 1)


def test_this_machine() -> None:
    here().take("a", Amount(cpu=0.5, memory=2**20))
    with pytest.raises(Unavailable):
        here().take("a", Amount(cpu=10_000))
