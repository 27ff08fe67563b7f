#!/usr/bin/env bash
# Ask over SSE with curl, and see the events as they come.
#
#   examples/curl.sh "Why is the sky blue?"            the text format
#   examples/curl.sh "Why is the sky blue?" frames     every detail
set -euo pipefail
question=${1:-やっほ}
question=${question//\\/\\\\} question=${question//\"/\\\"}    # as JSON writes it

curl -sSN --fail-with-body \
  -H "Content-Type: application/json" \
  -d '{"messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"'"$question"'"}]}' \
  "${WS_CHAT_URL:-http://127.0.0.1:8000}/v1/chat/stream?format=${2:-text}"
