package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

//go:embed page.html
var page string

// info is what the application says about itself.
type info struct {
	Version   string `json:"version"`
	Pod       string `json:"pod"`
	Namespace string `json:"namespace"`
	Node      string `json:"node"`
	IP        string `json:"ip"`
	// Message comes from a ConfigMap; a change reaches running pods within a minute or so.
	Message string `json:"message"`
	// Secret says whether a Secret is mounted. What is in it nobody is told.
	Secret   bool   `json:"secret"`
	Requests uint64 `json:"requests"`
	Uptime   string `json:"uptime"`
}

// app is the application's handler.
type app struct {
	mux      *http.ServeMux
	page     *template.Template
	options  options
	getenv   func(string) string
	log      *slog.Logger
	started  time.Time
	requests atomic.Uint64
	stopping atomic.Bool
}

func newApp(o options, getenv func(string) string, log *slog.Logger) *app {
	a := &app{
		mux:     http.NewServeMux(),
		page:    template.Must(template.New("page").Parse(page)),
		options: o, getenv: getenv, log: log, started: time.Now(),
	}
	a.mux.HandleFunc("GET /{$}", a.home)
	a.mux.HandleFunc("GET /info", a.json)
	a.mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	a.mux.HandleFunc("GET /readyz", a.ready)
	return a
}

// ServeHTTP implements http.Handler.
func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// A client that keeps its connection would stay with this pod for ever, also while it
	// stops; balancing should be seen.
	w.Header().Set("Connection", "close")
	w.Header().Set("Cache-Control", "no-store")
	a.mux.ServeHTTP(w, r)
}

// info collects what there is to say.
func (a *app) info() info {
	return info{
		Version:   version,
		Pod:       a.getenv("POD_NAME"),
		Namespace: a.getenv("POD_NAMESPACE"),
		Node:      a.getenv("NODE_NAME"),
		IP:        a.getenv("POD_IP"),
		Message:   a.message(),
		Secret:    exists(filepath.Join(a.options.secret, "token")),
		Requests:  a.requests.Load(),
		Uptime:    time.Since(a.started).Round(time.Second).String(),
	}
}

// message reads the ConfigMap's file anew each time, because it changes with the ConfigMap.
func (a *app) message() string {
	data, err := os.ReadFile(filepath.Join(a.options.config, "message"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (a *app) home(w http.ResponseWriter, r *http.Request) {
	a.requests.Add(1)
	i := a.info()
	if !strings.Contains(r.Header.Get("Accept"), "text/html") {
		_, _ = fmt.Fprintf(w, "hello %s from %s on %s: %s\n", i.Version, i.Pod, i.Node, i.Message)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := a.page.Execute(w, i); err != nil {
		a.log.Warn("page not sent", "error", err)
	}
}

func (a *app) json(w http.ResponseWriter, _ *http.Request) {
	a.requests.Add(1)
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(a.info()); err != nil {
		a.log.Warn("info not sent", "error", err)
	}
}

func (a *app) ready(w http.ResponseWriter, _ *http.Request) {
	if a.stopping.Load() {
		http.Error(w, "stopping", http.StatusServiceUnavailable)
		return
	}
	_, _ = fmt.Fprintln(w, "ok")
}
