package encryption

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestControl(t *testing.T) {
	f := newFixture(t, Server{Name: "a", Alive: true}, Server{Name: "old", Alive: true})
	a := f.start(t, "a", false)
	mux := http.NewServeMux()
	for path, h := range a.control.Handlers() {
		mux.Handle(path, h)
	}
	call := func(method, path string, want int) (s Status, text string) {
		t.Helper()
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest(method, path, http.NoBody))
		text = w.Body.String()
		if w.Code != want {
			t.Fatalf("%s %s: %d %s", method, path, w.Code, text)
		}
		if want == http.StatusOK {
			if err := json.Unmarshal([]byte(text), &s); err != nil {
				t.Fatal(err)
			}
		}
		return s, text
	}
	a.hasNoted(t)
	s, _ := call("GET", PathStatus, http.StatusOK)
	if s.Writes != "" || s.Next == "" || len(s.Keys) != 1 || s.Keys[0].State != KeyWaits || strings.Join(s.Waits, ",") != "old" || len(s.Servers) != 2 {
		t.Errorf("%+v", s)
	}
	if _, text := call("POST", PathRotate, http.StatusConflict); !strings.Contains(text, ErrRotating.Error()) {
		t.Error(text)
	}
	call("POST", PathStatus, http.StatusMethodNotAllowed)
	call("GET", PathRotate, http.StatusMethodNotAllowed)
	f.set(Server{Name: "a", Alive: true})
	first := a.settled(t, "")
	a.create(t, "s", secret)
	if s, _ = call("POST", PathRotate, http.StatusOK); len(s.Keys) != 2 || s.Keys[0].Name != first || s.Keys[0].Objects != 1 {
		t.Errorf("%+v", s)
	}
	if s, _ = call("POST", PathRewrite, http.StatusOK); !s.Rewriting {
		t.Errorf("%+v", s)
	}
	call("POST", PathRewrite, http.StatusOK)
	if s, _ = call("POST", PathDisable, http.StatusOK); s.Writes != "" || s.Next != "" {
		t.Errorf("%+v", s)
	}
	if s.Resources[0].Values[label(first)] != 1 {
		t.Errorf("nobody leads, yet %+v", s.Resources)
	}
}
