#!/usr/bin/env bash
# Ask over the WebSocket with wscat, and see the frames as they come.
# By hand: `wscat -c ws://127.0.0.1:8000/v1/chat/ws`, then type a frame and Enter.
set -eo pipefail
command -v wscat >/dev/null || { echo "wscat is not installed: npm install -g wscat" >&2; exit 127; }
url=${WS_CHAT_URL:-http://127.0.0.1:8000}
url=ws${url#http}/v1/chat/ws    # http becomes ws, and https wss
question=${1:-やっほ}
question=${question//\\/\\\\} question=${question//\"/\\\"}    # as JSON writes it

# Its standard input stays open: when that ends, wscat closes the socket at once and prints nothing.
coproc SOCKET {
  exec wscat -c "$url" -x '{"messages":[{"role":"user","content":"'"$question"'"}]}' -w 600
}
exec {from}<&"${SOCKET[0]}"
status=1
while IFS= read -r frame; do
  frame=${frame#< }
  printf '%s\n' "$frame"
  case $frame in
    '{"type":"done"'*) status=0; break ;;
    '{"type":"error"'*) break ;;
  esac
done <&"$from"
kill "$SOCKET_PID" 2>/dev/null || true    # it may have ended by itself
exit "$status"
