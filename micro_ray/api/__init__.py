"""api: services over HTTP and JSON.

A pure ASGI application that knows neither its server nor its transport: it is given a
:class:`~micro_ray.network.network.Network` and the watched table of routes. ``app.py`` answers a
request; ``paths.py`` finds the endpoint of a path, by the rule or by a template that
``templates.py`` has read; ``body.py`` makes the request's bytes, with fields that ``fields.py``
types; ``streams.py`` and ``websocket.py`` carry streams; ``origins.py`` says which pages of a
browser may call; ``openapi.py`` and ``metrics.py`` describe.

Bytes pass through: a JSON body reaches the service as it came, and the answer the client.
"""
