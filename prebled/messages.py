"""Every struct that crosses a process border, grouped by direction, with one prebuilt codec each. One module, long as
it is: a protocol is read as a whole.

Evolution: structs are array-like, so fields are only ever appended, with defaults; a field never changes its type. A
change that breaks this raises `PROTOCOL_VERSION`, and peers of another version are refused by name.

Token ids travel as bytes of little-endian uint32 where there may be many (prompts), as ints where there are few.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from prebled.core.decisions import Explanation
from prebled.core.types import Epoch, RunId, WorkerId

PROTOCOL_VERSION = 2

FinishReason: TypeAlias = Literal["stop", "length", "abort"]
"""`stop`: an end-of-sequence or stop token, or (set by the daemon) a stop string. `abort`: asked for by the daemon."""


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=False):
    """Base of everything on the wire."""


# --- parts ------------------------------------------------------------------------------------------------------


class Sampling(Message, frozen=True):
    """How to choose tokens. Ranges are checked by the daemon and again by the worker before the engine sees them.

    `max_tokens` >= 1; `temperature` >= 0 (0 is greedy); 0 < `top_p` <= 1; `top_k` -1 (off) or >= 1;
    0 <= `min_p` <= 1. `seed` is best effort.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None


class Capacity(Message, frozen=True):
    """What a worker's engine can hold, as the engine itself says once it is loaded.

    `kv_tokens`: size of the KV cache. `max_total_tokens`: most prompt + output tokens of one request (the lesser of
    the context and what fits into the KV cache). `max_prompt_tokens`: longest prompt the engine takes.
    `block_tokens`: the engine's page size. `max_running`: most requests in one batch.
    """

    model: str
    engine: str
    device: str
    block_tokens: int
    kv_tokens: int
    max_prompt_tokens: int
    max_total_tokens: int
    vocab_size: int
    max_running: int


class Chunk(Message, frozen=True):
    """Tokens of one run, in order. `cached_tokens` >= 0 on the first chunk of a run: the prompt tokens that the
    engine took from its cache; -1 on later ones."""

    run_id: RunId
    tokens: tuple[int, ...]
    cached_tokens: int = -1


class KvStored(Message, frozen=True):
    """Blocks that are in the cache now: a run of `hashes` (8 bytes each, as in `core.blocks.hash_path`), each block
    following the one before it. `parent`: the hash of the block before the run; empty where a prompt begins."""

    parent: bytes
    hashes: bytes


class KvRemoved(Message, frozen=True):
    """Blocks that are no longer in the cache, each with all that followed it: the first block of each run that went
    (8 bytes each)."""

    hashes: bytes


class KvCleared(Message, frozen=True):
    """The cache is empty now."""


KvChange: TypeAlias = KvStored | KvRemoved | KvCleared


class StepSample(Message, frozen=True):
    """What one step of the engine computed, and the seconds it took.

    `new_tokens`: prompt tokens computed, of all prompts in the step; `prompt_context_tokens`: the contexts that these
    prompts reached, summed; `attention`: new tokens times reached context, summed over prompts. `sequences`: runs that
    made a token by decoding; `context_tokens`: their contexts, summed. `step_s`: the whole step, from the end of the
    step before it (or from when there was something to do); `model_s`: the part of it spent in the model; `order_s`:
    the part spent on ordering the queue."""

    new_tokens: int
    prompt_context_tokens: int
    attention: int
    sequences: int
    context_tokens: int
    step_s: float
    model_s: float
    order_s: float = 0.0


# --- daemon -> worker (ROUTER -> DEALER, ordered while connected) -------------------------------------------------


class Welcome(Message, frozen=True):
    """Answer to Hello. `daemon_epoch` is 8 bytes, new for each life of the daemon; the worker publishes its frames
    under this topic, and only after it has seen the daemon's subscription to it. `model`: the name that block hashes
    start from (`core.blocks.namespace_seed`)."""

    daemon_epoch: bytes
    model: str = ""


class Refused(Message, frozen=True):
    """Answer to Hello: the daemon will not have this worker (protocol version, block size, ...). The worker exits."""

    reason: str


class Introduce(Message, frozen=True):
    """The daemon heard from a worker it does not know (it restarted): say Hello."""


class Pulse(Message, frozen=True):
    """The daemon lives. Sent to every worker once a beat."""


class Submit(Message, frozen=True):
    """Start a run. `tokens`: prompt ids, uint32 LE (for a continued request: prompt plus tokens already sent)."""

    run_id: RunId
    tokens: bytes
    sampling: Sampling
    cache_salt: str = ""


class Batch(Message, frozen=True):
    """Runs placed on this worker in one turn of the daemon's loop."""

    submits: tuple[Submit, ...]


class Abort(Message, frozen=True):
    """End these runs now and free their KV; unknown ids are ignored."""

    run_ids: tuple[RunId, ...]


class Replay(Message, frozen=True):
    """Send the frames first_seq..last_seq (inclusive) again, from the ring."""

    first_seq: int
    last_seq: int


class GetSnapshot(Message, frozen=True):
    """Say what the cache holds: answered by `KvSnapshot`."""


class Drain(Message, frozen=True):
    """Take no new runs; finish those at hand."""


class Stop(Message, frozen=True):
    """Abort everything, stop the engine and exit."""


ToWorker: TypeAlias = Welcome | Refused | Introduce | Pulse | Batch | Abort | Replay | GetSnapshot | Drain | Stop


# --- worker -> daemon (DEALER -> ROUTER, ordered while connected) -------------------------------------------------

WorkerPhase: TypeAlias = Literal["loading", "ready", "draining", "stopping"]


class Hello(Message, frozen=True):
    """First message to a daemon, and again to each new life of one."""

    protocol: int
    worker_id: WorkerId
    epoch: Epoch
    pid: int
    engine: str


class Ready(Message, frozen=True):
    """The engine serves and the subscription was seen. `next_seq`: the first frame this daemon is to expect."""

    epoch: Epoch
    capacity: Capacity
    next_seq: int


class Beat(Message, frozen=True):
    """Once a beat. `last_seq`: the newest frame published (0: none). `detail`: what is being loaded, for people.
    `steps`: steps since the last beat, in order; the newest of them if they are many, and `steps_left_out` more."""

    epoch: Epoch
    phase: WorkerPhase
    last_seq: int = 0
    queued: int = 0
    running: int = 0
    kv_used_tokens: int = 0
    detail: str = ""
    steps: tuple[StepSample, ...] = ()
    steps_left_out: int = 0


class Done(Message, frozen=True):
    """A run has ended; frames up to `last_seq` hold all its tokens. `output_tokens` counts this run's own tokens."""

    epoch: Epoch
    run_id: RunId
    last_seq: int
    reason: FinishReason
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


class Failed(Message, frozen=True):
    """A run was refused or lost by the engine. `code` is a code of `prebled.errors`; `retryable`: another worker may
    do better."""

    epoch: Epoch
    run_id: RunId
    code: str
    message: str
    retryable: bool = False


class Replayed(Message, frozen=True):
    """Answer to Replay: encoded frames in order, starting at `first_seq`. Frames asked for but older than the
    ring are not there: `first_seq` is then above what was asked."""

    epoch: Epoch
    first_seq: int
    frames: tuple[bytes, ...]


class KvSnapshot(Message, frozen=True):
    """All that the cache held when the frame `last_seq` had been published, parents before children. Sent before Ready
    and when asked for. A large one comes in parts, numbered from 0."""

    epoch: Epoch
    last_seq: int
    runs: tuple[KvStored, ...]
    part: int = 0
    is_last: bool = True


class Leaving(Message, frozen=True):
    """The worker exits (stopped, drained, or its engine died); no more will come from this epoch."""

    epoch: Epoch
    reason: str


FromWorker: TypeAlias = Hello | Ready | Beat | Done | Failed | Replayed | KvSnapshot | Leaving


# --- worker -> daemon (XPUB -> SUB; may be dropped by ZeroMQ, hence epoch and seq) --------------------------------


class Tokens(Message, frozen=True):
    """All token chunks of one engine step. `seq` counts from 1 within an epoch, without holes."""

    epoch: Epoch
    seq: int
    chunks: tuple[Chunk, ...]


class KvChanged(Message, frozen=True):
    """How the cache has changed, in order. Numbered with the token frames: what a run stored comes before its Done."""

    epoch: Epoch
    seq: int
    changes: tuple[KvChange, ...]


Frame: TypeAlias = Tokens | KvChanged


# --- client <-> daemon (length-prefixed msgpack over a Unix or TCP socket) ----------------------------------------


class Usage(Message, frozen=True):
    """Token counts of a request: the client's prompt, the tokens generated, and the prompt tokens that the first
    placement found in its cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class ChatMessage(Message, frozen=True):
    """One turn of a chat."""

    role: str
    content: str


class Generate(Message, frozen=True):
    """Ask for tokens. Exactly one of `prompt` (text), `prompt_tokens` (uint32 LE) and `messages` is set. `call` names
    this request on its connection. `max_tokens` None: as many as fit. Empty `model`: the served one."""

    call: int
    prompt: str | None = None
    prompt_tokens: bytes | None = None
    messages: tuple[ChatMessage, ...] | None = None
    model: str = ""
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    cache_salt: str = ""


class Cancel(Message, frozen=True):
    """End the request `call`; no answer is given but the stream's own end is no longer sent."""

    call: int


class GetStatus(Message, frozen=True):
    """Ask for a `Status`."""

    call: int


class GetDecision(Message, frozen=True):
    """Ask for the newest decision on a request, `DecisionReply`; an Error (`not_found`) if nobody remembers it."""

    call: int
    request_id: str


ToDaemon: TypeAlias = Generate | Cancel | GetStatus | GetDecision


class Started(Message, frozen=True):
    """The request was accepted under this id (the one `x-request-id` and `explain` use)."""

    call: int
    request_id: str


class Text(Message, frozen=True):
    """More output: the new text and the ids behind it (text may lag behind the ids by an unfinished character)."""

    call: int
    text: str
    tokens: tuple[int, ...]


class Finished(Message, frozen=True):
    """The request ended well."""

    call: int
    reason: FinishReason
    usage: Usage


class Error(Message, frozen=True):
    """The request `call` ended badly; `call` None: the connection itself is at fault and will be closed."""

    call: int | None
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None


class WorkerStatus(msgspec.Struct, frozen=True):
    """One worker, as `prebled status` and `workers list` show it. Token counts; `state` as in core.workers."""

    id: str
    pid: int
    state: str
    engine: str
    device: str
    queued: int
    running: int
    kv_used_tokens: int
    kv_total_tokens: int
    epoch: int = 0
    restarts: int = 0
    detail: str = ""


class DaemonStatus(msgspec.Struct, frozen=True):
    """The daemon, as `prebled status --json` prints it."""

    ready: bool
    draining: bool
    model: str
    policy: str
    pid: int
    version: str
    uptime_s: float
    waiting: int
    running: int
    workers: tuple[WorkerStatus, ...]
    http: tuple[str, ...] = ()
    listen: tuple[str, ...] = ()
    counters: dict[str, int] = {}


class StatusReply(Message, frozen=True):
    """Answer to GetStatus."""

    call: int
    status: DaemonStatus


class DecisionReply(Message, frozen=True):
    """Answer to GetDecision."""

    call: int
    explanation: Explanation


FromDaemon: TypeAlias = Started | Text | Finished | Error | StatusReply | DecisionReply


# --- codecs, one per direction ------------------------------------------------------------------------------------

ENCODER = msgspec.msgpack.Encoder()
TO_WORKER = msgspec.msgpack.Decoder(ToWorker)
FROM_WORKER = msgspec.msgpack.Decoder(FromWorker)
FRAME = msgspec.msgpack.Decoder(Frame)
TO_DAEMON = msgspec.msgpack.Decoder(ToDaemon)
FROM_DAEMON = msgspec.msgpack.Decoder(FromDaemon)

encode = ENCODER.encode
