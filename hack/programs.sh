#!/bin/sh
# Builds what bin/barque carries inside: the small programs that run containers, and the sample
# application's images. What is up to date is left alone.
set -eu
cd "$(dirname "$0")/.."
go=${GO:-go}

# runc is linked statically with the C library and libseccomp.
for need in gcc pkg-config; do
	command -v "$need" >/dev/null || { echo "$need is missing: run hack/deps.sh, or apt-get install gcc libc6-dev libseccomp-dev pkg-config" >&2; exit 1; }
done
pkg-config --exists libseccomp || { echo "libseccomp's headers are missing: run hack/deps.sh, or apt-get install libseccomp-dev" >&2; exit 1; }

"$go" run ./internal/runtime/bundle/mkbundle -build bin/programs
"$go" run ./examples/mkimages
