#!/usr/bin/env bash
# What the tests need of the distribution and pip cannot bring: PostgreSQL's server, and ip and tc for broken networks.
# Nothing is done for what is there. Without the rights to install, the tests themselves say what is missing.
set -euo pipefail

missing=()
compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null || missing+=(postgresql)
{ command -v ip && command -v tc; } >/dev/null || missing+=(iproute2)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "missing: ${missing[*]}; install them (Debian: sudo apt-get install ${missing[*]})"
  exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
