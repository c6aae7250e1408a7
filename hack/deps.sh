#!/usr/bin/env bash
# Installs what the build and the tests need from Debian, and says what.
set -euo pipefail

# libseccomp: runc's seccomp filters. busybox-static: the test images. iproute2: tests.
packages=(libseccomp-dev pkg-config busybox-static iproute2)
missing=()
for p in "${packages[@]}"; do
	[ "$(dpkg-query -W -f '${Status}' "$p" 2>/dev/null)" = "install ok installed" ] || missing+=("$p")
done
for tool in go gcc; do
	command -v "$tool" >/dev/null || { echo "barque: $tool is missing: install it first (Go 1.26 from go.dev, gcc by apt-get install gcc libc6-dev)" >&2; exit 1; }
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "installing what the build needs: ${missing[*]}"
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
