"""`python -m ws_chat` is `ws-chat`."""

import sys

from ws_chat.cli import main

sys.exit(main())
