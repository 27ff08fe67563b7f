/* Generate load: load PORT KIND STREAMS SECONDS WARMUP SLOW MESSAGES PIDS…
 *
 * KIND is ws (our WebSocket), text (our SSE, and the tutorial's), openai (an OpenAI-compatible gateway), responses (the
 * Responses protocol over a WebSocket, unstored) or idle (STREAMS sockets without a request). ws+named and text+named give each request an id of its own; with +shared the n-th request
 * of every stream has the same id, so that all of them read one answer. Every stream has a connection of its own and
 * sends the next request when an answer is complete. Every token is checked: its number follows the one before.
 * Between WARMUP and WARMUP + SECONDS it counts tokens and answers, and measures the latency of each token, the time from
 * a request to its first token, and the CPU time of the processes PIDS; then it prints one line of JSON and exits. SLOW
 * of the streams read 2 KB every 100 ms. MESSAGES is the length of the history in each request. */
#include "common.h"

enum { INPUT = 1 << 16, BUCKETS = 200000, BEGIN = 36 };

static const char DELTA[] = "{\"type\":\"response.output_text.delta\"";

typedef struct Stream {
  int fd, open, slow;
  unsigned rounds;                         /* requests sent */
  unsigned next;                           /* the number of the token that must come next */
  int run, in_stamp;                       /* the digits seen so far of a number, or of a stamp */
  uint64_t number, stamp, asked;
  int head;                                /* bytes matched of the blank line that ends an HTTP head */
  uint64_t left;                           /* bytes of this chunk or frame that are still to come */
  int part;                                /* where in a chunk or frame we are */
  char begin[BEGIN];                       /* the first bytes of a frame's payload */
  unsigned begun;
  int matched;                             /* bytes matched of "[DONE]" */
} Stream;

static enum { WS, TEXT, OPENAI, IDLE, RESPONSES } kind;
static const char *KINDS[] = {"ws", "text", "openai", "idle", "responses"};
static int poller, measuring, port;
static char request[1 << 16], handshake[512];
static size_t request_length;
static char *id;                           /* where in the request its id stands, if it has one */
static int shared;                         /* all streams send the same ids */
static uint64_t tokens, answers, failed, wrong, late[BUCKETS + 1], first[BUCKETS + 1];

static void number_request(Stream *s) {
  static unsigned requests;
  unsigned n = shared ? s->rounds++ : requests++;
  for (int i = 0; i < 8; i++, n /= 26) id[i] = (char)('a' + n % 26);
}

static void ask(Stream *s) {
  s->next = 0;
  s->asked = now_us();
  s->matched = 0;
  if (kind != WS && kind != RESPONSES) s->head = s->part = 0;
  if (id) number_request(s);
  if (send(s->fd, request, request_length, MSG_NOSIGNAL) != (ssize_t)request_length) die("send");
}

static void ended(Stream *s, int good) {
  if (!good) failed++;
  else if (measuring) answers++;
  if (good && s->next == 0) wrong++;
}

static void token(Stream *s) {
  if (s->number != s->next) wrong++;
  s->next = (unsigned)s->number + 1;
  if (!measuring) return;
  tokens++;
  uint64_t now = now_us(), took = now - s->stamp, waited = now - s->asked;
  late[took < BUCKETS ? took : BUCKETS]++;
  if (s->number == 0) first[waited < BUCKETS ? waited : BUCKETS]++;
}

/* Finds tokens in a payload, wherever it was cut: seven digits, a colon, fifteen digits, a space. */
static void scan(Stream *s, const unsigned char *at, size_t length) {
  for (const unsigned char *end = at + length; at < end; at++) {
    unsigned digit = (unsigned)*at - '0';
    if (digit < 10) {
      if (s->in_stamp) s->stamp = s->stamp * 10 + digit, s->run++;
      else s->number = s->run ? s->number * 10 + digit : digit, s->run++;
      continue;
    }
    if (*at == ':' && s->run == NUMBER && !s->in_stamp) s->in_stamp = 1, s->stamp = 0;
    else {
      if (*at == ' ' && s->in_stamp && s->run == STAMP) token(s);
      s->in_stamp = 0;
    }
    s->run = 0;
  }
}

static int has_done(Stream *s, const unsigned char *at, size_t length) {
  static const char DONE[] = "[DONE]";
  int found = 0;
  for (size_t i = 0; i < length; i++) {
    s->matched = at[i] == (unsigned char)DONE[s->matched] ? s->matched + 1 : at[i] == '[';
    if (s->matched == 6) found = 1, s->matched = 0;
  }
  return found;
}

static size_t skip_head(Stream *s, const unsigned char *at, size_t length) {
  size_t i = 0;
  for (; i < length && s->head < 4; i++) s->head = at[i] == "\r\n\r\n"[s->head] ? s->head + 1 : at[i] == '\r';
  return i;
}

static int begins(Stream *s, const char *with) {
  return s->begun >= strlen(with) && !memcmp(s->begin, with, strlen(with));
}

/* Server frames are unmasked: two bytes, then none, two or eight of length, then the payload. */
static void take_ws(Stream *s, const unsigned char *at, size_t length) {
  while (length) {
    if (s->part == 0) { s->part = 1; at++; length--; s->begun = 0; }
    else if (s->part == 1) {
      s->part = *at == 126 ? 20 : *at == 127 ? 26 : 100;
      s->left = *at < 126 ? *at : 0;
      at++; length--;
      if (s->part == 26) s->part = 14;     /* eight bytes to come: parts 14 to 21 */
      if (s->part == 100 && !s->left) s->part = 0;
    } else if (s->part < 100) {
      s->left = s->left << 8 | *at;
      at++; length--;
      if (++s->part == 22) s->part = 100;
    } else {
      size_t now = s->left < length ? s->left : length;
      size_t begun = 0;
      while (begun < now && s->begun < BEGIN) s->begin[s->begun++] = (char)at[begun++];
      if (kind == WS) scan(s, at, now);
      else if (s->begun == BEGIN && !memcmp(s->begin, DELTA, BEGIN)) scan(s, at + begun, now - begun);
      at += now; length -= now; s->left -= now;
      if (!s->left) {
        s->part = 0;
        int done = begins(s, "{\"type\":\"done\"") || begins(s, "{\"type\":\"response.completed\"");
        int error = begins(s, "{\"type\":\"error") || begins(s, "{\"type\":\"response.failed\"");
        if (done || error) ended(s, done), ask(s);
      }
    }
  }
}

static void take_http(Stream *s, const unsigned char *at, size_t length) {
  while (length) {
    if (s->head < 4) {
      size_t skipped = skip_head(s, at, length);
      at += skipped; length -= skipped; s->left = 0; s->part = 0;
    } else if (s->part == 0) {             /* the size of a chunk, in hex */
      char c = (char)*at++; length--;
      if (c == '\n') s->part = s->left ? 1 : 3;
      else if (c != '\r') s->left = s->left << 4 | (uint64_t)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    } else if (s->part == 1) {             /* its data */
      size_t now = s->left < length ? s->left : length;
      scan(s, at, now);
      if (has_done(s, at, now)) ended(s, 1), s->open = 2;
      at += now; length -= now; s->left -= now;
      if (!s->left) s->part = 2;
    } else if (s->part == 2) {             /* the line break after it */
      if (*at++ == '\n') s->part = 0;
      length--;
    } else {                               /* the line break after the last chunk */
      char c = (char)*at++; length--;
      if (c == '\n') {
        if (s->open != 2) ended(s, 0);
        s->open = 1;
        ask(s);
      }
    }
  }
}

static void connect_stream(Stream *s) {
  *s = (Stream){.slow = s->slow, .rounds = s->rounds};
  s->fd = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = local_address(port);
  if (connect(s->fd, (struct sockaddr *)&address, sizeof address)) die("connect");
  if (s->slow) { int size = 8192; setsockopt(s->fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size); }
  if (kind == WS || kind == RESPONSES || kind == IDLE) {
    char reply[1024];
    size_t have = 0;
    if (send(s->fd, handshake, strlen(handshake), 0) < 0) die("handshake");
    do {
      ssize_t got = recv(s->fd, reply + have, 1, 0);
      if (got <= 0) die("handshake");
      have += (size_t)got;
    } while (have < 4 || memcmp(reply + have - 4, "\r\n\r\n", 4));
    if (!strstr(reply, " 101 ")) die(reply);
  }
  set_up_socket(s->fd);
  s->open = 1;
  struct epoll_event e = {.events = s->slow ? 0 : EPOLLIN, .data.ptr = s};
  epoll_ctl(poller, EPOLL_CTL_ADD, s->fd, &e);
}

static void take(Stream *s, size_t most) {
  static unsigned char in[INPUT];
  ssize_t got = recv(s->fd, in, most, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {                          /* a server that closes after each answer: connect again */
    if (s->open != 2 && kind != IDLE) failed++;
    close(s->fd);
    connect_stream(s);
    ask(s);
    return;
  }
  if (kind == WS || kind == RESPONSES) take_ws(s, in, (size_t)got);
  else if (kind != IDLE) take_http(s, in, (size_t)got);
}

/* CPU seconds and resident memory (kB) of processes. */
static void usage(int n, char **pids, double *cpu, long *memory) {
  *cpu = 0, *memory = 0;
  for (int i = 0; i < n; i++) {
    char path[64], line[1024];
    long user, system, pages;
    snprintf(path, sizeof path, "/proc/%s/stat", pids[i]);
    FILE *f = fopen(path, "r");
    if (!f || !fgets(line, sizeof line, f)) die(path);
    fclose(f);
    char *after = strrchr(line, ')');
    if (sscanf(after, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld", &user, &system) != 2) die("stat");
    *cpu += (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
    snprintf(path, sizeof path, "/proc/%s/statm", pids[i]);
    f = fopen(path, "r");
    if (!f || fscanf(f, "%*d %ld", &pages) != 1) die(path);
    fclose(f);
    *memory += pages * (sysconf(_SC_PAGESIZE) / 1024);
  }
}

static void prepare(int messages) {
  static char body[1 << 15];
  static const char NAMED[] = "{\"id\":\"aaaaaaaa\",";
  static const char CREATE[] = "{\"type\":\"response.create\",\"store\":false,";
  char *at = body + sprintf(body, "%s\"model\":\"mock\",\"stream\":true,\"%s\":[", id ? NAMED : kind == RESPONSES ? CREATE : "{",
                            kind == RESPONSES ? "input" : "messages");
  for (int i = 0; i < messages; i++)
    at += sprintf(at, "%s{\"role\":\"%s\",\"content\":\"%s\"}", i ? "," : "", i % 2 ? "assistant" : "user",
                  "The quick brown fox jumps over the lazy dog, and then it sits down and thinks about what it has done.");
  at += sprintf(at, "]}");
  size_t length = (size_t)(at - body);
  if (kind == WS || kind == RESPONSES) {   /* one masked text frame; a mask of zeros leaves the payload as it is */
    unsigned char head[] = {0x81, 0x80 | 126, (unsigned char)(length >> 8), (unsigned char)length, 0, 0, 0, 0};
    memcpy(request, head, sizeof head);
    memcpy(request + sizeof head, body, length);
    request_length = sizeof head + length;
  } else {
    request_length = (size_t)snprintf(request, sizeof request,
        "POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer benchmark\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
        kind == TEXT ? "/v1/chat/stream" : "/v1/chat/completions", length, body);
  }
  if (id) id = memmem(request, request_length, NAMED, 7) + 7;
  snprintf(handshake, sizeof handshake,
           "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer benchmark\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
           "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", kind == RESPONSES ? "/v1/responses" : "/v1/chat/ws");
}

static uint64_t percentile(const uint64_t *times, double part) {
  uint64_t all = 0, seen = 0;
  for (int i = 0; i <= BUCKETS; i++) all += times[i];
  for (int i = 0; i <= BUCKETS; i++)
    if ((seen += times[i]) > (uint64_t)((double)all * part)) return (uint64_t)i;
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 9) return fprintf(stderr, "usage: load PORT KIND STREAMS SECONDS WARMUP SLOW MESSAGES PIDS…\n"), 2;
  port = atoi(argv[1]);
  const char *with = strchr(argv[2], '+');
  size_t named = with ? (size_t)(with - argv[2]) : strlen(argv[2]);
  shared = with && !strcmp(with, "+shared");
  if (with) id = request;
  while (strncmp(KINDS[kind], argv[2], named)) kind++;
  int streams = atoi(argv[3]), slow = atoi(argv[6]), pids = argc - 8;
  double seconds = atof(argv[4]), warmup = atof(argv[5]), cpu_before, cpu_after;
  long memory_before, memory_warm = 0, memory_after;
  prepare(atoi(argv[7]));
  raise_file_limit();
  usage(pids, argv + 8, &cpu_before, &memory_before);
  poller = epoll_create1(0);
  Stream *all = calloc((size_t)streams, sizeof *all);
  for (int i = 0; i < streams; i++) {
    all[i].slow = i < slow;
    connect_stream(&all[i]);
  }
  uint64_t start = now_us(), from = 0, until = 0, spread = (uint64_t)(warmup * 500000), poured = 0;
  int asked = kind == IDLE ? streams : 0;
  struct epoll_event found[512];
  for (;;) {
    uint64_t now = now_us();
    /* The first requests are spread over half of the warm-up, so that the answers are not in step. */
    for (; asked < streams && (now - start) * (uint64_t)streams >= spread * (uint64_t)asked; asked++) ask(&all[asked]);
    if (!measuring && now - start >= (uint64_t)(warmup * 1e6)) {
      measuring = 1;
      usage(pids, argv + 8, &cpu_before, &memory_warm);
      from = now;
      until = now + (uint64_t)(seconds * 1e6);
    }
    if (measuring && now >= until) break;
    if (slow && now - poured >= 100000) {
      poured = now;
      for (int i = 0; i < slow; i++) take(&all[i], 2048);
    }
    int n = epoll_wait(poller, found, 512, 1);
    for (int i = 0; i < n; i++) take(found[i].data.ptr, INPUT);
  }
  double took = (double)(now_us() - from) / 1e6;
  usage(pids, argv + 8, &cpu_after, &memory_after);
  printf("{\"seconds\":%.3f,\"tokens\":%lu,\"answers\":%lu,\"failed\":%lu,\"wrong\":%lu,\"cpu\":%.3f,"
         "\"memory_before_kb\":%ld,\"memory_warm_kb\":%ld,\"memory_after_kb\":%ld,\"p50_us\":%lu,\"p99_us\":%lu,"
         "\"first_p50_us\":%lu,\"first_p99_us\":%lu}\n",
         took, tokens, answers, failed, wrong, cpu_after - cpu_before, memory_before, memory_warm, memory_after,
         percentile(late, 0.5), percentile(late, 0.99), percentile(first, 0.5), percentile(first, 0.99));
  return 0;
}
