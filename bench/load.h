/* What load.c, load_tls.c and load_udp.c share: one thread, one epoll, a clock, and latencies in a histogram. */
#ifndef LOAD_H
#define LOAD_H
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>

enum { MESSAGE = 64, CHUNK = 256 * 1024, MAX_FDS = 1 << 16, BATCH = 256, MAX_ERRORS = 1000 };

static char chunk[CHUNK];
static int epoll_fd;

static inline void die(const char *what) {
  perror(what);
  exit(1);
}

static inline uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline struct sockaddr_in loopback(int port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return a;
}

static inline void watch(int operation, int fd, uint32_t events) {
  struct epoll_event e = {.events = events, .data.fd = fd};
  if (epoll_ctl(epoll_fd, operation, fd, &e) < 0) die("epoll_ctl");
}

static inline void no_delay(int fd) {
  int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Latency: buckets that double, each cut in 128, so that a percentile is exact to 1 % */

enum { CUTS = 256 };
static uint64_t histogram[64 * CUTS], samples, longest;

static inline void record(uint64_t ns) {
  unsigned exponent = ns < CUTS ? 0 : 63u - (unsigned)__builtin_clzll(ns) - 7u;
  uint64_t cut = ns >> exponent; /* 128..255 once the exponent counts */
  histogram[exponent * CUTS + cut]++;
  samples++;
  if (ns > longest) longest = ns;
}

static inline double percentile_us(double share) {
  uint64_t wanted = (uint64_t)((double)samples * share), seen = 0;
  for (unsigned i = 0; i < 64 * CUTS; i++) {
    seen += histogram[i];
    if (histogram[i] && seen > wanted) return (double)((uint64_t)(i % CUTS) << (i / CUTS)) / 1000.0;
  }
  return 0;
}

/* The line that ends a measurement. */
static inline void print_stop(uint64_t count, uint64_t ns, uint64_t errors) {
  printf("stop %llu %.6f %.1f %.1f %.1f %llu\n", (unsigned long long)count, (double)ns / 1e9, percentile_us(0.50),
         percentile_us(0.99), (double)longest / 1e3, (unsigned long long)errors);
}
#endif
