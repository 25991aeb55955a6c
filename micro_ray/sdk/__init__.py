"""What a service is made with, and what calls one: ``service.py`` (Service), ``client.py``
(AsyncClient), ``blocking.py`` (Client, for plain scripts), ``testing.py`` (a platform in-process
for tests). It speaks frames and never imports Ray."""
