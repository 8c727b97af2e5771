"""Sealed letters as NVFlare's auxiliary messages: pushed at once, streamed where they are large."""

# NVFlare has no type stubs.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false

from collections.abc import Callable
from typing import Any, TypeAlias, cast

from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply

ASK, MAIL = "grandrounds.ask", "grandrounds.mail"

Handler: TypeAlias = Callable[[str, Shareable, FLContext], Shareable]

_LETTER = "letter"


def carried(context: FLContext, topic: str, to: str, sealed: bytes, timeout: float) -> bytes:
    """Bring a sealed letter to another party of this job, and its answer back.

    Raises `ConnectionError` where none comes in `timeout` seconds.
    """
    message = Shareable()
    message[_LETTER] = sealed
    engine = cast(Any, context.get_engine())
    replies = engine.send_aux_request(
        targets=[to], topic=topic, request=message, timeout=timeout, fl_ctx=context, optional=True
    )
    reply = cast(dict[str, Shareable], replies or {}).get(to)
    if reply is None:
        raise ConnectionError(f"'{to}' is not connected")
    code = cast(str, reply.get_return_code())
    if code != ReturnCode.OK:
        raise ConnectionError(f"'{to}' cannot be reached ({code})")
    return cast(bytes, reply[_LETTER])


def answering(answer: Callable[[bytes], bytes]) -> Handler:
    """Turn what answers sealed letters into a handler of messages."""

    def handle(topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:  # noqa: ARG001
        reply = make_reply(ReturnCode.OK)
        reply[_LETTER] = answer(cast(bytes, request[_LETTER]))
        return reply

    return handle
