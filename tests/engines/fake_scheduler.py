"""Stands in for `prebled.worker.sglang_child`: misbehaves as its first argument says, without SGLang."""

from __future__ import annotations

import os
import signal
import sys
import time

import msgspec
import zmq

from prebled.worker.sglang_child import ChildFailed, SchedulerSpec


def main(mode: str, argument: str) -> int:
    spec = msgspec.json.decode(argument, type=SchedulerSpec)
    with zmq.Context() as context, context.socket(zmq.PUSH) as outputs, context.socket(zmq.PULL) as requests:
        outputs.connect(spec.outputs)
        requests.connect(spec.requests)
        match mode:
            case "exit":
                return 3
            case "refuse":
                outputs.send(msgspec.msgpack.encode(ChildFailed(spec.rank, "ValueError: no such thing")))
                return 1
            case "quit":  # as SGLang's watchdog does when a scheduler hangs
                os.kill(os.getppid(), signal.SIGQUIT)
                time.sleep(60)
            case "count":
                for number in range(5):
                    outputs.send(str(number).encode())
                return 0
            case "echo":
                outputs.send(b"ready")
                while True:
                    outputs.send(requests.recv())
    raise ValueError(mode)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
