r"""How messages are laid out on a connection. Pure.

Two framings exist, ``body\r\n`` and ``length\r\nbody\r\n``. Keep-alives are the same in both.
"""

from __future__ import annotations

import json

KEEP_ALIVE = b"\r\n"


def frame_by_crlf(body: bytes) -> bytes:
    """Return the message followed by CRLF; the body must hold none."""
    return body + b"\r\n"


def frame_by_length(body: bytes) -> bytes:
    """Return the message led by its length in bytes, which counts the trailing CRLF."""
    return b"%d\r\n%b\r\n" % (len(body) + 2, body)


def disconnect(stream_name: str) -> bytes:
    """Return the body that tells the oldest connection to make room for a newer one."""
    notice = {"code": 7, "stream_name": stream_name, "reason": "admin logout"}
    return json.dumps({"disconnect": notice}, separators=(",", ":")).encode()


def deletion(id_: int, user_id: str) -> bytes:
    """Return the body that says that a status is no more."""
    gone = {"id": id_, "id_str": str(id_), "user_id": int(user_id), "user_id_str": user_id}
    return json.dumps({"delete": {"status": gone}}, separators=(",", ":")).encode()
