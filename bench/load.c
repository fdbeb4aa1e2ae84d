/* Load for the benchmark: an origin and four clients, each one thread on one epoll, so that the proxy between them is
 * what saturates.
 *
 *   load origin PORT                                      serve until killed
 *   load SCENARIO PORT CONNECTIONS WARMUP_S SECONDS       ping | connect | down | up
 *   load ping PORT CONNECTIONS WARMUP_S SECONDS RATE      so many a second, and no more
 *
 * Everything is on 127.0.0.1. The first byte of a connection tells the origin what it is for: 'E' echo everything
 * (this byte too), 'D' send without end, 'U' receive without end.
 *
 * A client prints "start" when the warm-up is over and then
 * "stop COUNT SECONDS P50_US P99_US MAX_US ERRORS": COUNT is round trips, connections or bytes within the SECONDS that
 * really passed. The harness samples CPU time at these two lines.
 *
 * With a RATE, a message is due at a fixed time, whatever became of those before, and its latency counts from then: a
 * proxy that stalls is not spared the messages that would have come meanwhile.
 */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { TURNS = 4 };

/* Origin */

static char mode_of[MAX_FDS]; /* 0: its first byte has not come yet */

/* Returns false when the connection is over. */
static bool serve(int fd) {
  for (int turn = 0; turn < TURNS; turn++) {
    if (mode_of[fd] == 'D') {
      ssize_t sent = send(fd, chunk, CHUNK, MSG_NOSIGNAL);
      if (sent < 0) return errno == EAGAIN;
      continue;
    }
    ssize_t got = recv(fd, chunk, CHUNK, 0);
    if (got < 0) return errno == EAGAIN;
    if (got == 0) return false;
    if (mode_of[fd] == 0) {
      mode_of[fd] = chunk[0];
      if (chunk[0] == 'D') watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
    }
    if (mode_of[fd] == 'E') {
      /* Messages are small and one at a time: they always fit in the socket's buffer. */
      if (send(fd, chunk, (size_t)got, MSG_NOSIGNAL) != got) return false;
      return true;
    }
  }
  return true;
}

static void accept_all(int listener) {
  for (;;) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0) {
      if (errno == EAGAIN || errno == ECONNABORTED) return;
      die("accept");
    }
    if (fd >= MAX_FDS) die("too many connections");
    no_delay(fd);
    mode_of[fd] = 0;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
  }
}

static void origin(int port) {
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  struct sockaddr_in a = loopback(port);
  if (bind(listener, (struct sockaddr *)&a, sizeof a) < 0 || listen(listener, 4096) < 0) die("listen");
  watch(EPOLL_CTL_ADD, listener, EPOLLIN);
  struct epoll_event events[BATCH];
  for (;;) {
    int n = epoll_wait(epoll_fd, events, BATCH, -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (fd == listener)
        accept_all(listener);
      else if (!serve(fd))
        close(fd);
    }
  }
}

/* Clients */

static uint64_t count, errors, began_ns[MAX_FDS];
static int received[MAX_FDS], target_port;
static bool measuring;
static char scenario; /* p, c, d, u */
static char first[MESSAGE];
static double rate;                /* messages a second; 0: as many as go */
static uint64_t due_ns, ready_from, ready_to;
static int ready[MAX_FDS];         /* a ring of the connections that wait for their turn */

static void open_connection(void) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (fd < 0 || fd >= MAX_FDS) die("socket");
  no_delay(fd);
  struct sockaddr_in a = loopback(target_port);
  if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0 && errno != EINPROGRESS) die("connect");
  began_ns[fd] = now_ns();
  received[fd] = -1; /* nothing sent yet */
  watch(EPOLL_CTL_ADD, fd, EPOLLOUT);
}

static void start_again(int fd) {
  close(fd);
  open_connection();
}

static void failed(int fd) {
  errors++;
  if (errors > MAX_ERRORS) {
    fprintf(stderr, "more than %d failed connections\n", MAX_ERRORS);
    exit(1);
  }
  start_again(fd);
}

/* The connect is over: say what the connection is for. */
static void begin(int fd) {
  size_t length = scenario == 'd' || scenario == 'u' ? 1 : MESSAGE;
  if (send(fd, first, length, MSG_NOSIGNAL) != (ssize_t)length) {
    failed(fd);
    return;
  }
  received[fd] = 0;
  watch(EPOLL_CTL_MOD, fd, scenario == 'u' ? EPOLLOUT : EPOLLIN);
}

static void bulk(int fd) {
  for (int turn = 0; turn < TURNS; turn++) {
    ssize_t n = scenario == 'u' ? send(fd, chunk, CHUNK, MSG_NOSIGNAL) : recv(fd, chunk, CHUNK, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) {
      failed(fd);
      return;
    }
    if (measuring) count += (uint64_t)n;
  }
}

static void exchange(int fd) {
  ssize_t n = recv(fd, chunk, MESSAGE, 0);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    failed(fd);
    return;
  }
  received[fd] += (int)n;
  if (received[fd] < MESSAGE) return;
  uint64_t now = now_ns();
  if (measuring) {
    count++;
    record(now - began_ns[fd]);
  }
  if (scenario == 'c') {
    start_again(fd);
    return;
  }
  received[fd] = 0;
  if (rate > 0) {
    ready[ready_to++ % MAX_FDS] = fd;
    return;
  }
  began_ns[fd] = now;
  if (send(fd, first, MESSAGE, MSG_NOSIGNAL) != MESSAGE) failed(fd);
}

static void send_what_is_due(uint64_t now) {
  for (; due_ns <= now && ready_from != ready_to; due_ns += (uint64_t)(1e9 / rate)) {
    int fd = ready[ready_from++ % MAX_FDS];
    began_ns[fd] = due_ns;
    if (send(fd, first, MESSAGE, MSG_NOSIGNAL) != MESSAGE) failed(fd);
  }
}

/* Wakes epoll_wait five thousand times a second: what is due at a time goes out in one burst, as from many clients. */
static int start_ticking(void) {
  int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct itimerspec every = {.it_interval = {0, 200000}, .it_value = {0, 200000}};
  if (fd < 0 || timerfd_settime(fd, 0, &every, NULL) < 0) die("timerfd");
  watch(EPOLL_CTL_ADD, fd, EPOLLIN);
  due_ns = now_ns();
  return fd;
}

static void client(int connections, double warmup_s, double seconds) {
  for (int i = 0; i < connections; i++) open_connection();
  uint64_t start = now_ns() + (uint64_t)(warmup_s * 1e9), stop = start + (uint64_t)(seconds * 1e9), now;
  struct epoll_event events[BATCH];
  int ticks = rate > 0 ? start_ticking() : -1;
  while ((now = now_ns()) < stop) {
    if (rate > 0) send_what_is_due(now);
    if (!measuring && now >= start) {
      measuring = true;
      puts("start");
      start = now;
    }
    int n = epoll_wait(epoll_fd, events, BATCH, 10);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      uint64_t ticked;
      if (fd == ticks)
        (void)!read(ticks, &ticked, sizeof ticked);
      else if (received[fd] < 0 && (events[i].events & (EPOLLERR | EPOLLHUP)))
        failed(fd);
      else if (received[fd] < 0)
        begin(fd);
      else if (scenario == 'd' || scenario == 'u')
        bulk(fd);
      else
        exchange(fd);
    }
  }
  print_stop(count, now - start, errors);
}

int main(int argc, char **argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  epoll_fd = epoll_create1(0);
  if (argc == 3 && !strcmp(argv[1], "origin")) {
    origin(atoi(argv[2]));
  } else if ((argc == 6 && strchr("pcdu", argv[1][0])) || (argc == 7 && argv[1][0] == 'p')) {
    scenario = argv[1][0];
    rate = argc == 7 ? atof(argv[6]) : 0;
    memset(first, 'E', sizeof first);
    if (scenario == 'd' || scenario == 'u') first[0] = scenario == 'd' ? 'D' : 'U';
    target_port = atoi(argv[2]);
    client(atoi(argv[3]), atof(argv[4]), atof(argv[5]));
    return 0;
  }
  fprintf(stderr, "usage: load origin PORT | load ping|connect|down|up PORT CONNECTIONS WARMUP_S SECONDS [RATE]\n");
  return 2;
}
