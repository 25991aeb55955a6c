"""The sockets on which a server listens."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from micro_ray.errors import Conflict, Unavailable
from micro_ray.wire.address import Address

__all__ = ["BACKLOG", "bind_tcp", "bind_unix"]

#: Connections waiting to be accepted.
BACKLOG = 1024


def bind_unix(path: str) -> socket.socket:
    _make_way(path)
    bound = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        bound.bind(path)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict("wire", f"another process took {path} meanwhile") from None
        raise Unavailable(
            "wire", f"cannot listen on {path}: {os.strerror(error.errno or 0)}"
        ) from None
    finally:
        os.umask(before)
    bound.setblocking(False)
    return bound


def bind_tcp(where: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in where.host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((where.host, where.port))
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict("wire", f"another process listens on {where}") from None
        raise Unavailable("wire", f"cannot listen on {where}: {error.strerror or error}") from None
    bound.setblocking(False)
    return bound


def _make_way(path: str) -> None:
    """Remove the socket of a process that is gone. Raises Conflict for anything else."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(mode):
        raise Conflict("wire", f"{path} is in the way: it is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        except FileNotFoundError:
            return
        except BlockingIOError:
            raise Conflict("wire", f"another process listens on {path} and is busy") from None
        except OSError as error:
            raise Conflict("wire", f"{path} is in the way: {error.strerror or error}") from None
        else:
            raise Conflict("wire", f"another process listens on {path}")
