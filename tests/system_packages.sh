#!/usr/bin/env bash
# Programs that tests talk to and pip cannot install: a browser that opens the report, and an SSH
# server that a benchmark is sent to. Installed where that needs no question; else named.
set -euo pipefail

missing=()
command -v chromium >/dev/null || command -v chromium-browser >/dev/null ||
  command -v google-chrome >/dev/null || missing+=(chromium)
command -v sshd >/dev/null || [ -x /usr/sbin/sshd ] || missing+=(openssh-server)
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo -n)
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
  echo "installing ${missing[*]} for the tests: a minute, once"
  export DEBIAN_FRONTEND=noninteractive
  if "${as_root[@]}" apt-get update -qq >/dev/null &&
    "${as_root[@]}" apt-get install -qq -y --no-install-recommends "${missing[@]}" >/dev/null; then
    exit 0
  fi
fi
echo "not installed: ${missing[*]}; the tests that need them are skipped, each with its reason"
