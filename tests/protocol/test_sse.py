from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.service import events

from ws_chat.protocol import sse
from ws_chat.protocol.sse import NotAnEventStreamError, SSEDecoder, event

STREAM = "data: a\n\n: comment\n\nevent: x\ndata:b\ndata\ndata:  c\nid: 4\n\ndata: ☃é\u2028x\n\ndata:\n\n".encode()
FOUND = [b"a", b"b\n\n c", "☃é\u2028x".encode(), b""]


def split(reads: list[bytes]) -> list[bytes]:
    decoder = SSEDecoder()
    return [data for read in reads for data in decoder.feed(read)] + decoder.end()


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@given(cuts=st.lists(st.integers(0, len(STREAM) * 2)))
def test_the_same_events_however_the_reads_fall(end, cuts):
    stream = STREAM.replace(b"\n", end)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]

    assert split([stream[a:b] for a, b in itertools.pairwise(places)]) == FOUND


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5), st.integers(1, 9))
def test_what_is_written_is_what_is_read(texts, size):
    stream = b"".join(event(text, name="x") for text in texts)
    lf = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]

    assert split([stream[at : at + size] for at in range(0, len(stream), size)]) == [text.encode() for text in lf]
    assert [found["data"] for found in events(stream)] == lf


def test_an_event_is_returned_as_soon_as_it_is_whole():
    decoder = SSEDecoder()

    assert decoder.feed(b"data: a\n") == []
    assert decoder.feed(b"\ndata: b") == [b"a"]
    assert decoder.feed(b"\r\r") == [b"b"]
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"data: c\r\n\r") == [b"c"]
    assert decoder.feed(b"\ndata: d\n\n") == [b"d"]


def test_the_last_event_needs_no_blank_line():
    assert split([b"data: a\n\ndata: b\n"]) == [b"a", b"b"]
    assert split([b"data: a\n\ndata: b"]) == [b"a", b"b"]
    assert split([b""]) == []


@pytest.mark.parametrize("start", [b"<html>\n", b"{}\n", b"hello: x\n", b" data: x\n", b"Data: x", b"<html>" * 9])
def test_what_is_no_event_stream_is_refused(start):
    with pytest.raises(NotAnEventStreamError):
        split([start])


@pytest.mark.parametrize("start", [b"foo: bar\ndata: x\n\n", b"data\ndata: x\n\n", b"\n\n\ndata: x\n\n"])
def test_unknown_fields_are_ignored(start):
    assert b"".join(split([start])).strip() == b"x"


@pytest.mark.parametrize("read", [b"x", b"data: xxx\n", b"data:\n"])
def test_an_event_does_not_grow_without_end(read, monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    decoder = SSEDecoder()
    decoder.feed(b"data: ok\n\ndata: ")
    with pytest.raises(NotAnEventStreamError):
        [decoder.feed(read) for _ in range(1001)]


def test_an_event_has_a_limited_number_of_lines():
    assert split([b"data: a\n" * sse.MAX_EVENT_LINES + b"\n"])
    with pytest.raises(NotAnEventStreamError):
        split([b"data: a\n" + b"a\n" * sse.MAX_EVENT_LINES + b"\n"])


def test_an_event_is_written_as_the_standard_says():
    assert event("Hel") == b"data: Hel\n\n"
    assert event(" a\r\nb\rc\n", name="x") == b"event: x\ndata:  a\ndata: b\ndata: c\ndata: \n\n"
    assert event("a\u2028b\x0bc\x85") == "data: a\u2028b\x0bc\x85\n\n".encode()
