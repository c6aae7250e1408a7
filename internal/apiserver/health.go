package apiserver

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"

	"k8s.io/apiserver/pkg/server/healthz"
)

// addHealth serves /livez, /readyz and, for older clients, /healthz: as a whole, and each check by
// itself below.
func (s *Server) addHealth(p *paths) {
	ping := healthz.NamedCheck("ping", func(*http.Request) error { return nil })
	shutdown := healthz.NamedCheck("shutdown", func(*http.Request) error {
		if s.retiring.Err() != nil {
			return errors.New("the server is shutting down")
		}
		return nil
	})
	live := append([]healthz.HealthChecker{ping}, s.cfg.Livez...)
	ready := append([]healthz.HealthChecker{ping}, s.cfg.Readyz...)
	all := append(slices.Clone(live), s.cfg.Readyz...)
	s.addChecks(p, "livez", live)
	s.addChecks(p, "readyz", append(ready, shutdown))
	s.addChecks(p, "healthz", all)
}

func (s *Server) addChecks(p *paths, name string, checks []healthz.HealthChecker) {
	told := &verdicts{log: s.log, endpoint: name, last: map[string]string{}}
	p.add("/"+name, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		serveHealth(w, req, told, checks)
	}))
	for _, check := range checks {
		p.add("/"+name+"/"+check.Name(), http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if err := check.Check(req); err != nil {
				http.Error(w, fmt.Sprintf("internal server error: %v", err), http.StatusInternalServerError)
				return
			}
			fmt.Fprint(w, "ok")
		}))
	}
}

// verdicts tells in the log what a health endpoint came to when that changes, not each time that somebody
// asks. It is safe for concurrent use.
type verdicts struct {
	log      *slog.Logger
	endpoint string

	mu   sync.Mutex
	last map[string]string // by check; a check that passes is not in it
}

// note takes what a check came to.
func (v *verdicts) note(check string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	now, before := "", v.last[check]
	if err != nil {
		now = err.Error()
	}
	if now == before {
		return
	}
	log := v.log.With("endpoint", v.endpoint, "check", check)
	if err != nil {
		v.last[check] = now
		log.Warn("health check failed", "error", err)
		return
	}
	delete(v.last, check)
	log.Info("health check passes again")
}

// serveHealth runs the checks that the request does not exclude. Reasons go to the log: anybody may ask
// for health.
func serveHealth(w http.ResponseWriter, req *http.Request, told *verdicts, checks []healthz.HealthChecker) {
	query := req.URL.Query()
	excluded := query["exclude"]
	var report strings.Builder
	failed := false
	for _, check := range checks {
		if i := slices.Index(excluded, check.Name()); i >= 0 {
			excluded = slices.Delete(slices.Clone(excluded), i, i+1)
			fmt.Fprintf(&report, "[+]%s excluded: ok\n", check.Name())
			continue
		}
		err := check.Check(req)
		told.note(check.Name(), err)
		if err != nil {
			fmt.Fprintf(&report, "[-]%s failed: reason withheld\n", check.Name())
			failed = true
			continue
		}
		fmt.Fprintf(&report, "[+]%s ok\n", check.Name())
	}
	if len(excluded) > 0 {
		fmt.Fprintf(&report, "warn: some health checks cannot be excluded: no matches for %q\n", excluded)
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if failed {
		http.Error(w, report.String()+told.endpoint+" check failed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if _, verbose := query["verbose"]; !verbose {
		fmt.Fprint(w, "ok")
		return
	}
	fmt.Fprintf(w, "%s%s check passed\n", report.String(), told.endpoint)
}
