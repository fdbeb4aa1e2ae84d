#!/bin/sh
# Usage: tools/debian_install.sh PACKAGE…
#
# Installs the packages that are missing: as root. Anybody else is told what to type. Servers are neither started nor
# enabled: the tests start their own, on free ports and in temporary directories.
set -eu

if ! command -v dpkg-query >/dev/null; then
    echo "streamgw: this is not a Debian; install what these packages hold, then run \`make check\`: $*" >&2
    exit 1
fi

missing=
for package in "$@"; do
    status=$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null || true)
    [ "$status" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "streamgw: packages are missing. Install them, then try again:" >&2
    echo "    sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

# invoke-rc.d asks this program; 101 forbids to start anything. An administrator's own policy is left alone.
policy=${POLICY_RC_D:-/usr/sbin/policy-rc.d}
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM
fi

echo "streamgw: installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq || { sleep 3 && apt-get update -qq; }
# shellcheck disable=SC2086  # a list of package names
apt-get install -qq -y --no-install-recommends $missing >/dev/null

# What Debian enabled a moment ago would start with the next boot; what was there before is not ours to touch.
if command -v systemctl >/dev/null; then
    for package in $missing; do
        case $package in
        mariadb-server) units="mariadb" ;;
        postgresql) units="postgresql" ;;
        redis-server) units="redis-server" ;;
        mosquitto) units="mosquitto" ;;
        openssh-server) units="ssh" ;;
        nginx-light) units="nginx" ;;
        haproxy) units="haproxy" ;;
        iperf3) units="iperf3" ;;
        unbound) units="unbound" ;;
        rsyslog) units="rsyslog syslog.socket" ;;
        freeradius) units="freeradius" ;;
        *) continue ;;
        esac
        systemctl disable --quiet $units >/dev/null 2>&1 || true
    done
fi
