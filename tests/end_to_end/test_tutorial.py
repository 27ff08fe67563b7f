"""The tutorial's interface, kept byte for byte."""

from __future__ import annotations

import pytest
from support.processes import ROOT, need, output

from ws_chat.testing import Reply, text

pytestmark = pytest.mark.anyio

BODY = '{"messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"やっほ"}]}'
TYPED = "data: や\n\ndata: っ\n\ndata: ほ\n\ndata: ！\n\nevent: done\ndata: [DONE]\n\n"


@pytest.fixture
def exchange(service, fake):
    fake.default = Reply(text("や", "っ", "ほ", "！"))
    return service


async def test_its_curl_exchange(exchange, fake):
    status, out, _ = await output(
        need("curl"), "-sN", "-H", "Content-Type: application/json", "-d", BODY, exchange.stream_url
    )

    assert status == 0
    assert out.decode() == TYPED
    assert fake.requests[0].body["model"] == "gpt-4o-mini"
    assert fake.requests[0].body["messages"] == [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "やっほ"},
    ]


async def test_its_reading_script(exchange):
    need("curl")
    script = f"""
        curl -sN -H "Content-Type: application/json" -d '{BODY}' {exchange.stream_url} |
        while IFS= read -r line; do
          if [[ $line == data:* ]]; then printf '%s' "${{line#data: }}"; fi
          if [[ $line == 'event: done' ]]; then break; fi
        done
        echo
    """
    _, out, _ = await output(need("bash"), "-c", script)

    assert out.decode() == "やっほ！\n"


async def test_our_reading_script(service, fake):
    need("curl")
    fake.default = Reply(text("one\n", "\n two", " \nthree\r\n", "四 ", "\\n %s"))
    status, out, _ = await output(str(ROOT / "examples/typed.sh"), WS_CHAT_URL=service.url)

    assert (status, out.decode()) == (0, "one\n\n two \nthree\n四 \\n %s\n")


async def test_our_reading_script_shows_errors(service, fake):
    need("curl")
    fake.default = Reply(text("a", finish_reason=None))
    status, out, err = await output(str(ROOT / "examples/typed.sh"), WS_CHAT_URL=service.url)
    assert (status, out.decode()) == (1, "a\n")
    assert b"upstream_incomplete" in err

    fake.refuse(400, "no such thing")
    status, out, err = await output(str(ROOT / "examples/typed.sh"), WS_CHAT_URL=service.url)
    assert status == 1
    assert b"no such thing" in err
