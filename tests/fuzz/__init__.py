"""Machines that turn bytes into what peers and programs may do to a connection, in any order and at
any time, and that check after each step what must always hold: ``server.py`` and ``client.py`` are
one side under a peer that sends anything, ``pair.py`` is both sides with each other.

``tests/unit/wire/test_fuzz.py`` runs them on bytes of Hypothesis, ``scripts/fuzz`` on bytes that
are guided by coverage. The connections are the real ones; only the transport is made of memory, so
that each input gives the same run.
"""
