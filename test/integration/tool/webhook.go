package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
)

// review is as much of an AdmissionReview as the webhook looks at.
type review struct {
	APIVersion string    `json:"apiVersion"`
	Kind       string    `json:"kind"`
	Request    *question `json:"request,omitempty"`
	Response   *verdict  `json:"response,omitempty"`
}

type question struct {
	UID    string `json:"uid"`
	Object struct {
		Data map[string]string `json:"data"`
	} `json:"object"`
}

type verdict struct {
	UID       string         `json:"uid"`
	Allowed   bool           `json:"allowed"`
	Status    map[string]any `json:"status,omitempty"`
	Patch     []byte         `json:"patch,omitempty"`
	PatchType string         `json:"patchType,omitempty"`
}

// serveWebhook answers for admission: at /mutate it notes in an object's data which pod it is, and at /validate it refuses
// objects whose data holds "refuse".
func serveWebhook(address, dir string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/mutate", answer(func(question) verdict {
		patch := fmt.Sprintf(`[{"op": "add", "path": "/data/seen-by", "value": %q}]`, host)
		return verdict{Allowed: true, Patch: []byte(patch), PatchType: "JSONPatch"}
	}))
	mux.HandleFunc("/validate", answer(func(q question) verdict {
		if why, refuse := q.Object.Data["refuse"]; refuse {
			return verdict{Status: map[string]any{"message": host + " refuses: " + why}}
		}
		return verdict{Allowed: true}
	}))
	return http.ListenAndServeTLS(address, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), mux)
}

func answer(decide func(question) verdict) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		var r review
		if err := json.NewDecoder(req.Body).Decode(&r); err != nil || r.Request == nil {
			http.Error(w, "no question", http.StatusBadRequest)
			return
		}
		v := decide(*r.Request)
		v.UID = r.Request.UID
		r.Request, r.Response = nil, &v
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(r); err != nil {
			fmt.Fprintln(os.Stderr, "tool:", err)
		}
	}
}
