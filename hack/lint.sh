#!/usr/bin/env bash
# The checks that need no test: formatting, go vet, staticcheck, module hygiene, house rules.
set -euo pipefail
cd "$(dirname "$0")/.."

unformatted=$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l)
[ -z "$unformatted" ] || { echo "run gofmt -w on: $unformatted" >&2; exit 1; }
go mod verify
go mod tidy -diff
go vet ./...
go tool staticcheck ./...
long=$(git ls-files '*.go' | grep -v zz_generated | xargs wc -l | awk '$2 != "total" && $1 > 800')
[ -z "$long" ] || { echo "files over 800 lines, split them: $long" >&2; exit 1; }
