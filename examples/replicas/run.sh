#!/usr/bin/env bash
# Two replicas behind nginx, and the Redis that they share; all on 127.0.0.1, and the built-in demo answers. A replica that
# is killed is started again. Ctrl-C ends everything and removes what it has made.
#
#   examples/replicas/run.sh             http://127.0.0.1:8080
#   .venv/bin/python examples/replicas/watch.py     in a second terminal: answers survive, replicas do not
#
# It needs nginx, redis-server, and `make run` once before, or `pip install 'ws-chat[redis]'`. PORT, REPLICAS (two ports),
# REDIS_PORT and FOLDER choose others.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
PATH="$here/../../.venv/bin:$PATH:/usr/sbin"
port=${PORT:-8080} redis_port=${REDIS_PORT:-6390} folder=${FOLDER:-${TMPDIR:-/tmp}/ws-chat-replicas}
read -r one other <<<"${REPLICAS:-8001 8002}"
export WS_CHAT_REDIS_URL="redis://127.0.0.1:$redis_port" WS_CHAT_DRAIN_TIMEOUT=1
export WS_CHAT_UPSTREAM=${WS_CHAT_UPSTREAM:-demo}

fail() { echo "$*" >&2; exit 1; }
listens() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
for program in nginx redis-server ws-chat; do command -v "$program" >/dev/null || fail "$program is not installed"; done
for each in "$port" "$one" "$other" "$redis_port"; do ! listens "$each" || fail "port $each is in use"; done
mkdir -m 711 "$folder" || fail "remove $folder, if nothing runs there any more"

finish() {
  trap '' INT TERM
  kill $(jobs -p) 2>/dev/null || true
  wait
  rm -rf "$folder"
}
trap finish EXIT
trap 'exit 0' INT TERM

replica() {
  trap 'kill "$child"; wait "$child"; exit' TERM
  while :; do
    ws-chat serve --port "$1" >>"$folder/$1.log" 2>&1 &
    child=$!
    echo "$child" >"$folder/$1.pid"
    wait "$child" || true
    echo "The replica on port $1 has ended, and is started again."
  done
}

redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --dir "$folder" --logfile "$folder/redis.log" &
replica "$one" &
replica "$other" &
sed -e "s/:8080;/:$port;/; s/:8001 /:$one /; s/:8002 /:$other /" "$here/nginx.conf" >"$folder/nginx.conf"
nginx -p "$folder" -c "$folder/nginx.conf" &

for each in "$redis_port" "$one" "$other" "$port"; do
  for ((tries = 0; tries < 600; tries++)); do ! listens "$each" || continue 2; sleep 0.1; done
  fail "$(tail -n 5 "$folder"/*.log) nothing listens on port $each"
done
echo "http://127.0.0.1:$port is ready: replicas on $one and $other, Redis on $redis_port, logs in $folder. Ctrl-C ends it."
wait
