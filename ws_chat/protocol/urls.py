"""URLs for messages and logs, which must not show a password."""

import re


def redact_url(url: str) -> str:
    """Return `url` without userinfo, query and fragment, each of which may hold a secret; malformed URLs as well."""
    return re.split(r"[?#]", re.sub(r"(?s)^([a-zA-Z][\w+.-]*://)?.*@", r"\1", url), maxsplit=1)[0]
