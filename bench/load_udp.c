/* Load over UDP: an origin and four clients, each one thread, so that the proxy between them is what saturates.
 *
 *   load_udp origin PORT                                      serve until killed
 *   load_udp SCENARIO PORT CLIENTS WARMUP_S SECONDS           ping | session | up | down
 *
 * Everything is on 127.0.0.1. The first byte of a datagram tells the origin what it is for: 'E' echo it, 'D' send
 * BURST datagrams, 'U' count it, 'A' count it and say how many came from this address since the last 'A'.
 *
 * ping and session keep one question of 64 bytes under way per client; session asks each from a socket, and so a port,
 * of its own. up and down keep WINDOW bursts of 1,200-byte datagrams under way per client, as QUIC would: what is
 * measured is how much gets through, not how much can be thrown away.
 *
 * Prints what load.c prints; ERRORS is the number of datagrams that were lost.
 */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

/* Two bursts of this size fit into the receive buffer that a kernel gives by default (212,992 bytes). */
enum { BURST = 32, WINDOW = 2, LARGE = 1200, PATIENCE_MS = 200 };

static int datagram_socket(void) {
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), size = 8 << 20;
  if (fd < 0 || fd >= MAX_FDS) die("socket");
  setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
  return fd;
}

/* Origin */

static void origin(int port) {
  static uint32_t counted[1 << 16]; /* by port: a proxy's sockets differ in nothing else */
  int fd = datagram_socket();
  struct sockaddr_in a = loopback(port);
  if (bind(fd, (struct sockaddr *)&a, sizeof a) < 0) die("bind");
  watch(EPOLL_CTL_ADD, fd, EPOLLIN);
  struct epoll_event event;
  for (;;) {
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    ssize_t got = recvfrom(fd, chunk, CHUNK, 0, (struct sockaddr *)&from, &size);
    if (got < 0) {
      if (errno == EAGAIN) epoll_wait(epoll_fd, &event, 1, -1);
      continue;
    }
    uint16_t client = ntohs(from.sin_port);
    if (chunk[0] == 'E') {
      sendto(fd, chunk, (size_t)got, 0, (struct sockaddr *)&from, size);
    } else if (chunk[0] == 'D') {
      for (int i = 0; i < BURST; i++) sendto(fd, chunk, LARGE, 0, (struct sockaddr *)&from, size);
    } else {
      counted[client]++;
      if (chunk[0] == 'A') {
        sendto(fd, &counted[client], sizeof counted[client], 0, (struct sockaddr *)&from, size);
        counted[client] = 0;
      }
    }
  }
}

/* Clients */

struct client {
  uint64_t began_ns; /* of the question, or of the latest sign of life */
  int received;      /* of the bursts under way (down) */
  bool is_used;
};

static struct client clients[MAX_FDS];
static uint64_t count, lost;
static int target_port, most_fd;
static bool measuring;
static char scenario; /* p, s, u, d */
static char question[MESSAGE], large[LARGE];

static void ask(int fd) {
  clients[fd].began_ns = now_ns();
  send(fd, question, MESSAGE, 0);
}

static void burst(int fd) {
  if (scenario == 'd') {
    send(fd, "D", 1, 0);
    return;
  }
  for (int i = 0; i < BURST; i++) {
    large[0] = i == BURST - 1 ? 'A' : 'U';
    send(fd, large, LARGE, 0);
  }
}

static void begin(int fd) {
  clients[fd].began_ns = now_ns();
  clients[fd].received = 0;
  if (scenario == 'p' || scenario == 's')
    ask(fd);
  else
    for (int i = 0; i < WINDOW; i++) burst(fd);
}

static void open_client(void) {
  int fd = datagram_socket();
  struct sockaddr_in a = loopback(target_port);
  if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0) die("connect");
  clients[fd].is_used = true;
  if (fd > most_fd) most_fd = fd;
  watch(EPOLL_CTL_ADD, fd, EPOLLIN);
  begin(fd);
}

static void answered(int fd) {
  uint64_t now = now_ns();
  if (measuring) {
    count++;
    record(now - clients[fd].began_ns);
  }
  if (scenario == 'p') {
    ask(fd);
  } else {
    clients[fd].is_used = false;
    close(fd);
    open_client();
  }
}

static void acknowledged(int fd, uint32_t arrived) {
  clients[fd].began_ns = now_ns();
  if (measuring) {
    count += arrived;
    if (arrived < BURST) lost += BURST - arrived;
  }
  burst(fd);
}

static void arrived(int fd) {
  clients[fd].began_ns = now_ns();
  if (measuring) count++;
  if (++clients[fd].received == BURST) {
    clients[fd].received = 0;
    burst(fd);
  }
}

static void serve(int fd) {
  for (int turn = 0; turn < BURST; turn++) {
    ssize_t got = recv(fd, chunk, CHUNK, 0);
    if (got < 0) return; /* EAGAIN, or nobody listened: patience ends */
    if (scenario == 'p' || scenario == 's') {
      answered(fd);
      return;
    }
    if (scenario == 'u') {
      uint32_t number;
      memcpy(&number, chunk, sizeof number);
      acknowledged(fd, number);
    } else {
      arrived(fd);
    }
  }
}

/* Whoever has heard nothing for long has lost what was under way. */
static void look_for_lost(void) {
  uint64_t now = now_ns();
  for (int fd = 0; fd <= most_fd; fd++) {
    if (!clients[fd].is_used || now - clients[fd].began_ns < PATIENCE_MS * 1000000ull) continue;
    if (measuring) lost += scenario == 'p' || scenario == 's' ? 1 : WINDOW * BURST - (uint64_t)clients[fd].received;
    begin(fd);
  }
}

static void load(int number, double warmup_s, double seconds) {
  for (int i = 0; i < number; i++) open_client();
  uint64_t start = now_ns() + (uint64_t)(warmup_s * 1e9), stop = start + (uint64_t)(seconds * 1e9), now;
  uint64_t next_look = 0;
  struct epoll_event events[BATCH];
  while ((now = now_ns()) < stop) {
    if (!measuring && now >= start) {
      measuring = true;
      puts("start");
      start = now;
    }
    if (now >= next_look) {
      look_for_lost();
      next_look = now + PATIENCE_MS * 250000ull;
    }
    int n = epoll_wait(epoll_fd, events, BATCH, 10);
    for (int i = 0; i < n; i++) serve(events[i].data.fd);
  }
  print_stop(count, now - start, lost);
}

int main(int argc, char **argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  epoll_fd = epoll_create1(0);
  memset(question, 'E', sizeof question);
  if (argc == 3 && !strcmp(argv[1], "origin")) {
    origin(atoi(argv[2]));
  } else if (argc == 6 && strchr("psud", argv[1][0])) {
    scenario = argv[1][0];
    target_port = atoi(argv[2]);
    load(atoi(argv[3]), atof(argv[4]), atof(argv[5]));
    return 0;
  }
  fprintf(stderr, "usage: load_udp origin PORT | load_udp ping|session|up|down PORT CLIENTS WARMUP_S SECONDS\n");
  return 2;
}
