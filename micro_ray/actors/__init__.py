"""The room of Ray: every platform service as a pool of detached, named actors. ``member.py`` is
what they are made of, ``launch.py`` starts and supervises them, ``backends.py`` opens what a
setting's URL names; and one file per noun."""
