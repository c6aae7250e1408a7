# Barque's build. `make up` and `make test` do all the set-up on a fresh Debian machine that
# has Go, gcc and root.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
# The kubectl inside must know of which release it is: it compares that with the server's.
KUBERNETES = $(shell $(GO) list -m -f '{{.Version}}' k8s.io/kubernetes)
LDFLAGS = -s -w -X barque.dev/internal/node.version=$(VERSION) \
	-X k8s.io/component-base/version.gitVersion=$(KUBERNETES) \
	-X k8s.io/component-base/version.gitMajor=$(word 1,$(subst ., ,$(KUBERNETES:v%=%))) \
	-X k8s.io/component-base/version.gitMinor=$(word 2,$(subst ., ,$(KUBERNETES:v%=%)))
# netgo and osusergo keep the binary free of the machine's C library at run time. Whatever is
# built without the race detector is built with them, so that it is compiled once.
export GOFLAGS := $(GOFLAGS) -tags=netgo,osusergo

.PHONY: up down build programs test unit fuzz integration portability s3 clients bench stock stock-api bench-side-by-side bench-smoke lint check clean deps
.DEFAULT_GOAL := build

up: build ## a cluster of three masters on this machine
	bin/barque up

down:
	bin/barque down

build: bin/barque

deps: ## what the build needs from Debian
	hack/deps.sh

programs: deps ## the small programs that bin/barque carries inside
	hack/programs.sh
	$(GO) generate ./internal/api/openapi

bin/barque: programs FORCE
	$(GO) build -ldflags '$(LDFLAGS)' -o $@ ./cmd/barque

FORCE:

test: build unit integration drill-smoke portability clients differential conformance-smoke bench-smoke ## all tests, unit and integration

# Vet has its own turn in lint, and debug information makes linking a hundred test binaries slow.
unit: GOFLAGS =
unit: programs
	$(GO) test -race -vet=off -ldflags=-w -timeout 15m $$($(GO) list ./internal/... ./cmd/... ./examples/... ./hack/... ./test/report/... ./test/proc/... ./test/plane/... ./test/objects/... ./test/differential/...)

integration: build
	$(GO) test -timeout 35m -count=1 -parallel 6 ./test/integration/...

# Go spends up to a minute on making each new input smaller, unless it is told otherwise, and tries no others meanwhile.
fuzz: ## every fuzz target for TIME=2m
	set -e; grep -rl '^func Fuzz' --include=*_test.go internal | while read -r f; do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9]*\)(.*/\1/p' "$$f"); do \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(or $(TIME),2m) -fuzzminimizetime 20x -parallel 1 "./$$(dirname "$$f")"; \
		done; done

# A module of its own, since it builds a stock kube-apiserver.
portability: build ## stock kube-apiserver on Barque's etcd, and the other way round
	mkdir -p .cache
	cd test/portability && $(GO) build -o ../../.cache/kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver
	cd test/portability && BARQUE_PROGRAM=$${BARQUE_PROGRAM:-$(CURDIR)/bin/barque} $(GO) test -timeout 10m -count=1 ./...

# A module of its own, so that what the server of S3's API stands on stays out of ours.
s3: build ## snapshots in a bucket, of a server of S3's API that people run
	cd test/s3 && BARQUE_PROGRAM=$${BARQUE_PROGRAM:-$(CURDIR)/bin/barque} $(GO) test -timeout 15m -count=1 ./...

# A module of its own, so that Helm's dependencies stay out of ours. RUN is a pattern of tests' names.
clients: build ## what others point at a Kubernetes API: controller-runtime's own suites, Helm 4's SDK, an operator
	cd test/clients && BARQUE_PROGRAM=$${BARQUE_PROGRAM:-$(CURDIR)/bin/barque} $(GO) test -timeout 15m -count=1 -parallel 4 $(if $(RUN),-run '$(RUN)') ./...

bench: build ## all of docs/benchmarks.md; ROWS=gap,idle measures these alone, N=10 so often
	$(GO) run ./test/bench $(if $(ROWS),-only $(ROWS)) $(if $(N),-n $(N))

# Reports are kept: each drill has a directory of its own unless REPORT names one.
DRILL_REPORT = $(or $(REPORT),.cache/drill/$(shell date -u +%Y%m%d-%H%M%S))

drill: build ## faults strike a cluster of its own for DURATION=30m, by SEED=7; FAULTS=kill-leader,cut-leader SERVERS=5 WORKLOADS=1 REPORT=dir
	bin/barque drill --duration $(or $(DURATION),30m) $(if $(SEED),--seed $(SEED)) $(if $(FAULTS),--faults $(FAULTS)) $(if $(SERVERS),--servers $(SERVERS)) $(if $(WORKLOADS),--workloads) --report $(DRILL_REPORT)

# In a directory of its own, so that a longer drill may go on beside it. It fails by what clients were told, never by how long it took.
drill-smoke: build ## three faults, in less than a minute
	bin/barque drill --seed $(or $(SEED),1) --duration 0s --faults kill-leader,freeze-leader,cut-leader --dir /var/lib/barque-drill-smoke --report $(DRILL_REPORT)

.PHONY: drill drill-smoke

# Stock's programs come from a module of its own, so that their dependencies stay out of ours.
stock: stock-api
	cd test/sidebyside && $(GO) build -o ../../.cache/stock/ k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kube-scheduler k8s.io/kubernetes/cmd/kubelet

stock-api:
	mkdir -p .cache/stock
	cd test/sidebyside && $(GO) build -o ../../.cache/stock/etcd go.etcd.io/etcd/server/v3
	cd test/sidebyside && $(GO) build -o ../../.cache/stock/ k8s.io/kubernetes/cmd/kube-apiserver

bench-side-by-side: build stock ## ourselves beside stock, into docs/benchmarks.md; ONLY=writes,reads ROUNDS=3 SIDES=barque,stock QUICK=1
	cd test/sidebyside && $(GO) run . $(if $(ONLY),-only $(ONLY)) $(if $(ROUNDS),-rounds $(ROUNDS)) $(if $(SIDES),-sides $(SIDES)) $(if $(QUICK),-quick)

bench-smoke: build stock-api ## that the benchmarks beside stock can run, in minutes; writes nothing
	cd test/sidebyside && $(GO) test -count=1 ./... && $(GO) run . -smoke

# A module of its own, since it builds upstream's tests. FOCUS and SKIP are patterns of specs' names (a
# dollar sign is written twice); RESUME=all goes on after an interrupted run, RESUME=passed also
# repeats what failed.
conformance: build ## upstream's conformance suite against a cluster of SERVERS=3
	cd test/conformance && $(GO) run . run -focus "$$FOCUS" -skip "$$SKIP" -resume "$$RESUME" -servers $(or $(SERVERS),3) -procs $(or $(PROCS),4)

conformance-one: build ## one spec, or those that match SPEC, against a cluster that stays up
	cd test/conformance && $(GO) run . one -spec "$$SPEC" -servers $(or $(SERVERS),3)

conformance-smoke: build ## a few conformance specs of every area, in minutes
	cd test/conformance && $(GO) run . smoke

conformance-down: ## takes away the cluster of conformance-one
	cd test/conformance && $(GO) run . down

.PHONY: conformance conformance-one conformance-smoke conformance-down

differential: build stock-api ## the same requests to stock kube-apiserver and to ours; SEED=7 REQUESTS=20000 RECORD=file REPLAY=file
	$(GO) run ./test/differential $(if $(SEED),-seed $(SEED)) $(if $(REQUESTS),-requests $(REQUESTS)) $(if $(RECORD),-record $(RECORD)) $(if $(REPLAY),-replay $(REPLAY))

.PHONY: differential

lint: programs
	hack/lint.sh

check: lint test ## what CI runs

clean:
	rm -rf bin .cache
