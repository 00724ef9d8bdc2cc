"""A frame becomes a status with the upstream's own bytes, a notice, or a dead letter; never an error."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.delivery.records import of_event
from connector.model import Event, Status
from connector.stream import dialect
from connector.stream.messages import (
    MAX_ID_CHARS,
    MAX_RULES_BYTES,
    Decoder,
    Malformed,
    Messages,
    Notice,
)
from connector.stream.sse import SseEvent
from connector.topics import BATCH_OVERHEAD_BYTES

DEEP = b"[" * 100_000 + b"]" * 100_000


def decoder(**override: object) -> Decoder:
    return Decoder(dialect.load("twitter-v1", override))


TWITTER = decoder()
RESUMING = decoder(messages={"id": "/data/id"}, resume={"parameter": "after", "cursor": "/data/position/at"})


def reasons(messages: Messages) -> list[tuple[str, bytes]]:
    return [(bad.reason, bad.frame) for bad in messages.malformed]


def test_no_frames_are_no_messages():
    assert TWITTER.decode([]) == Messages()


def test_a_status_keeps_its_bytes_and_its_id():
    frame = b'{ "id_str" :"1050118621198921728","id":1050118621198921728, "text":"caf\\u00e9 \xe2\x80\xa8" }'
    (status,) = TWITTER.decode([frame]).statuses
    assert status.id == "1050118621198921728"
    assert status.body is frame


def test_a_status_beside_a_bad_frame_keeps_its_bytes_too():
    frame = b'{"id_str": "1"}'
    (status,) = TWITTER.decode([frame, b"bad"]).statuses
    assert status.body is frame


def test_an_id_may_be_escaped():
    (status,) = TWITTER.decode([b'{"id_str":"\\u0031\\u00e9"}']).statuses
    assert status.id == "1é"


@pytest.mark.parametrize(
    ("pointer", "frame"),
    [
        ("/id", b'{"id":"7"}'),
        ("/data/id", b'{"data":{"id":"7","x":[]}}'),
        ("/a/b/c/d", b'{"a":{"b":{"c":{"d":"7"}}}}'),
        ("/a~1b/c~0d", b'{"a/b":{"c~d":"7"}}'),
        ("/class/def-1", b'{"class":{"def-1":"7"}}'),
        ("/naïve/__class__", '{"naïve":{"__class__":"7"}}'.encode()),
    ],
)
def test_an_id_is_found_by_its_pointer(pointer, frame):
    messages = decoder(messages={"id": pointer, "disconnect": None}).decode([frame])
    assert messages.statuses == [Status("7", frame)]


@pytest.mark.parametrize("frame", [b'{"data":{}}', b'{"data":[]}', b'{"data":"7"}', b'{"id":"7"}', b"{}"])
def test_a_pointer_that_leads_nowhere_finds_no_id(frame):
    messages = decoder(messages={"id": "/data/id", "disconnect": None}).decode([frame])
    assert reasons(messages) == [("no_id", frame)]


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"not json", "not_json"),
        (b'{"id_str":"1"', "not_json"),
        (b'{"id_str":"1"} {"id_str":"2"}', "not_json"),
        (b'{"id_str":"1","text":NaN}', "not_json"),
        (b'\xef\xbb\xbf{"id_str":"1"}', "not_json"),
        (b"\xff\xfe", "not_json"),
        (b'{"id_str":"1","text":"\xff"}', "not_json"),  # in a member the decoder skips
        (b'{"id_str":"1","text":"\xed\xa0\x80"}', "not_json"),
        (b'{"id_str":"\xff"}', "not_json"),
        (b'{"id_str":"\\ud800"}', "not_json"),
        (DEEP, "not_json"),
        (b'{"id_str":"1","x":%b}' % DEEP, "not_json"),
        (b"1" * 5000, "not_json"),
        (b"{}", "no_id"),
        (b'{"text":"kafka"}', "no_id"),
        (b'{"id_str":""}', "no_id"),
        (b'{"id_str":1.5}', "no_id"),
        (b'{"id_str":true}', "no_id"),
        (b'{"id_str":null}', "no_id"),
        (b'{"id_str":["1"]}', "no_id"),
        (b"null", "no_id"),
        (b'"1"', "no_id"),
        (b'[{"id_str":"1"}]', "no_id"),
        (b'{"limits":{"track":5}}', "no_id"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_status_is_kept_whole_with_the_reason(frame, reason):
    for frames in ([frame], [b'{"id_str":"0"}', frame]):
        messages = TWITTER.decode(frames)
        assert reasons(messages) == [(reason, frame)]
        assert messages.malformed[0].frame is frame
        assert messages.malformed[0].detail
        assert messages.disconnect is None


def test_bytes_that_only_together_are_utf8_are_not():
    """Frames are checked in one go; a letter cut in two must not be glued together again."""
    halves = [b'{"id_str":"1","text":"\xc3', b'\xa9"}']
    assert reasons(TWITTER.decode(halves)) == [("not_json", half) for half in halves]


def test_a_dead_letters_detail_is_short():
    frame = json.dumps({"id_str": 5, "x" * 5000: 1}).encode()
    assert all(len(bad.detail) <= 200 for bad in TWITTER.decode([frame, b"x" * 5000]).malformed)


def test_a_disconnect_notice_is_no_dead_letter():
    frames = [b'{"id_str":"1"}', b'{"disconnect":{"code":4,"reason":"duplicate"}}']
    messages = TWITTER.decode(frames)
    assert messages.statuses == [Status("1", frames[0])]
    assert messages.malformed == []
    assert messages.disconnect is not None
    assert str(messages.disconnect) == 'the server said {"code":4,"reason":"duplicate"}'
    assert messages.disconnect.code == "4"


def test_a_disconnect_notice_is_cut_when_long():
    notice = TWITTER.decode([json.dumps({"disconnect": {"reason": "x" * 5000}}).encode()]).disconnect
    assert notice is not None
    assert notice.code is None
    assert len(str(notice)) == len("the server said ") + 200


def test_an_announcement_may_stand_in_a_list():
    """As X v2 has it, within a body that began with 200."""
    x = decoder(messages={"id": "/data/id", "disconnect": {"at": "/errors/0", "code": "/title"}})
    frame = b'{"errors":[{"title":"operational-disconnect","disconnect_type":"Upstream"}]}'
    announced = x.decode([frame]).disconnect
    assert announced is not None
    assert announced.code == "operational-disconnect"
    for other in (b'{"errors":[]}', b'{"errors":{"1":1}}', b'{"errors":7}', b'{"errors":"x"}'):
        assert x.decode([other]).disconnect is None
    far = decoder(messages={"disconnect": {"at": "/errors/" + "9" * 5000}})
    for other in (b'{"errors":[]}', b'{"errors":[1]}'):
        assert far.decode([other]).disconnect is None


def test_notices_are_neither_statuses_nor_dead_letters():
    frames = [b'{"warning":{"code":"5"}}', b'{"id_str":"1"}', b'{"scrub_geo":{"user_id":7}}']
    messages = TWITTER.decode(frames)
    assert [status.id for status in messages.statuses] == ["1"]
    assert messages.malformed == []
    assert messages.notices == [Notice("warning", {"code": "5"}), Notice("scrub_geo", {"user_id": 7})]


@pytest.mark.parametrize("levels", [240, 246, 250, 254, 300])
def test_a_notice_nested_too_deeply_for_an_event_is_text(levels):
    (notice,) = TWITTER.decode([b'{"warning":' + b"[" * levels + b"]" * levels + b"}"]).notices
    event = Event("notice.received", "tech", {"notice": notice.kind, "message": notice.message})
    assert of_event("events", "/x", "1", 0.0, event).value


@pytest.mark.parametrize(
    ("told", "beginning"),
    [
        (b'"%b"' % (b"x" * 5000), '"xxx'),
        (b'{"id":%b}' % (b"9" * 30), '{"id":999'),  # no encoder for events takes such a number
        (b'"%b"' % ("é" * 3000).encode(), '"é'),
    ],
)
def test_a_notice_that_no_event_can_carry_is_passed_on_as_text(told, beginning):
    (notice,) = TWITTER.decode([b'{"warning":%b}' % told]).notices
    assert isinstance(notice.message, str)
    assert notice.message.startswith(beginning)
    assert len(notice.message.encode()) <= 4096


# Server-sent events

EVENTS = Decoder(dialect.load("sse", {}))


def event(number: int, kind: str = "message", last_id: str | None = None) -> SseEvent:
    return SseEvent(b'{"id":%d}' % number, kind, last_id)


def test_an_events_id_is_the_cursor():
    messages, _ = EVENTS.decode_events([event(1, last_id="a"), event(2, last_id="b")], "b")
    assert [status.id for status in messages.statuses] == ["1", "2"]
    assert [messages.cursor_after(count) for count in range(3)] == [None, "a", "b"]


def test_an_id_without_data_moves_the_cursor_on():
    messages, _ = EVENTS.decode_events([event(1, last_id="a")], "c")
    assert messages.cursor_after(1) == "c"
    assert EVENTS.decode_events([], "d")[0].cursor_after(0) == "d"


def test_cursors_of_events_count_good_statuses_alone():
    events = [SseEvent(b"bad", "message", "a"), event(2, last_id="b"), SseEvent(b"{}", "message", "c")]
    messages, _ = EVENTS.decode_events([*events, event(3, last_id="d")], "d")
    assert [messages.cursor_after(count) for count in (1, 2)] == ["b", "d"]
    assert len(messages.malformed) == 2


@pytest.mark.parametrize("cursor", ["a\r\nx: y", "a\nb", "a\0b", "\x01", "a\x7f", "x" * 9000])
def test_a_cursor_that_cannot_be_sent_back_is_none(cursor):
    """What is resumed from then is the one before: that repeats, and loses nothing."""
    messages, _ = EVENTS.decode_events([event(1, last_id=cursor)], None)
    assert messages.cursor_after(1) is None
    frame = json.dumps({"data": {"id": "1", "position": {"at": cursor}}}).encode()
    assert RESUMING.decode([frame]).cursor_after(1) is None


def test_events_of_other_types_are_dropped_and_counted():
    """Mastodon's ``filters_changed`` says ``undefined``, which is no JSON."""
    some = Decoder(dialect.load("sse", {"messages": {"events": ["update"]}}))
    events = [
        event(1, "update", "a"),
        SseEvent(b"undefined", "filters_changed", "b"),
        event(2, "update", "c"),
    ]
    messages, dropped = some.decode_events(events, "c")
    assert [status.id for status in messages.statuses] == ["1", "2"]
    assert messages.malformed == ()
    assert dropped == 9


def test_an_events_cursor_may_stand_in_its_data():
    some = Decoder(dialect.load("sse", {"resume": {"cursor": "/at"}}))
    messages, _ = some.decode_events([SseEvent(b'{"id":1,"at":7}', "message", "ignored")], "ignored")
    assert messages.cursor_after(1) == "7"


def test_a_status_that_speaks_of_a_disconnect_is_a_status():
    frame = b'{"disconnect":{"code":4},"id_str":"1"}'
    messages = TWITTER.decode([frame])
    assert messages.statuses == [Status("1", frame)]
    assert messages.disconnect is None


def test_a_dialect_without_disconnect_notices_has_none():
    messages = decoder(messages={"disconnect": None}).decode([b'{"disconnect":{"code":4}}'])
    assert messages.disconnect is None
    assert [bad.reason for bad in messages.malformed] == ["no_id"]


def test_a_cursor_stands_after_as_many_statuses_as_asked_for():
    frames = [b'{"data":{"id":"%d","position":{"at":%d}}}' % (at, at * 10) for at in range(3)]
    messages = RESUMING.decode(frames)
    assert [messages.cursor_after(count) for count in range(4)] == [None, "0", "10", "20"]


def test_a_cursor_may_be_text():
    messages = RESUMING.decode([b'{"data":{"id":"1","position":{"at":"p-1"}}}'])
    assert messages.cursor_after(1) == "p-1"


def test_cursors_count_good_statuses_alone():
    good = [b'{"data":{"id":"%d","position":{"at":%d}}}' % (at, at) for at in (1, 2)]
    messages = RESUMING.decode([b"bad", good[0], b"{}", good[1]])
    assert [messages.cursor_after(count) for count in (1, 2)] == ["1", "2"]


@pytest.mark.parametrize("at", [b"null", b"1.5", b"true", b"[]", b"{}"])
def test_a_status_without_a_usable_cursor_is_none(at):
    frame = b'{"data":{"id":"1","position":{"at":%b}}}' % at
    messages = RESUMING.decode([frame])
    assert not messages.statuses
    assert [bad.frame for bad in messages.malformed] == [frame]


def test_a_dialect_that_cannot_resume_has_no_cursor():
    messages = TWITTER.decode([b'{"id_str":"1"}'])
    assert messages.cursor_after(0) is None
    assert messages.cursor_after(1) is None


good = st.integers(0, 99).map(lambda number: b'{"id_str":"%d"}' % number)
bad = st.sampled_from(
    [b"[", b"{}", b'{"id_str":""}', b'{"id_str":[]}', b'{"id_str":"7","x":"\xff"}', b"[" * 50_000]
)


@given(st.lists(st.tuples(good, st.just(True)) | st.tuples(bad, st.just(False)), max_size=12))
def test_a_mixed_chunk_keeps_every_frame_in_order(mixed):
    messages = TWITTER.decode([frame for frame, _ in mixed])
    assert [status.body for status in messages.statuses] == [frame for frame, is_good in mixed if is_good]
    assert [letter.frame for letter in messages.malformed] == [
        frame for frame, is_good in mixed if not is_good
    ]


members = st.dictionaries(
    st.sampled_from(["id_str", "disconnect", "x"]), st.none() | st.text() | st.integers()
)


@given(st.lists(st.binary() | members.map(lambda one: json.dumps(one).encode()), max_size=8))
def test_every_frame_becomes_exactly_one_thing(frames):
    messages = TWITTER.decode(frames)
    bodies = [status.body for status in messages.statuses] + [letter.frame for letter in messages.malformed]
    for body in bodies:
        frames.remove(body)
    assert all(b"disconnect" in frame for frame in frames)
    assert all(isinstance(status.id, str) and status.id for status in messages.statuses)
    assert all(isinstance(letter, Malformed) for letter in messages.malformed)


@pytest.mark.parametrize("number", [0, 7, -1, 1 << 63, 1 << 64, 10**30])
def test_an_id_may_be_a_number_of_any_size(number):
    """And the cursor too: it is kept to the last digit."""
    manners = dialect.load("twitter-v1", {"resume": {"parameter": "since_id", "cursor": "/id_str"}})
    messages = Decoder(manners).decode([b'{"id_str":"4"}', b'{"id_str":%d}' % number])
    assert [status.id for status in messages.statuses] == ["4", str(number)]
    assert messages.cursor_after(2) == str(number)
    assert RESUMING.decode([b'{"data":{"id":%d,"position":{"at":1}}}' % number]).statuses[0].id == str(number)


# Deleted statuses

SCRUB = b'{"delete":{"status":{"id":%d,"id_str":"%d","user_id":3,"user_id_str":"3"}}}'
MASTODON = Decoder(
    dialect.load("sse", {"messages": {"events": ["update"], "delete": {"event": "delete"}}, "resume": None})
)


def a_delete(number: int) -> bytes:
    return SCRUB % (number, number)


def a_status(number: int) -> bytes:
    return b'{"id_str":"%d"}' % number


def test_a_delete_stands_among_the_statuses_where_it_came():
    frames = [a_delete(7), a_status(7), a_status(8), a_delete(7), a_status(7)]
    messages = TWITTER.decode(frames)
    assert messages.statuses == [
        Status("7", None),
        Status("7", frames[1]),
        Status("8", frames[2]),
        Status("7", None),
        Status("7", frames[4]),
    ]
    assert (messages.malformed, messages.notices) == ([], [])


def test_a_delete_may_be_all_there_is():
    assert TWITTER.decode([a_delete(7)]).statuses == [Status("7", None)]


@pytest.mark.parametrize("identity", [b'"1\\u00e9/"', b"7", b"1" * 30, b'" "'])
def test_a_tombstones_key_is_its_statuss_key(identity):
    both = TWITTER.decode([b'{"id_str":%b}' % identity, b'{"delete":{"status":{"id_str":%b}}}' % identity])
    status, delete = both.statuses
    assert delete == Status(status.id, None)


@pytest.mark.parametrize(
    "frame",
    [
        b'{"delete":{"status":{"id_str":"7"}},"id_str":"1"}',
        b'{"id_str":"1","delete":null}',
        b'{"id_str":"1","delete":{"status":{"id_str":5.5}}}',
    ],
)
def test_a_status_that_speaks_of_a_delete_is_a_status(frame):
    for frames in ([frame], [b"bad", frame]):
        assert TWITTER.decode(frames).statuses == [Status("1", frame)]


@pytest.mark.parametrize("identity", [b'"1"', b'""', b"1.5", b"[]", b"true"])
def test_what_is_a_status_but_for_its_cursor_deletes_nothing(identity):
    """Or its id: what is damaged goes where somebody looks at it."""
    some = decoder(resume={"parameter": "after", "cursor": "/at"})
    frame = b'{"id_str":%b,"delete":{"status":{"id_str":"7"}}}' % identity
    assert reasons(some.decode([frame])) == [("no_id", frame)]
    assert some.decode([b'{"id_str":null,"at":null,"delete":{"status":{"id_str":"7"}}}']).statuses == [
        Status("7", None)
    ]


@pytest.mark.parametrize(
    ("delete", "reason", "detail"),
    [
        (b"null", "no_id", "$.delete"),
        (b"{}", "no_id", "`status` - at `$.delete`"),
        (b'{"status":[]}', "no_id", "$.delete.status"),
        (b'{"status":{"id":7}}', "no_id", "`id_str` - at `$.delete.status`"),
        (b'{"status":{"id_str":null}}', "no_id", "$.delete.status.id_str"),
        (b'{"status":{"id_str":1.5}}', "no_id", "$.delete.status.id_str"),
        (b'{"status":{"id_str":true}}', "no_id", "$.delete.status.id_str"),
        (b'{"status":{"id_str":["7"]}}', "no_id", "$.delete.status.id_str"),
        (b'{"status":{"id_str":""}}', "no_id", "empty"),
        (b'{"status":{"id_str":"%b"}}' % (b"7" * (MAX_ID_CHARS + 1)), "id_too_long", "2048"),
        (b'{"status":{"id_str":"\\ud800"}}', "not_json", ""),
        (b'{"status":{"id_str":"\xff"}}', "not_json", "utf-8"),
        (b'{"status":{"id_str":"7"}},', "not_json", ""),
        (b'{"status":{"id_str":"7","x":%b}}' % DEEP, "not_json", ""),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_delete_of_no_status_is_kept_whole_with_the_reason(delete, reason, detail):
    frame = b'{"delete":%b}' % delete
    messages = TWITTER.decode([a_status(1), frame])
    assert reasons(messages) == [(reason, frame)]
    assert detail in messages.malformed[0].detail
    assert messages.statuses == [Status("1", a_status(1))]


def test_the_longest_id_can_be_deleted():
    longest = "é" * MAX_ID_CHARS
    frame = json.dumps({"delete": {"status": {"id_str": longest}}}, ensure_ascii=False).encode()
    assert TWITTER.decode([frame]).statuses == [Status(longest, None)]


def test_a_dialect_without_deletes_may_have_notices_of_them():
    plain = decoder(messages={"delete": None, "notices": {"delete": "/delete"}})
    messages = plain.decode([a_delete(7)])
    assert (messages.statuses, [notice.kind for notice in messages.notices]) == ([], ["delete"])
    assert reasons(decoder(messages={"delete": None}).decode([a_delete(7)])) == [("no_id", a_delete(7))]


def test_a_delete_repeats_the_cursor_before_it():
    """It has none of its own, and what comes after it has not been delivered."""
    some = decoder(resume={"parameter": "since_id", "cursor": "/id_str"})
    messages = some.decode([a_delete(1), a_status(2), a_delete(3), a_delete(4), b"bad", a_status(5)])
    assert [status.id for status in messages.statuses] == ["1", "2", "3", "4", "5"]
    assert [messages.cursor_after(count) for count in range(6)] == [None, None, "2", "2", "2", "5"]


def test_mastodons_delete_is_a_bare_id():
    events = [event(1, "update"), SseEvent(b"109", "delete"), SseEvent(b"undefined", "filters_changed")]
    messages, dropped = MASTODON.decode_events(events, None)
    assert messages.statuses == [Status("1", b'{"id":1}'), Status("109", None)]
    assert (messages.malformed, dropped) == ([], 9)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "no_id"), (b"7" * (MAX_ID_CHARS + 1), "id_too_long"), (b"\xff", "not_json")]
)
def test_a_bare_id_that_is_none_is_kept_with_the_reason(data, reason):
    messages, _ = MASTODON.decode_events([SseEvent(data, "delete"), event(1, "update")], None)
    assert reasons(messages) == [(reason, data)]
    assert [status.id for status in messages.statuses] == ["1"]


def test_an_events_type_says_that_it_is_a_delete_whatever_its_data_look_like():
    some = Decoder(dialect.load("sse", {"messages": {"delete": {"event": "gone", "id": "/id"}}}))
    messages, _ = some.decode_events([event(1), event(1, "gone"), event(2)], None)
    assert [(status.id, status.body is None) for status in messages.statuses] == [
        ("1", False),
        ("1", True),
        ("2", False),
    ]
    bad, _ = some.decode_events([SseEvent(b'{"id":null}', "gone"), SseEvent(b"7", "gone")], None)
    assert reasons(bad) == [("no_id", b'{"id":null}'), ("no_id", b"7")]
    assert "$.id" in bad.malformed[0].detail


def test_an_event_may_be_a_delete_by_its_content():
    some = Decoder(dialect.load("sse", {"messages": {"delete": {"id": "/deleted"}}}))
    messages, _ = some.decode_events([SseEvent(b'{"deleted":7}', "message", "a")], "a")
    assert messages.statuses == [Status("7", None)]


def test_the_cursor_after_a_delete_is_its_events_id():
    some = Decoder(dialect.load("sse", {"messages": {"delete": {"event": "delete"}}}))
    events = [SseEvent(b"7", "delete", "a"), event(2, last_id="b"), SseEvent(b"8", "delete", "c"), event(9)]
    messages, _ = some.decode_events(events, None)
    assert [messages.cursor_after(count) for count in range(5)] == [None, "a", "b", "c", None]


def test_where_events_have_their_cursor_in_the_data_a_delete_repeats_it():
    override = {"resume": {"cursor": "/at"}, "messages": {"delete": {"event": "delete"}}}
    events = [SseEvent(b'{"id":1,"at":7}'), SseEvent(b"1", "delete", "ignored")]
    messages, _ = Decoder(dialect.load("sse", override)).decode_events(events, "ignored")
    assert messages.cursor_after(2) == "7"


# How many statuses were withheld


def test_the_newest_number_of_withheld_statuses_is_told():
    frames = [b'{"limit":{"track":5}}', a_status(1), b'{"limit":{"track":8,"timestamp_ms":"1"}}']
    messages = TWITTER.decode(frames)
    assert messages.withheld == 8
    assert [status.id for status in messages.statuses] == ["1"]
    assert (messages.malformed, messages.notices) == ([], [])
    assert TWITTER.decode([b'{"limit":{"track":0}}']).withheld == 0
    assert TWITTER.decode([a_status(1)]).withheld is None


@pytest.mark.parametrize("count", [b"null", b'"5"', b"1.5", b"true", b"-1", b"[]", b"9" * 30])
def test_a_number_of_withheld_statuses_that_is_none_is_kept_with_the_reason(count):
    frame = b'{"limit":{"track":%b}}' % count
    messages = TWITTER.decode([frame])
    assert reasons(messages) == [("no_count", frame)]
    assert messages.withheld is None


def test_a_status_that_speaks_of_a_limit_is_a_status():
    assert TWITTER.decode([b'{"limit":{"track":5},"id_str":"1"}']).withheld is None


# A piece, however it is cut

anything = st.sampled_from(
    [
        *(a_status(number) for number in range(3)),
        *(a_delete(number) for number in range(3)),
        b"bad",
        b'{"id_str":""}',
        b'{"delete":{}}',
        b'{"warning":1}',
        b'{"limit":{"track":3}}',
        b'{"limit":{"track":5}}',
        b'{"limit":{"track":"x"}}',
    ]
)


@given(st.lists(anything, max_size=10))
def test_frames_are_the_same_together_and_one_by_one(frames):
    some = decoder(resume={"parameter": "since_id", "cursor": "/id_str"})
    whole, single = some.decode(frames), [some.decode([frame]) for frame in frames]
    assert [*whole.statuses] == [status for one in single for status in one.statuses]
    assert [*whole.malformed] == [bad for one in single for bad in one.malformed]
    assert [*whole.notices] == [notice for one in single for notice in one.notices]
    assert whole.withheld == ([None] + [one.withheld for one in single if one.withheld is not None])[-1]
    newest = None
    for count, status in enumerate(whole.statuses, 1):
        newest = newest if status.body is None else status.id
        assert whole.cursor_after(count) == newest


an_event = st.one_of(
    st.integers(0, 3).map(lambda number: (b'{"id":%d}' % number, "update")),
    st.integers(0, 3).map(lambda number: (b"%d" % number, "delete")),
    st.sampled_from([(b"bad", "update"), (b"", "delete"), (b"undefined", "filters_changed")]),
)


@given(st.lists(an_event, max_size=10))
def test_events_are_the_same_together_and_one_by_one(drawn):
    manners = {"messages": {"events": ["update"], "delete": {"event": "delete"}}}
    some = Decoder(dialect.load("sse", manners))
    events = [SseEvent(data, kind, str(at)) for at, (data, kind) in enumerate(drawn)]
    whole, dropped = some.decode_events(events, None)
    single = [some.decode_events([one], None) for one in events]
    assert [*whole.statuses] == [status for one, _ in single for status in one.statuses]
    assert [*whole.malformed] == [bad for one, _ in single for bad in one.malformed]
    assert dropped == sum(size for _, size in single)
    marks = [one.last_id for one, (messages, _) in zip(events, single, strict=True) if messages.statuses]
    assert [whole.cursor_after(count) for count in range(1, len(marks) + 1)] == marks


# Which predicates a status matched

X = Decoder(dialect.load("x-v2", {}))
MATCHED = b'[ {"id":"1","tag":"kaf\xc3\xa9"},{"id":"2"} ]'


def test_what_a_status_matched_is_passed_on_as_the_upstream_wrote_it():
    frames = [b'{"data":{"id":"7"},"matching_rules": %b }' % MATCHED, b'{"data":{"id":"8"}}']
    assert X.decode(frames).statuses == [Status("7", frames[0], MATCHED), Status("8", frames[1], b"")]
    with_a_bad_one = X.decode([*frames, b"bad"])
    assert with_a_bad_one.statuses == X.decode(frames).statuses


@pytest.mark.parametrize("matched", [b"null", b"7", b'{"a":[{}]}', b'"x"', b"[]"])
def test_what_a_status_matched_may_have_any_form(matched):
    frame = b'{"matching_rules":%b,"data":{"id":"7"}}' % matched
    assert X.decode([frame]).statuses == [Status("7", frame, matched)]


def test_a_status_that_does_not_end_is_none_whatever_it_matched():
    assert reasons(X.decode([b'{"data":{"id":"7"},"matching_rules":[}'])) == [
        ("not_json", b'{"data":{"id":"7"},"matching_rules":[}')
    ]


def test_xs_announced_end_has_a_code():
    frame = (
        b'{"errors":[{"title":"operational-disconnect","disconnect_type":"UpstreamOperationalDisconnect"}]}'
    )
    assert X.decode([frame]).disconnect.code == "operational-disconnect"


def test_a_status_and_all_that_goes_with_it_fits_a_record():
    """The body may be as long as records are; beside it there is room for 16 kB."""
    long, longer = "7" * MAX_ID_CHARS, "7" * (MAX_ID_CHARS + 1)
    frames = [b'{"data":{"id":"%b"}}' % one.encode() for one in (long, longer)]
    messages = X.decode(frames)
    assert [status.id for status in messages.statuses] == [long]
    assert reasons(messages) == [("id_too_long", frames[1])]
    told = [b'"%b"' % (b"r" * size) for size in (MAX_RULES_BYTES - 2, MAX_RULES_BYTES - 1)]
    frames = [b'{"data":{"id":"7"},"matching_rules":%b}' % one for one in told]
    assert [status.rules for status in X.decode(frames).statuses] == [told[0], b""]
    assert [status.rules for status in X.decode([*frames, b"bad"]).statuses] == [told[0], b""]
    assert 4 * MAX_ID_CHARS + MAX_RULES_BYTES < BATCH_OVERHEAD_BYTES - 2048
