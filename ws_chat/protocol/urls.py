"""URLs in messages and logs. Client, upstreams and server share it: none of them may show a password."""

import re


def redact_url(url: str) -> str:
    """Return `url` without userinfo, query and fragment, each of which may hold a secret; malformed URLs as well."""
    return re.split(r"[?#]", re.sub(r"(?s)^([a-zA-Z][\w+.-]*://)?.*@", r"\1", url), maxsplit=1)[0]
