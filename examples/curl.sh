#!/usr/bin/env bash
# Ask over SSE with curl, and see the events as they come.
#
#   examples/curl.sh                                   the text format, as in the tutorial
#   URL='http://127.0.0.1:8000/v1/chat/stream?format=frames' examples/curl.sh
set -euo pipefail
question=${1:-やっほ}
question=${question//\\/\\\\} question=${question//\"/\\\"}    # as JSON writes it

curl -sSN --fail-with-body \
  -H "Content-Type: application/json" \
  -d '{"messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"'"$question"'"}]}' \
  "${URL:-http://127.0.0.1:8000/v1/chat/stream}"
