#!/usr/bin/env bash
# The checks that need no test: formatting, the rules of the house (hack/house), modules, go vet,
# staticcheck. The layers, with the one importer of k8s.io/kubernetes, are a test: internal/layers.
set -euo pipefail
cd "$(dirname "$0")/.."

# files prints the tree's own files, without what is deleted and not yet committed.
files() {
	git ls-files -co --exclude-standard --deduplicate -- "$@" | while read -r f; do
		if [ -f "$f" ]; then echo "$f"; fi
	done
}

unformatted=$(files '*.go' | xargs gofmt -l)
[ -z "$unformatted" ] || { echo "run gofmt -w on: $unformatted" >&2; exit 1; }
files . ':!LICENSE' ':!go.sum' | xargs go run ./hack/house
go mod verify
go mod tidy -diff
go vet ./...
go tool staticcheck ./...
for module in test/*/go.mod; do
	(
		cd "$(dirname "$module")"
		go mod tidy -diff
		go vet ./...
	)
done
