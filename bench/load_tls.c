/* Load for TLS termination: clients that shake hands again and again, or move bytes through sessions that stay.
 *
 *   load_tls SCENARIO PORT CONNECTIONS WARMUP_S SECONDS       full | resumed | resumed12 | down | up
 *
 * One thread on one epoll, as in load.c, whose origin stands behind the proxy and whose lines it prints. Non-blocking
 * OpenSSL on the socket itself.
 *
 *   full       connect, a full TLS 1.3 handshake, one 64-byte message there and back, close_notify, close
 *   resumed    the same, resumed with the newest ticket (psk_dhe_ke: a key exchange, no signature)
 *   resumed12  the same in TLS 1.2: an abbreviated handshake by ticket, no key exchange at all
 *   down, up   TLS 1.3, bytes without end in one direction
 *
 * A message is part of a handshake's measurement because a handshake alone is not worth anything: so the session did
 * reach the upstream, and the ticket did arrive.
 *
 * AES-256-GCM is all that the client offers, and X25519 before P-256 (which TLS 1.2 must see before it allows the
 * certificate's curve), so that no proxy's taste is measured. The certificate is not checked; its signature over the
 * handshake always is, by OpenSSL. A connection that should have been resumed and was not is an error.
 */
#define _GNU_SOURCE
#include "load.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

enum { RECORDS_PER_TURN = 32 };

enum state { CONNECTING, SHAKING_HANDS, EXCHANGING, MOVING };

struct connection {
  SSL *ssl;
  uint64_t began_ns;
  uint32_t interest; /* what epoll watches for */
  int received;
  enum state state;
  bool has_ticket;
};

static struct connection connections[MAX_FDS];
static SSL_CTX *context;
static SSL_SESSION *ticket; /* the newest */
static uint64_t count, errors;
static int target_port;
static bool measuring, resuming;
static char bulk; /* d, u, or 0: handshakes */
static char first[MESSAGE];

static void die_of_tls(const char *what) {
  fprintf(stderr, "%s: ", what);
  ERR_print_errors_fp(stderr);
  exit(1);
}

/* OpenSSL's callback for a ticket that came. Returns 1: the session is ours now. */
static int keep_ticket(SSL *ssl, SSL_SESSION *session) {
  (void)ssl;
  SSL_SESSION_free(ticket);
  ticket = session;
  return 1;
}

static void set_up(int version) {
  context = SSL_CTX_new(TLS_client_method());
  if (!context || !SSL_CTX_set_min_proto_version(context, version) ||
      !SSL_CTX_set_max_proto_version(context, version) || !SSL_CTX_set1_groups_list(context, "X25519:P-256") ||
      !SSL_CTX_set_ciphersuites(context, "TLS_AES_256_GCM_SHA384") ||
      !SSL_CTX_set_cipher_list(context, "ECDHE-ECDSA-AES256-GCM-SHA384"))
    die_of_tls("SSL_CTX");
  SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
  SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE);
  if (resuming) {
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, keep_ticket);
  }
}

static void open_connection(void) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (fd < 0 || fd >= MAX_FDS) die("socket");
  no_delay(fd);
  struct sockaddr_in a = loopback(target_port);
  if (connect(fd, (struct sockaddr *)&a, sizeof a) < 0 && errno != EINPROGRESS) die("connect");
  SSL *ssl = SSL_new(context);
  if (!ssl || !SSL_set_fd(ssl, fd) || !SSL_set_tlsext_host_name(ssl, "bench.test")) die_of_tls("SSL_new");
  bool has_ticket = resuming && ticket;
  if (has_ticket) {
    /* A copy, because OpenSSL marks what it resumed in TLS 1.3 as used up, and others may be about to offer the same. */
    SSL_SESSION *copy = SSL_SESSION_dup(ticket);
    if (!copy || !SSL_set_session(ssl, copy)) die_of_tls("SSL_set_session");
    SSL_SESSION_free(copy);
  }
  connections[fd] =
      (struct connection){.ssl = ssl, .began_ns = now_ns(), .interest = EPOLLOUT, .has_ticket = has_ticket};
  watch(EPOLL_CTL_ADD, fd, EPOLLOUT);
}

static void start_again(int fd) {
  /* Else OpenSSL takes a session that ended without close_notify for a bad one, and marks it, and its ticket with it. */
  SSL_set_shutdown(connections[fd].ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
  SSL_free(connections[fd].ssl);
  close(fd);
  open_connection();
}

static void failed(int fd) {
  errors++;
  if (errors > MAX_ERRORS) {
    fprintf(stderr, "more than %d failed connections; the last: ", MAX_ERRORS);
    ERR_print_errors_fp(stderr);
    exit(1);
  }
  ERR_clear_error();
  start_again(fd);
}

static void wait_for(int fd, uint32_t interest) {
  struct connection *c = &connections[fd];
  if (interest != c->interest) watch(EPOLL_CTL_MOD, fd, interest);
  c->interest = interest;
}

/* OpenSSL could not go on: watch for what it waits for. Anything else is the end of the connection. */
static void pause_or_fail(int fd, int result) {
  struct connection *c = &connections[fd];
  uint32_t interest;
  switch (SSL_get_error(c->ssl, result)) {
  case SSL_ERROR_WANT_READ:
    interest = EPOLLIN;
    break;
  case SSL_ERROR_WANT_WRITE:
    interest = EPOLLOUT;
    break;
  default:
    failed(fd);
    return;
  }
  wait_for(fd, interest);
}

static void finish_exchange(int fd) {
  struct connection *c = &connections[fd];
  if (resuming && c->has_ticket && !SSL_session_reused(c->ssl)) {
    failed(fd);
    return;
  }
  /* Without a ticket it was the first of its place: a full handshake that fetches one. */
  if (measuring && (!resuming || c->has_ticket)) {
    count++;
    record(now_ns() - c->began_ns);
  }
  SSL_shutdown(c->ssl);
  start_again(fd);
}

static void exchange(int fd) {
  struct connection *c = &connections[fd];
  while (c->received < MESSAGE) {
    int n = SSL_read(c->ssl, chunk, MESSAGE - c->received);
    if (n <= 0) {
      pause_or_fail(fd, n);
      return;
    }
    c->received += n;
  }
  finish_exchange(fd);
}

static void move(int fd) {
  struct connection *c = &connections[fd];
  for (int turn = 0; turn < RECORDS_PER_TURN; turn++) {
    int n = bulk == 'u' ? SSL_write(c->ssl, chunk, CHUNK) : SSL_read(c->ssl, chunk, CHUNK);
    if (n <= 0) {
      pause_or_fail(fd, n);
      return;
    }
    if (measuring) count += (uint64_t)n;
  }
  wait_for(fd, bulk == 'u' ? EPOLLOUT : EPOLLIN);
}

static void shake_hands(int fd) {
  struct connection *c = &connections[fd];
  int result = SSL_connect(c->ssl);
  if (result != 1) {
    pause_or_fail(fd, result);
    return;
  }
  int length = bulk ? 1 : MESSAGE;
  if (SSL_write(c->ssl, first, length) != length) { /* always fits in the socket's buffer */
    failed(fd);
    return;
  }
  c->state = bulk ? MOVING : EXCHANGING;
  if (bulk)
    move(fd);
  else
    exchange(fd);
}

static void handle(int fd) {
  switch (connections[fd].state) {
  case CONNECTING:
    connections[fd].state = SHAKING_HANDS; /* a refused connect fails in the handshake's first write */
    shake_hands(fd);
    break;
  case SHAKING_HANDS:
    shake_hands(fd);
    break;
  case EXCHANGING:
    exchange(fd);
    break;
  case MOVING:
    move(fd);
    break;
  }
}

static void client(int how_many, double warmup_s, double seconds) {
  for (int i = 0; i < how_many; i++) open_connection();
  uint64_t start = now_ns() + (uint64_t)(warmup_s * 1e9), stop = start + (uint64_t)(seconds * 1e9), now;
  struct epoll_event events[BATCH];
  while ((now = now_ns()) < stop) {
    if (!measuring && now >= start) {
      measuring = true;
      puts("start");
      start = now;
    }
    int n = epoll_wait(epoll_fd, events, BATCH, 10);
    for (int i = 0; i < n; i++) handle(events[i].data.fd);
  }
  print_stop(count, now - start, errors);
}

int main(int argc, char **argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  signal(SIGPIPE, SIG_IGN); /* OpenSSL writes without MSG_NOSIGNAL */
  epoll_fd = epoll_create1(0);
  const char *scenario = argc == 6 ? argv[1] : "";
  bool resumed12 = !strcmp(scenario, "resumed12");
  resuming = resumed12 || !strcmp(scenario, "resumed");
  bulk = !strcmp(scenario, "down") ? 'd' : !strcmp(scenario, "up") ? 'u' : 0;
  if (!resuming && !bulk && strcmp(scenario, "full")) {
    fprintf(stderr, "usage: load_tls full|resumed|resumed12|down|up PORT CONNECTIONS WARMUP_S SECONDS\n");
    return 2;
  }
  memset(first, 'E', sizeof first);
  if (bulk) first[0] = bulk == 'd' ? 'D' : 'U';
  target_port = atoi(argv[2]);
  set_up(resumed12 ? TLS1_2_VERSION : TLS1_3_VERSION);
  client(atoi(argv[3]), atof(argv[4]), atof(argv[5]));
  return 0;
}
