"""SGLang's KV events among its outputs: runs inside the scheduler's process, on rank 0.

SGLang 0.5.23 publishes what its cache did over a socket of its own, after it has sent a step's outputs, and while it
only decodes after every 40th step. A worker has to know what a run stored before it learns that the run has ended. So
the events leave over the very socket of the outputs, right before each of them: ZeroMQ keeps the order of one socket
and, without a bound on its queue, drops nothing on it. So there is no number to check and nothing to replay; where this
connection fails, the engine has failed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from prebled.worker.sglang_kv import kv_frame

if TYPE_CHECKING:
    from sglang.srt.disaggregation.kv_events import EventBatch
    from sglang.srt.managers.scheduler import Scheduler

PUBLISHER = "prebled"
"""What `kv_events_config` calls it."""


class KvOutput:
    """An `EventPublisher` of SGLang's, and the hooks that make it publish in time. One per process, as there is one
    scheduler."""

    def __init__(self) -> None:
        self._scheduler: Scheduler | None = None
        self._encode = msgspec.msgpack.Encoder().encode

    def after_init(self, result: None, scheduler: Scheduler) -> None:
        """After `Scheduler.init_kv_events_publisher`."""
        self._scheduler = scheduler

    def before_outputs(self, *args: Any, **options: Any) -> None:
        """Before `SchedulerOutputStreamer.stream_output`; what a finished run leaves in the cache is there already."""
        if self._scheduler is not None:
            self._scheduler.kv_events_publisher.publish_kv_events()

    def publish(self, batch: EventBatch) -> None:
        """Send these events to the worker."""
        assert self._scheduler is not None, "SGLang did not take the hook `after_init`"
        self._scheduler.ipc_channels.send_to_detokenizer.socket.send(kv_frame(self._encode(batch.events)))

    def describe_local_source(self, block_size: int) -> None:
        """Nobody else can subscribe."""

    def shutdown(self) -> None:
        """Nothing to end."""


OUTPUT = KvOutput()
"""The one of this process."""
