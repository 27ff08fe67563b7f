"""What the demo answers to the examples of the web page: a formula, code, a table, a list."""

from __future__ import annotations

import re
from typing import Final

_SKY: Final = r"""Sunlight is scattered by the molecules of the air, and short waves are scattered most: **Rayleigh scattering**.

Its strength falls with the fourth power of the wavelength:

$$I \propto \frac{1}{\lambda^4}$$

Blue light at $\lambda = 470\,\text{nm}$ is therefore scattered about five times as much as red light at $700\,\text{nm}$:

\[
\left(\frac{700}{470}\right)^4 \approx 4.9
\]

Violet would win, but there is less of it in sunlight, and our eyes are less sensitive to it."""

_MERGE: Final = """Both lists are sorted, so the smaller of their first elements always comes next:

```python
def merge(left: list[int], right: list[int]) -> list[int]:
    \"\"\"Merge two sorted lists into a new one, in linear time.\"\"\"
    merged = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:  # not <: equal elements keep their order
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]


print(merge([1, 3, 5], [2, 3, 8]))  # [1, 2, 3, 3, 5, 8]
```

The standard library has it as well: `heapq.merge` takes any number of iterables and yields one element at a time."""

_COMPARISON: Final = """Both carry an answer token by token. They differ in what they cost you:

| | WebSocket | Server-sent events |
|:--|:--|:--|
| Direction | both ways | server to client |
| Several answers at once | on one connection | one connection each |
| Cancel | a frame | a second request |
| Reconnect | your code | the browser does it |
| Proxies and `curl` | need an upgrade | plain HTTP |

**In short:** use a WebSocket for a chat, and server-sent events where HTTP is all that gets through. This server speaks \
both, and resumes an answer over either."""

_KYOTO: Final = """Two days in Kyoto, without hurry:

1. **Saturday morning:** Fushimi Inari, before eight, while the gates are empty
2. **Saturday noon:** Nishiki market
   - grilled eel, pickles, soy milk doughnuts
   - a knife from Aritsugu, engraved while you wait
3. **Saturday evening:** Gion and the lanterns of Ponto-chō
4. **Sunday morning:** Arashiyama: the bamboo, then a boat back down the river
5. **Sunday afternoon:** tea at Kōdai-ji, and the Philosopher's Path to the station

> Buy an IC card on arrival: buses and trains take it, and you will not queue once."""

_NOTE: Final = "\n\n*This is the built-in demo, which knows four answers by heart. Set `OPENAI_API_KEY` or \
`OPENAI_BASE_URL` for a real model.*"

_ANSWERS: Final = (
    (re.compile(r"\bsky\b.*\bformula\b", re.IGNORECASE | re.DOTALL), _SKY),
    (re.compile(r"\bmerges?\b.*\bsorted lists\b", re.IGNORECASE | re.DOTALL), _MERGE),
    (re.compile(r"\bWebSockets?\b.*\b(server-sent events|SSE)\b", re.IGNORECASE | re.DOTALL), _COMPARISON),
    (re.compile(r"\bKyoto\b", re.IGNORECASE), _KYOTO),
)


def known_answer(question: str) -> str | None:
    """Return the answer to an example question, or None."""
    return next((answer + _NOTE for pattern, answer in _ANSWERS if pattern.search(question)), None)
