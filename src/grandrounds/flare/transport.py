"""Envelopes travel as NVFlare's auxiliary messages: small ones are pushed, large ones fetched."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, cast
from uuid import uuid4

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

from grandrounds.core.names import check_name
from grandrounds.engines.remote import ConnectionInterrupted

ASK, MAIL = "grandrounds.ask", "grandrounds.mail"
SERVER = "server"  # NVFlare's name for the server of a job
SMALL = 2**20  # bytes; a larger envelope is fetched
AT_ONCE = 4 * 2**20  # bytes of one part of an envelope
Answering: TypeAlias = Callable[[bytes], bytes]
_PART = "grandrounds.part"
_FROM, _ENVELOPE, _TICKET, _SIZE, _START, _RECEIVED = (
    "from",
    "letter",
    "ticket",
    "size",
    "start",
    "came",
)
_TRIES, _PAUSE = 3, 0.5  # tries to fetch a part, and seconds between them
_STALLED = 10.0  # seconds in which a part must arrive


@dataclass
class _Incoming:
    """A large envelope that is being fetched."""

    ticket: str
    received: int = 0
    superseded: bool = False
    envelope: Future[bytes] = field(default_factory=Future[bytes])


class Transport:
    """Sends envelopes from `name` to the other parties of a job, and answers theirs.

    A large envelope is held here until its receiver has fetched it part by part, so that a slow
    connection differs from a dead one; and NVFlare 2.9 formats every request that it receives for a
    log line that is not written, which for 25 MB takes longer than to send them.

    Memory is bounded: of each of the `parties` one envelope is fetched at a time, none with more
    than `largest` bytes, and a stranger's none.
    """

    def __init__(
        self, context: FLContext, name: str, *, parties: Sequence[str], largest: int
    ) -> None:
        self._context = context
        self._name = name
        self._parties = frozenset(parties)
        self._largest = largest
        self._held: dict[str, tuple[str, bytes]] = {}  # the newest envelope for each party
        self._incoming: dict[str, _Incoming] = {}  # the newest one from each party
        self._fetchers = ThreadPoolExecutor(thread_name_prefix="fetch")
        self._register(_PART, self._hand_out)

    def answer(self, topic: str, answer: Answering) -> None:
        """Register `answer` for the envelopes of a topic."""
        self._register(topic, partial(self._reply, answer))

    def send(self, topic: str, to: str, envelope: bytes, timeout: float) -> bytes:
        """Send an envelope to another party of this job, and return the party's reply.

        Raises `ConnectionError` where no sign of life arrives in `timeout` seconds, and
        `ConnectionInterrupted` where that happens after others have arrived.
        """
        received, since = 0, time.monotonic()
        message = self._pack(to, envelope)
        while True:
            with _after(received):
                reply = self._request(to, topic, message, timeout)
            if _RECEIVED not in reply:
                break
            if reply[_RECEIVED] > received:
                received, since = int(reply[_RECEIVED]), time.monotonic()
            elif time.monotonic() - since > _STALLED:
                raise ConnectionInterrupted(
                    f"'{to}' has got {received} of {len(envelope)} bytes, and no more"
                )
        if self._held.get(to, ("", b""))[0] == message.get(_TICKET):  # not that of a newer envelope
            del self._held[to]
        if _TICKET not in reply:
            return cast(bytes, reply[_ENVELOPE])
        size: object = reply[_SIZE]
        if not isinstance(size, int) or not 0 < size <= self._largest:
            raise ConnectionError(f"'{to}' answers with more than this study's letters have")
        with _after(1):
            return self._fetch(to, _Incoming(str(reply[_TICKET])), size)

    def _register(self, topic: str, handle: Callable[[Shareable], Shareable]) -> None:
        def handler(topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:  # noqa: ARG001
            return handle(request)

        cast(Any, self._context.get_engine()).register_aux_message_handler(topic, handler)

    def _pack(self, to: str, envelope: bytes) -> Shareable:
        """Return a message with an envelope, or with a ticket for it."""
        message = make_reply(ReturnCode.OK)
        message[_FROM] = self._name
        self._held.pop(to, None)
        if len(envelope) <= SMALL:
            message[_ENVELOPE] = envelope
        else:
            ticket = uuid4().hex
            self._held[to] = (ticket, envelope)
            message[_TICKET], message[_SIZE] = ticket, len(envelope)
        return message

    def _request(self, to: str, topic: str, message: Shareable, timeout: float) -> Shareable:
        engine = cast(Any, self._context.get_engine())
        replies = engine.send_aux_request(
            targets=[to],
            topic=topic,
            request=message,
            timeout=timeout,
            fl_ctx=self._context,
            optional=True,
        )
        reply = cast(dict[str, Shareable], replies or {}).get(to)
        if reply is None:
            raise ConnectionError(f"'{to}' is not connected")
        code = cast(str, reply.get_return_code())
        if code != ReturnCode.OK:
            raise ConnectionError(f"'{to}' cannot be reached ({code})")
        return reply

    def _reply(self, answer: Answering, request: Shareable) -> Shareable:
        """Answer an envelope, or report how much of it was received."""
        sender = check_name(request[_FROM], "sender", ConnectionError)
        if sender not in self._parties:
            return make_reply(ReturnCode.BAD_REQUEST_DATA)
        if _TICKET not in request:
            return self._pack(sender, answer(cast(bytes, request[_ENVELOPE])))
        size: object = request[_SIZE]
        if not isinstance(size, int) or not 0 < size <= self._largest:
            return make_reply(ReturnCode.BAD_REQUEST_DATA)
        incoming = self._fetch_started(sender, str(request[_TICKET]), size)
        wait([incoming.envelope], timeout=_PAUSE)
        if not incoming.envelope.done():
            reply = make_reply(ReturnCode.OK)
            reply[_RECEIVED] = incoming.received
            return reply
        del self._incoming[sender]
        return self._pack(sender, answer(incoming.envelope.result()))

    def _fetch_started(self, sender: str, ticket: str, size: int) -> _Incoming:
        """Start to fetch an envelope, or return the fetch that was started."""
        incoming = self._incoming.get(sender)
        if incoming is None or incoming.ticket != ticket:
            if incoming:
                incoming.superseded = True
            incoming = self._incoming[sender] = _Incoming(ticket)
            incoming.envelope = self._fetchers.submit(self._fetch, sender, incoming, size)
        return incoming

    def _fetch(self, sender: str, incoming: _Incoming, size: int) -> bytes:
        parts = list[bytes]()
        for start in range(0, size, AT_ONCE):
            if incoming.superseded:
                raise ConnectionError(f"'{sender}' has sent a newer letter")
            parts.append(self._fetch_part(sender, incoming.ticket, start))
            if len(parts[-1]) > AT_ONCE:
                raise ConnectionError(f"'{sender}' sends larger parts than it was asked for")
            incoming.received += len(parts[-1])
        return b"".join(parts)

    def _fetch_part(self, sender: str, ticket: str, start: int) -> bytes:
        """Fetch a part of an envelope. Raises `ConnectionError`."""
        message = make_reply(ReturnCode.OK)
        message[_FROM], message[_TICKET], message[_START] = self._name, ticket, start
        for tries_left in reversed(range(_TRIES)):
            try:
                return cast(bytes, self._request(sender, _PART, message, _STALLED)[_ENVELOPE])
            except ConnectionError:
                if not tries_left:
                    raise
            time.sleep(_PAUSE)
        raise AssertionError

    def _hand_out(self, request: Shareable) -> Shareable:
        """Return a part of the envelope that is held for a party."""
        ticket, envelope = self._held.get(str(request[_FROM]), ("", b""))
        if ticket != request[_TICKET]:
            return make_reply(ReturnCode.BAD_REQUEST_DATA)
        reply = make_reply(ReturnCode.OK)
        start = int(request[_START])
        reply[_ENVELOPE] = envelope[start : start + AT_ONCE]
        return reply


@contextmanager
def _after(received: int) -> Generator[None, None, None]:
    """Turn a `ConnectionError` after data were received into a `ConnectionInterrupted`."""
    try:
        yield
    except ConnectionError as error:
        if received:
            raise ConnectionInterrupted(str(error)) from error
        raise
