package upgrade

import (
	"encoding/json"
	"errors"
	"net/http"
)

// Paths of an upgrade, on a server's API and, below nodes/NAME/proxy, on an agent's. GET on the first answers with a Status. POST on
// the second, which comes after what begins the paths of long requests, takes a program, and on the others switches to it, or
// back; all of them answer with a Status. What is sent, or switched to, is named by its SHA-256 as the parameter sum.
const (
	PathStatus  = "/barque/v1/upgrade"
	PathSwitch  = PathStatus + "/switch"
	PathBack    = PathStatus + "/back"
	pathProgram = "upgrade/program"
)

// PathProgram is where a program is sent to.
func PathProgram(long string) string { return long + pathProgram }

// Handlers serve the paths. They must stand behind authorization: who may replace the program has the machine.
func (u *Upgrader) Handlers(long string) map[string]http.Handler {
	return map[string]http.Handler{
		PathStatus: u.handle(http.MethodGet, func(*http.Request) error { return nil }),
		PathSwitch: u.handle(http.MethodPost, func(r *http.Request) error { return u.Switch(r.URL.Query().Get("sum")) }),
		PathBack:   u.handle(http.MethodPost, func(r *http.Request) error { return u.Back(r.Context()) }),
		PathProgram(long): u.handle(http.MethodPost, func(r *http.Request) error {
			_, err := u.Receive(r.Context(), r.URL.Query().Get("sum"), r.Body)
			return err
		}),
	}
}

func (u *Upgrader) handle(method string, do func(*http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			w.Header().Set("Allow", method)
			http.Error(w, "only "+method+" works here", http.StatusMethodNotAllowed)
			return
		}
		var status Status
		err := do(r)
		if err == nil {
			status, err = u.Status()
		}
		if err != nil {
			http.Error(w, err.Error(), code(err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(status) // a client that went away needs no answer
	})
}

func code(err error) int {
	switch {
	case errors.Is(err, ErrBusy):
		return http.StatusConflict
	case errors.Is(err, ErrProgram), errors.Is(err, ErrSkew), errors.Is(err, ErrNothing):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}
