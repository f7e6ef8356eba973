"""Where a daemon keeps its sockets and its lock, and where a client looks for them.

Pure: the environment is passed in, and only `find_socket` looks at the file system.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SOCKET_NAME = "prebled.sock"
FABRIC_NAME = "fabric.sock"
SYSTEM_DIR = Path("/run/prebled")


def daemon_runtime_dir(configured: str, env: Mapping[str, str], uid: int) -> Path:
    """The daemon's runtime directory: as configured, else `$RUNTIME_DIRECTORY` (systemd), else the user's own."""
    if configured:
        return Path(configured)
    # systemd gives a list where a unit has several; the first is ours.
    given = env.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(given) if given else user_runtime_dir(env, uid)


def user_runtime_dir(env: Mapping[str, str], uid: int) -> Path:
    """`/run/prebled` for root, else `$XDG_RUNTIME_DIR/prebled`, else a folder of the user's own in `/tmp`."""
    if uid == 0:
        return SYSTEM_DIR
    base = env.get("XDG_RUNTIME_DIR", "")
    return Path(base) / "prebled" if base else Path(f"/tmp/prebled-{uid}")


def find_socket(env: Mapping[str, str], name: str = SOCKET_NAME, configured: str = "") -> str:
    """Address of the socket `name` of the daemon that somebody means who names none: in the configured runtime
    directory (by default `$PREBLED_RUNTIME_DIR`), else in the user's own, else in the system's if it is there."""
    configured = configured or env.get("PREBLED_RUNTIME_DIR", "")
    if configured:
        return f"unix:{Path(configured) / name}"
    own = user_runtime_dir(env, os.getuid()) / name
    system = SYSTEM_DIR / name
    return f"unix:{system if _is_there(system) and not _is_there(own) else own}"


def _is_there(path: Path) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # there, but not for us to see: connecting will say why
        return True
    return True
