"""A worker process that misbehaves as its first argument says. Not imported: run by the supervisor under test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def main() -> None:
    mode, marks = sys.argv[1], sys.argv[2]
    if mode == "obstinate":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "parent":
        child = subprocess.Popen(SLEEP)
        os.write(1, f"child {child.pid}\n".encode())
    # Only now, so that whoever sees the mark finds all of the above done.
    with open(marks, "a") as file:
        file.write(f"{os.getpid()}\n")
    match mode:
        case "exits":
            sys.exit(3)
        case "dies-later":
            time.sleep(0.2)
            os.kill(os.getpid(), signal.SIGSEGV)
        case "talks":
            while True:
                os.write(1, b"still here\n")
                time.sleep(0.01)
        case _:
            time.sleep(600)


main()
