"""Binding of listening sockets: a socket file left by a dead daemon is replaced, a live one never.

Errors are `SettingsError`s that name the address.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat

from prebled.addresses import Address, UnixAddress
from prebled.errors import SettingsError

MODE = 0o660
"""Who may connect: the daemon's user and group."""


def bind_unix(address: UnixAddress) -> tuple[socket.socket, int]:
    """A bound, not yet listening socket with mode 0660, and the inode of its file. Raises SettingsError.

    Its folder must exist. Between the look at an old file and its removal another daemon could start to listen there;
    the lock on the runtime directory keeps daemons apart.
    """
    listener = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(address)
        listener.bind(address.path)
        # Nobody can connect before listen(), so there is no moment with a wider mode.
        os.chmod(address.path, MODE)
        return listener, os.stat(address.path).st_ino
    except OSError as error:
        listener.close()
        raise cannot_listen(address, error) from error
    except BaseException:
        listener.close()
        raise


def unlink_unix(path: str, inode: int) -> None:
    """Remove our socket file, unless it is gone or another daemon's by now."""
    with contextlib.suppress(OSError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


def cannot_listen(address: Address, error: OSError) -> SettingsError:
    """The one wording of an address that cannot be had."""
    return SettingsError(f"cannot listen on {address}: {error.strerror or error}")


def _remove_stale(address: UnixAddress) -> None:
    try:
        mode = os.stat(address.path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SettingsError(f"cannot listen on {address}: a file that is no socket is there")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # a live one with a full backlog must not hold us up
        try:
            probe.connect(address.path)
        except ConnectionRefusedError:
            os.unlink(address.path)
            return
        except BlockingIOError:
            pass
    raise SettingsError(f"cannot listen on {address}: another process listens there")
