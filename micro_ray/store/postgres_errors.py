"""What a database's errors mean: try again, the line is gone, or something to tell the caller."""

from __future__ import annotations

import psycopg

from micro_ray.errors import InternalError, MicroError, Unavailable

__all__ = ["crowded", "lost", "refused", "told"]

#: Classes of codes after which the connection is of no more use, and codes by themselves.
_LOST_CLASSES = ("08", "57P")
_LOST = ("25006", "25P03", "25P04", "40003")
#: Codes of an answer that will be the same until somebody changes the settings or the database.
_REFUSED = {
    "28P01": "correct user and password",
    "28000": "correct the user, or the server's rules for who may log in",
    "3D000": "create the database, or name another",
    "42501": "grant the user what it lacks",
}
_CONNECTING = ("connection failed", "connection is bad")
_BROKEN = ("SYSCALL", "closed", "reset", "timeout")
_TLS = ("certificate", "SSL", "sslmode", "sslrootcert", "TLS")


def crowded(error: psycopg.Error) -> bool:
    """Another transaction came between: nothing was done, and the same again may succeed."""
    return error.sqlstate in ("40001", "40P01")


def lost(error: psycopg.Error) -> bool:
    """The connection ended, so what was sent last may have been done or not."""
    code = error.sqlstate
    if code is not None:
        return code in _LOST or code.startswith(_LOST_CLASSES)
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)


def refused(error: psycopg.Error) -> str | None:
    """What to correct when a connection is refused for a reason that does not pass by itself. While
    one connects, libpq gives its errors no code; they are known by the server's words."""
    text = str(error)
    if error.sqlstate in _REFUSED:
        return f"{_line(text)}: {_REFUSED[error.sqlstate]}"
    if error.sqlstate is not None or not text.startswith(
        ("connection failed", "connection is bad")
    ):
        return None
    advice = None
    if "password authentication failed" in text or "no password supplied" in text:
        advice = _REFUSED["28P01"]
    elif "pg_hba.conf" in text or ("role " in text and "does not exist" in text):
        advice = _REFUSED["28000"]
    elif "database " in text and "does not exist" in text:
        advice = _REFUSED["3D000"]
    elif any(word in text for word in _TLS) and not any(word in text for word in _BROKEN):
        advice = "correct sslmode, sslrootcert, sslcert and sslkey in the URL"
    return None if advice is None else f"{_line(text)}: {advice}"


def told(error: BaseException, name: str) -> MicroError:
    """The error for a caller; nothing was done."""
    if isinstance(error, MicroError):
        return error
    if isinstance(error, psycopg.Error) and (what := refused(error)) is not None:
        return Unavailable("store", f"{name}: {what}", 1.0)
    text = _line(str(error)) or type(error).__name__
    code = error.sqlstate if isinstance(error, psycopg.Error) else None
    if code == "57014":
        return Unavailable("store", f"{name} took too long: ask for less at a time", 1.0)
    if code is not None and code.startswith("53"):
        return Unavailable("store", f"{name}: {text}; give it disk, memory or connections", 1.0)
    if code is None or code[:2] in ("08", "25", "40", "57"):
        return Unavailable("store", f"{name}: {text}; try again", 1.0)
    return InternalError("store", f"{name}: {text} ({code})")


def _line(text: str) -> str:
    """The first line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:500] if lines else ""
