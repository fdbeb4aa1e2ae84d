#!/bin/sh
# Usage: tools/install_servers.sh
#
# The real clients and servers that `make test` and `make bench` put on either side of the gateway. Quick when they are
# all there. docs/testing.md says which test uses which.
set -eu

exec "$(dirname "$0")/debian_install.sh" \
    curl git openssl iproute2 procps netcat-openbsd \
    mariadb-server mariadb-client \
    postgresql postgresql-client \
    redis-server redis-tools \
    mosquitto mosquitto-clients \
    openssh-server openssh-client \
    chromium \
    dnsmasq-base unbound bind9-dnsutils dnsperf \
    rsyslog rsyslog-openssl bsdutils freeradius freeradius-utils sip-tester \
    prometheus \
    iperf3 wrk gcc libc6-dev libssl-dev \
    nginx-light libnginx-mod-stream haproxy
