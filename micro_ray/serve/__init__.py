"""The room of Ray Serve: the doors as deployments (``api.py`` for HTTP, ``proxy_door.py`` for
gRPC), each with the listener that its replicas run, and what a gRPC door is made of."""
