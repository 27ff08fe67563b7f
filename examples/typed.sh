#!/usr/bin/env bash
# Ask over SSE and print the answer as it is typed: the tutorial's reading loop, with its line breaks and its errors.
set -euo pipefail
question=${1:-やっほ}
question=${question//\\/\\\\} question=${question//\"/\\\"}    # as JSON writes it

curl -sSN \
  -H "Content-Type: application/json" \
  -d '{"messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"'"$question"'"}]}' \
  "${WS_CHAT_URL:-http://127.0.0.1:8000}/v1/chat/stream" |
{
  event=none    # the name of the event being read; "text" once it has had a line of text
  ended=no
  while IFS= read -r line || [[ -n $line ]]; do
    case $line in
      '')         event=none ;;
      'event: '*) event=${line#event: } ;;
      'data: '*)  case $event in
                    done)  ended=yes ;;
                    error) printf '\n%s\n' "${line#data: }" >&2 ;;
                    text)  printf '\n%s' "${line#data: }" ;;
                    none)  printf '%s' "${line#data: }"; event=text ;;
                  esac ;;
      '{'*)       printf '%s\n' "$line" >&2 ;;    # an error before the answer began
    esac
  done
  echo
  [[ $ended == yes ]]
}
