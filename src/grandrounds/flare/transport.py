"""Envelopes travel as NVFlare's auxiliary messages: small ones are pushed, large ones fetched."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, cast
from uuid import uuid4

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

from grandrounds.engines.remote import ConnectionInterrupted

ASK, MAIL = "grandrounds.ask", "grandrounds.mail"
SERVER = "server"  # NVFlare's name for the server of a job
SMALL = 2**20  # bytes; a larger letter is fetched
AT_ONCE = 4 * 2**20  # bytes of one part
Answering: TypeAlias = Callable[[bytes], bytes]
_PART = "grandrounds.part"
_FROM, _LETTER, _TICKET, _SIZE, _START, _CAME = "from", "letter", "ticket", "size", "start", "came"
_TRIES, _PAUSE = 3, 0.5  # to fetch a part, and seconds between them
_STALLED = 10.0  # seconds in which a part must come


@dataclass
class _Coming:
    """A large letter on its way here."""

    ticket: str
    came: int = 0
    letter: Future[bytes] = field(default_factory=Future[bytes])


class Transport:
    """Brings sealed letters from `name` to the other parties of a job, and answers theirs.

    A large letter waits here until its receiver has fetched it part by part, so that a slow line
    is told from a dead one; and NVFlare 2.9 prints every request that comes in for a log line that
    nobody sees, which for 25 MB takes longer than to send them.
    """

    def __init__(self, context: FLContext, name: str) -> None:
        self._context = context
        self._name = name
        self._held: dict[str, tuple[str, bytes]] = {}  # the newest letter for each party
        self._coming: dict[str, _Coming] = {}  # the newest one from each party
        self._fetchers = ThreadPoolExecutor(thread_name_prefix="fetch")
        self._register(_PART, self._hand_out)

    def answer(self, topic: str, answer: Answering) -> None:
        """Let `answer` answer the letters of a topic from now on."""
        self._register(topic, partial(self._answered, answer))

    def send(self, topic: str, to: str, sealed: bytes, timeout: float) -> bytes:
        """Bring a sealed letter to another party of this job, and its answer back.

        Raises `ConnectionError` where no sign of life comes in `timeout` seconds, and `Interrupted`
        where that was so after others had come.
        """
        came, since = 0, time.monotonic()
        message = self._packed(to, sealed)
        while True:
            with _after(came):
                reply = self._sent(to, topic, message, timeout)
            if _CAME not in reply:
                break
            if reply[_CAME] > came:
                came, since = int(reply[_CAME]), time.monotonic()
            elif time.monotonic() - since > _STALLED:
                raise ConnectionInterrupted(
                    f"'{to}' has got {came} of {len(sealed)} bytes, and no more"
                )
        if self._held.get(to, ("", b""))[0] == message.get(_TICKET):  # not that of a newer letter
            del self._held[to]
        if _TICKET not in reply:
            return cast(bytes, reply[_LETTER])
        with _after(1):
            return self._fetched(to, _Coming(reply[_TICKET]), reply[_SIZE])

    def _register(self, topic: str, handle: Callable[[Shareable], Shareable]) -> None:
        def handler(topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:  # noqa: ARG001
            return handle(request)

        cast(Any, self._context.get_engine()).register_aux_message_handler(topic, handler)

    def _packed(self, to: str, sealed: bytes) -> Shareable:
        """Put a letter into a message, or a ticket for it."""
        message = make_reply(ReturnCode.OK)
        message[_FROM] = self._name
        self._held.pop(to, None)
        if len(sealed) <= SMALL:
            message[_LETTER] = sealed
        else:
            ticket = uuid4().hex
            self._held[to] = (ticket, sealed)
            message[_TICKET], message[_SIZE] = ticket, len(sealed)
        return message

    def _sent(self, to: str, topic: str, message: Shareable, timeout: float) -> Shareable:
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

    def _answered(self, answer: Answering, request: Shareable) -> Shareable:
        """Answer a letter, or say how much of it has come."""
        sender = str(request[_FROM])
        if _TICKET not in request:
            return self._packed(sender, answer(cast(bytes, request[_LETTER])))
        coming = self._begun(sender, str(request[_TICKET]), int(request[_SIZE]))
        wait([coming.letter], timeout=_PAUSE)
        if not coming.letter.done():
            reply = make_reply(ReturnCode.OK)
            reply[_CAME] = coming.came
            return reply
        del self._coming[sender]
        return self._packed(sender, answer(coming.letter.result()))

    def _begun(self, sender: str, ticket: str, size: int) -> _Coming:
        """Begin to fetch a letter, or find what was begun."""
        coming = self._coming.get(sender)
        if coming is None or coming.ticket != ticket:
            coming = self._coming[sender] = _Coming(ticket)
            coming.letter = self._fetchers.submit(self._fetched, sender, coming, size)
        return coming

    def _fetched(self, sender: str, coming: _Coming, size: int) -> bytes:
        parts = list[bytes]()
        for start in range(0, size, AT_ONCE):
            parts.append(self._part(sender, coming.ticket, start))
            coming.came += len(parts[-1])
        return b"".join(parts)

    def _part(self, sender: str, ticket: str, start: int) -> bytes:
        """Fetch a part of a letter. Raises `ConnectionError`."""
        message = make_reply(ReturnCode.OK)
        message[_FROM], message[_TICKET], message[_START] = self._name, ticket, start
        for tries_left in reversed(range(_TRIES)):
            try:
                return cast(bytes, self._sent(sender, _PART, message, _STALLED)[_LETTER])
            except ConnectionError:
                if not tries_left:
                    raise
            time.sleep(_PAUSE)
        raise AssertionError

    def _hand_out(self, request: Shareable) -> Shareable:
        """Hand out a part of the letter that is held for a party."""
        ticket, sealed = self._held.get(str(request[_FROM]), ("", b""))
        if ticket != request[_TICKET]:
            return make_reply(ReturnCode.BAD_REQUEST_DATA)
        reply = make_reply(ReturnCode.OK)
        start = int(request[_START])
        reply[_LETTER] = sealed[start : start + AT_ONCE]
        return reply


@contextmanager
def _after(came: int) -> Generator[None, None, None]:
    """Say of a line that breaks that it held before. Raises `Interrupted`."""
    try:
        yield
    except ConnectionError as error:
        if came:
            raise ConnectionInterrupted(str(error)) from error
        raise
