"""The blocking client, for programs without an event loop; any number of threads may share one.

A thread per connection reads and books what arrives (`Session`, under the connection's lock) and wakes the waiting
callers; requests are written by the callers' own threads. No asyncio: `prebled status` has to start in no time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from types import TracebackType
from typing import Self, Unpack

from prebled.addresses import Address, UnixAddress, parse_address
from prebled.client.requests import Messages, Options, Prompt, chat_request, prompt_request
from prebled.client.session import (
    UNREAD_TOKENS,
    Answer,
    Call,
    CallView,
    Question,
    Reply,
    Session,
    TokenChunk,
    cannot_connect,
    client_closed,
    lost,
    no_answer,
)
from prebled.core.decisions import Explanation
from prebled.errors import PrebledError
from prebled.messages import DaemonStatus, Generate, GetDecision, GetStatus
from prebled.runtime_dir import find_socket
from prebled.wire import PREFACE

READ_BYTES = 256 * 1024


class _Connection:
    """One socket to the daemon, its reading thread, and the lock over everything booked for its calls.

    The reading thread writes as well (cancels of slow readers) and may block there only as long as the daemon does not
    read; the daemon always reads, whatever it has to write.
    """

    def __init__(self, address: Address, timeout_s: float, unread_tokens: int) -> None:
        self.lock = threading.Lock()
        self.session = Session(unread_tokens)
        self._address = address
        self._sending = threading.Lock()
        self._socket = _dial(address, timeout_s)
        self._thread = threading.Thread(target=self._read, name="prebled-client", daemon=True)
        self.write(PREFACE)
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Send all of `data`. A connection that breaks on the way is failed for all its calls."""
        try:
            with self._sending:
                self._socket.sendall(data)
        except OSError as error:
            self.close(lost(self._address, error.strerror or str(error)))
        except BaseException:  # an interrupt: half a frame may be out, after which nothing else can follow
            self.close(lost(self._address, "interrupted while sending"))
            raise

    def open(self, request: Generate | Question) -> tuple[Call, threading.Condition, bytes]:
        """A new call, what is notified of its changes, and the frame to write."""
        changed = threading.Condition(self.lock)
        with self.lock:
            call, frame = self.session.open(request, changed.notify_all)
        return call, changed, frame

    def close_call(self, call: Call) -> None:
        """Give a call up; the daemon is told if it still runs."""
        with self.lock:
            cancel = self.session.close(call)
        if cancel:
            self.write(cancel)

    def close(self, error: PrebledError) -> None:
        """End every call with `error` and drop the socket; the reading thread then ends by itself."""
        with self.lock:
            self.session.fail(error)
        with contextlib.suppress(OSError):  # the peer may have gone before
            self._socket.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait until the reading thread has ended; after `close`."""
        self._thread.join()

    def _read(self) -> None:
        error: PrebledError = lost(self._address, "closed by the daemon")
        try:
            while data := self._socket.recv(READ_BYTES):
                with self.lock:
                    cancels = self.session.feed(data)
                if cancels:
                    self.write(cancels)
        except PrebledError as told:
            error = told
        except OSError as broken:
            error = lost(self._address, broken.strerror or str(broken))
        finally:
            with self.lock:
                self.session.fail(error)
            self._socket.close()


class Stream(CallView):
    """An answer in the making: an iterator of `TokenChunk`.

    Iterating raises a `prebled.errors.PrebledError` where the request fails midway. Leaving a `with` block, or `close`,
    cancels what still runs; `close` may be called from another thread. A stream whose reader falls too far behind is
    ended with `SlowReader`.
    """

    def __init__(self, connection: _Connection, request: Generate) -> None:
        self._connection = connection
        self._call, self._changed, frame = connection.open(request)
        try:
            connection.write(frame)
            self._wait_accepted()
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenChunk:
        with self._changed:
            while True:
                chunk = self._call.take_nowait()
                if chunk is not None:
                    return chunk
                if self._call.has_ended:
                    raise StopIteration
                self._changed.wait()

    def collect(self) -> Answer:
        """Read to the end; what was not read yet, as one answer."""
        return self._call.answer(list(self))

    def text(self) -> str:
        """Read to the end; the text that was not read yet."""
        return self.collect().text

    def close(self) -> None:
        """Cancel the request if it still runs. Any number of times."""
        self._connection.close_call(self._call)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait_accepted(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._call.request_id or self._call.has_ended)
            if self._call.error is not None and not self._call.chunks:
                raise self._call.error


class Client:
    """A client of one daemon, for any number of threads. Arguments and errors as for `AsyncClient`.

    ```python
    with Client("unix:///run/prebled/prebled.sock") as client:
        with client.generate("Once upon a time", max_tokens=64) as stream:
            for chunk in stream:
                print(chunk.text, end="", flush=True)
        print(client.chat([{"role": "user", "content": "Hello!"}]).text())
    ```
    """

    def __init__(self, address: str = "", *, timeout_s: float = 10.0, unread_tokens: int = UNREAD_TOKENS) -> None:
        self._address = parse_address(address or find_socket(os.environ))
        self._timeout_s = timeout_s
        self._unread_tokens = unread_tokens
        self._connection: _Connection | None = None
        self._connecting = threading.Lock()
        self._is_closed = False

    def generate(self, prompt: Prompt, **options: Unpack[Options]) -> Stream:
        """Continue a prompt, given as text or token ids; returns once the daemon has accepted it."""
        request = prompt_request(prompt, options)
        return Stream(self._connected(), request)

    def chat(self, messages: Messages, **options: Unpack[Options]) -> Stream:
        """Answer a chat under the model's own template; returns once the daemon has accepted it."""
        request = chat_request(messages, options)
        return Stream(self._connected(), request)

    def status(self) -> DaemonStatus:
        """The daemon and its workers."""
        return self._ask(GetStatus(call=0), DaemonStatus)

    def explain(self, request_id: str) -> Explanation:
        """Why a request was placed where it was, or refused. Raises NotFound for one that the daemon does not know, or
        no longer remembers."""
        return self._ask(GetDecision(0, request_id), Explanation)

    def _ask(self, question: Question, kind: type[Reply]) -> Reply:
        connection = self._connected()
        call, changed, frame = connection.open(question)
        connection.write(frame)
        with changed:
            has_answer = changed.wait_for(lambda: call.has_ended, self._timeout_s)
        if not has_answer:
            connection.close_call(call)
            raise no_answer(self._address, self._timeout_s)
        if not isinstance(call.reply, kind):
            raise call.error or lost(self._address, f"no {kind.__name__} in its answer")
        return call.reply

    def close(self) -> None:
        """Drop the connection: what still runs is cancelled, and its streams end with `ConnectionLost`."""
        self._is_closed = True
        with self._connecting:  # a connection in the making is dropped as well
            if self._connection is not None:
                self._connection.close(client_closed(self._address))
                self._connection.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connected(self) -> _Connection:
        with self._connecting:
            if self._is_closed:
                raise client_closed(self._address)
            if self._connection is None or self._connection.session.is_lost:
                self._connection = _Connection(self._address, self._timeout_s, self._unread_tokens)
            return self._connection


def _dial(address: Address, timeout_s: float) -> socket.socket:
    try:
        if isinstance(address, UnixAddress):
            dialled = _dial_unix(address.path, timeout_s)
        else:
            dialled = socket.create_connection((address.host, address.port), timeout_s)
            dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except TimeoutError:
        raise no_answer(address, timeout_s) from None
    except OSError as error:
        raise cannot_connect(address, error) from error
    dialled.settimeout(None)
    return dialled


def _dial_unix(path: str, timeout_s: float) -> socket.socket:
    dialled = socket.socket(socket.AF_UNIX)
    dialled.settimeout(timeout_s)
    try:
        dialled.connect(path)
    except BaseException:
        dialled.close()
        raise
    return dialled
