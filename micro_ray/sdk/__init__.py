"""What a service is made with, and what calls one: ``service.py`` (Service), ``client.py``
(AsyncClient), ``blocking.py`` (Client, for plain scripts), ``testing.py`` (a platform in-process
for tests). It speaks frames, and gRPC to the doors of other
machines (``remote.py``, ``environments.py``), and never imports Ray."""
