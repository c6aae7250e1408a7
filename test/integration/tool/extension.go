package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// extension is an aggregated API server: buoys, namespaced, in memory. Who asks must be vouched for by the front proxy.
type extension struct {
	group string
	host  string

	mu    sync.Mutex
	buoys map[string]map[string]any // by namespace/name
	moved chan struct{}             // closed when they change
}

func serveExtension(address, dir, group string) error {
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	authority, err := os.ReadFile(filepath.Join(dir, "proxy-ca.crt"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		return errors.New("proxy-ca.crt holds no certificate")
	}
	x := &extension{group: group, host: host, buoys: map[string]map[string]any{}, moved: make(chan struct{})}
	server := &http.Server{
		Addr: address, Handler: x, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, ClientCAs: roots, ClientAuth: tls.VerifyClientCertIfGiven},
	}
	return server.ListenAndServeTLS(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
}

func (x *extension) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if len(req.TLS.VerifiedChains) == 0 || req.TLS.PeerCertificates[0].Subject.CommonName != "front-proxy-client" {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	base := []string{"apis", x.group, "v1"}
	switch {
	case slices.Equal(parts, base):
		send(w, http.StatusOK, map[string]any{"kind": "APIResourceList", "groupVersion": x.group + "/v1", "resources": []any{map[string]any{
			"name": "buoys", "singularName": "buoy", "namespaced": true, "kind": "Buoy", "shortNames": []string{"by"},
			"verbs": []string{"create", "delete", "get", "list", "watch"},
		}}})
	case len(parts) >= 6 && slices.Equal(parts[:3], base) && parts[3] == "namespaces" && parts[5] == "buoys":
		x.serveBuoys(w, req, parts[4], parts[6:])
	default:
		http.NotFound(w, req)
	}
}

func (x *extension) serveBuoys(w http.ResponseWriter, req *http.Request, namespace string, rest []string) {
	name := strings.Join(rest, "/")
	x.mu.Lock()
	defer x.mu.Unlock()
	switch key := namespace + "/" + name; {
	case req.Method == http.MethodPost && name == "":
		var buoy map[string]any
		if err := json.NewDecoder(req.Body).Decode(&buoy); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		meta, _ := buoy["metadata"].(map[string]any)
		if meta == nil {
			http.Error(w, "a buoy without metadata", http.StatusBadRequest)
			return
		}
		meta["namespace"], meta["uid"], meta["resourceVersion"] = namespace, fmt.Sprint("uid-", meta["name"]), "1"
		meta["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
		buoy["status"] = map[string]any{"host": x.host, "by": req.Header.Get("X-Remote-User"), "groups": req.Header["X-Remote-Group"]}
		x.buoys[fmt.Sprint(namespace, "/", meta["name"])] = buoy
		x.change()
		send(w, http.StatusCreated, buoy)
	case req.URL.Query().Has("watch"):
		x.watch(w, req, namespace)
	case req.Method == http.MethodGet && name == "":
		items := []any{}
		for k, buoy := range x.buoys {
			if strings.HasPrefix(k, namespace+"/") {
				items = append(items, buoy)
			}
		}
		send(w, http.StatusOK, map[string]any{"kind": "BuoyList", "apiVersion": x.group + "/v1", "metadata": map[string]any{"resourceVersion": "1"}, "items": items})
	case x.buoys[key] == nil:
		send(w, http.StatusNotFound, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404,
			"message": fmt.Sprintf("buoys.%s %q not found", x.group, name)})
	case req.Method == http.MethodGet:
		send(w, http.StatusOK, x.buoys[key])
	case req.Method == http.MethodDelete:
		delete(x.buoys, key)
		x.change()
		send(w, http.StatusOK, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Success"})
	default:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

// change wakes watches. Callers hold mu.
func (x *extension) change() {
	close(x.moved)
	x.moved = make(chan struct{})
}

// watch tells of buoys that come, until the client goes. Callers hold mu.
func (x *extension) watch(w http.ResponseWriter, req *http.Request, namespace string) {
	w.Header().Set("Content-Type", "application/json")
	told := map[string]bool{}
	for {
		for key, buoy := range x.buoys {
			if strings.HasPrefix(key, namespace+"/") && !told[key] {
				told[key] = true
				if json.NewEncoder(w).Encode(map[string]any{"type": "ADDED", "object": buoy}) != nil {
					return
				}
			}
		}
		_ = http.NewResponseController(w).Flush()
		moved := x.moved
		x.mu.Unlock()
		select {
		case <-moved:
			x.mu.Lock()
		case <-req.Context().Done():
			x.mu.Lock()
			return
		}
	}
}

func send(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		fmt.Fprintln(os.Stderr, "tool:", err)
	}
}
