/* An OpenAI-compatible upstream that costs very little CPU: mock PORT RATE COUNT
 *
 * Answers every POST with COUNT tokens, RATE per second (0: as fast as the client reads), each an event of about 250
 * bytes in an HTTP chunk of its own, then a finish_reason, usage and [DONE]. One thread, epoll, 127.0.0.1 only. */
#include "common.h"

enum { INPUT = 1 << 16, OUTPUT = 1 << 15, EVENT_MAX = 320 };

typedef struct Stream {
  int fd, active;        /* active: its index in the list of running answers, -1 when idle */
  unsigned sent;
  uint64_t due;
  size_t have, want;     /* bytes of the request so far, and in all (0: its head is incomplete) */
  size_t out_from, out_to;
  char in[INPUT], out[OUTPUT];
} Stream;

static int poller, rate;
static unsigned count;
static Stream **under_way;
static int running, room;
static char event[EVENT_MAX];
static size_t event_length, token_at;

static const char HEAD[] =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
static char tail[1024];
static size_t tail_length;

static size_t chunk(char *at, const char *data) {
  return (size_t)sprintf(at, "%zx\r\n%s\r\n", strlen(data), data);
}

static void prepare(void) {
  char data[EVENT_MAX];
  snprintf(data, sizeof data,
           "data: {\"id\":\"chatcmpl-0123456789abcdefghijklmno\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,"
           "\"model\":\"mock\",\"system_fingerprint\":\"fp_0123456789\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\""
           "0000000:000000000000000 \"},\"logprobs\":null,\"finish_reason\":null}]}\n\n");
  event_length = chunk(event, data);
  token_at = (size_t)(strstr(event, "0000000:") - event);
  tail_length = chunk(tail, "data: {\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"model\":\"mock\",\"choices\":[{\"index\":0,"
                            "\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n");
  tail_length += chunk(tail + tail_length,
                       "data: {\"id\":\"x\",\"object\":\"chat.completion.chunk\",\"model\":\"mock\",\"choices\":[],"
                       "\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1,\"total_tokens\":2}}\n\n");
  tail_length += chunk(tail + tail_length, "data: [DONE]\n\n");
  tail_length += (size_t)sprintf(tail + tail_length, "0\r\n\r\n");
}

static void stop(Stream *s) {
  if (s->active < 0) return;
  under_way[s->active] = under_way[--running];
  under_way[s->active]->active = s->active;
  s->active = -1;
}

static void drop(Stream *s) {
  stop(s);
  close(s->fd);
  free(s);
}

static void put(Stream *s, const char *data, size_t length) {
  memcpy(s->out + s->out_to, data, length);
  s->out_to += length;
}

/* Write the tokens that are due and fit; return false when the connection is closed. */
static int produce(Stream *s, uint64_t now) {
  for (;;) {
    while (s->sent < count && s->out_to + EVENT_MAX < OUTPUT && (rate == 0 || s->due <= now)) {
      digits(event + token_at, NUMBER, s->sent++);
      digits(event + token_at + NUMBER + 1, STAMP, rate ? now : now_us());
      put(s, event, event_length);
      if (rate) s->due += 1000000u / (unsigned)rate;
    }
    int ended = s->sent == count && s->out_to + tail_length < OUTPUT;
    if (ended) {
      put(s, tail, tail_length);
      s->sent++;
    }
    if (s->out_from == s->out_to) return 1;
    ssize_t written = send(s->fd, s->out + s->out_from, s->out_to - s->out_from, MSG_NOSIGNAL);
    if (written < 0) return errno == EAGAIN;
    s->out_from += (size_t)written;
    if (s->out_from < s->out_to) return 1;
    s->out_from = s->out_to = 0;
    if (s->sent > count) {
      stop(s);
      return 1;
    }
  }
}

static int answer(Stream *s, uint64_t now) {
  if (running == room) under_way = realloc(under_way, sizeof *under_way * (size_t)(room = room ? room * 2 : 1024));
  s->active = running;
  under_way[running++] = s;
  s->sent = 0;
  s->due = now;
  put(s, HEAD, sizeof HEAD - 1);
  return produce(s, now);
}

static int consume(Stream *s, uint64_t now) {
  ssize_t got = recv(s->fd, s->in + s->have, INPUT - s->have - 1, 0);
  if (got == 0 || (got < 0 && errno != EAGAIN)) return 0;
  if (got < 0) return 1;
  s->have += (size_t)got;
  s->in[s->have] = 0;
  if (!s->want) {
    char *end = strstr(s->in, "\r\n\r\n");
    if (!end) return s->have < INPUT - 1;
    char *length = strcasestr(s->in, "content-length:");
    s->want = (size_t)(end + 4 - s->in) + (length && length < end ? (size_t)atol(length + 15) : 0);
    if (s->want >= INPUT) return 0;
  }
  if (s->have < s->want) return 1;
  s->have = s->want = 0;
  return answer(s, now);
}

int main(int argc, char **argv) {
  if (argc != 4) return fprintf(stderr, "usage: mock PORT RATE COUNT\n"), 2;
  rate = atoi(argv[2]);
  count = (unsigned)atol(argv[3]);
  raise_file_limit();
  prepare();
  int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = local_address(atoi(argv[1]));
  if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 8192)) die("listen");
  set_up_socket(listener);
  poller = epoll_create1(0);
  struct epoll_event listening = {.events = EPOLLIN, .data.ptr = NULL}, found[512];
  epoll_ctl(poller, EPOLL_CTL_ADD, listener, &listening);
  for (uint64_t last = 0;;) {
    int n = epoll_wait(poller, found, 512, rate && running ? 1 : 1000);
    uint64_t now = now_us();
    for (int i = 0; i < n; i++) {
      Stream *s = found[i].data.ptr;
      if (!s) {
        for (int fd; (fd = accept(listener, NULL, NULL)) >= 0;) {
          set_up_socket(fd);
          s = malloc(sizeof *s);
          s->fd = fd;
          s->active = -1;
          s->have = s->want = s->out_from = s->out_to = 0;
          struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = s};
          epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
        }
        continue;
      }
      int fine = 1;
      if (found[i].events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) fine = 0;
      if (fine && found[i].events & EPOLLIN) fine = consume(s, now);
      if (fine && found[i].events & EPOLLOUT && s->active >= 0) fine = produce(s, now);
      if (!fine) drop(s);
    }
    if (rate && now - last >= 500) {
      last = now;
      for (int i = running - 1; i >= 0; i--) {
        Stream *s = under_way[i];
        if (s->due <= now && s->sent <= count && s->out_from == s->out_to && !produce(s, now)) drop(s);
      }
    }
  }
}
