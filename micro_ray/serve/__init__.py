"""The room of Ray Serve: ``api.py`` is the HTTP door as a deployment, ``listener.py`` the listener
that each of its replicas runs."""
