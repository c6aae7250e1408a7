package apiserver

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"k8s.io/apiserver/pkg/server/healthz"
)

// addHealth serves /livez, /readyz and, for older clients, /healthz: as a whole, and each check by
// itself below.
func (s *Server) addHealth(p *paths) {
	ping := healthz.NamedCheck("ping", func(*http.Request) error { return nil })
	shutdown := healthz.NamedCheck("shutdown", func(*http.Request) error {
		if s.stopping.Err() != nil {
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
	p.add("/"+name, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		s.serveHealth(w, req, name, checks)
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

// serveHealth runs the checks that the request does not exclude. Reasons go to the log: anybody may ask
// for health.
func (s *Server) serveHealth(w http.ResponseWriter, req *http.Request, name string, checks []healthz.HealthChecker) {
	query := req.URL.Query()
	excluded := query["exclude"]
	var report strings.Builder
	var failed []string
	for _, check := range checks {
		if i := slices.Index(excluded, check.Name()); i >= 0 {
			excluded = slices.Delete(slices.Clone(excluded), i, i+1)
			fmt.Fprintf(&report, "[+]%s excluded: ok\n", check.Name())
			continue
		}
		if err := check.Check(req); err != nil {
			fmt.Fprintf(&report, "[-]%s failed: reason withheld\n", check.Name())
			failed = append(failed, fmt.Sprintf("%s: %v", check.Name(), err))
			continue
		}
		fmt.Fprintf(&report, "[+]%s ok\n", check.Name())
	}
	if len(excluded) > 0 {
		fmt.Fprintf(&report, "warn: some health checks cannot be excluded: no matches for %q\n", excluded)
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if len(failed) > 0 {
		s.log.Warn("health check failed", "endpoint", name, "failed", failed)
		http.Error(w, report.String()+name+" check failed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if _, verbose := query["verbose"]; !verbose {
		fmt.Fprint(w, "ok")
		return
	}
	fmt.Fprintf(w, "%s%s check passed\n", report.String(), name)
}
