"""The room of frames: the protocol that carries calls between processes (docs/wire.md).

``protocol.py`` bytes to frames and back; ``connection.py`` streams, credit, keep-alive on one
connection; ``server.py`` and ``client.py`` its two sides; ``endpoints.py`` typed signatures to
handlers; ``host.py`` a service instance that listens and registers; and a face per noun
(``registry.py``, ``router.py``, ``network.py``, ``store.py``, ``config.py``, ``runtime.py``): the
endpoints that serve it, and the interface over a caller.
"""
