package server

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/logs"
	"barque.dev/internal/agent/podspec"
)

// streams are what of a command's streams a caller wants.
type streams struct {
	stdin, stdout, stderr, tty bool
}

// streamsOf reads the query of an exec or attach request.
func streamsOf(r *http.Request) (streams, error) {
	q := r.URL.Query()
	on := func(names ...string) bool {
		for _, n := range names {
			if v, err := strconv.ParseBool(q.Get(n)); err == nil && v {
				return true
			}
		}
		return false
	}
	s := streams{stdin: on("input", "stdin"), stdout: on("output", "stdout"), stderr: on("error", "stderr"), tty: on("tty")}
	if s.tty {
		s.stderr = false // a terminal has one output
	}
	if !s.stdin && !s.stdout && !s.stderr {
		return s, fmt.Errorf("you must specify at least 1 of stdin, stdout, stderr")
	}
	return s, nil
}

// running finds the running container a request is about, and answers the request if there is none.
func (s *Server) running(w http.ResponseWriter, r *http.Request) (cri.Container, bool) {
	pod, ok := s.pod(w, r)
	if !ok {
		return cri.Container{}, false
	}
	observed, err := cri.Observe(r.Context(), s.Runtime, pod.UID)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return cri.Container{}, false
	}
	name := r.PathValue("container")
	c, ok := observed.Newest(name)
	if !ok || c.State != cri.StateRunning {
		http.Error(w, fmt.Sprintf("container not found (%q)", name), http.StatusNotFound)
		return c, false
	}
	return c, true
}

// target finds what an exec or attach request is about, and answers the request if it cannot.
func (s *Server) target(w http.ResponseWriter, r *http.Request) (want streams, c cri.Container, ok bool) {
	want, err := streamsOf(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return want, c, false
	}
	c, ok = s.running(w, r)
	return want, c, ok
}

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	want, c, ok := s.target(w, r)
	if !ok {
		return
	}
	reply, err := s.Runtime.Exec(r.Context(), &runtimeapi.ExecRequest{
		ContainerId: c.ID, Cmd: r.URL.Query()["command"], Tty: want.tty, Stdin: want.stdin, Stdout: want.stdout, Stderr: want.stderr,
	})
	s.relay(w, r, reply.GetUrl(), err)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	want, c, ok := s.target(w, r)
	if !ok {
		return
	}
	pod, ok := s.pod(w, r)
	if !ok {
		return
	}
	// A container has a terminal or not: attaching cannot change it.
	if spec := podspec.Container(pod, c.Name); spec != nil {
		want.tty = spec.TTY
		if want.tty {
			want.stderr = false
		}
	}
	reply, err := s.Runtime.Attach(r.Context(), &runtimeapi.AttachRequest{
		ContainerId: c.ID, Tty: want.tty, Stdin: want.stdin, Stdout: want.stdout, Stderr: want.stderr,
	})
	s.relay(w, r, reply.GetUrl(), err)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	pod, ok := s.pod(w, r)
	if !ok {
		return
	}
	observed, err := cri.Observe(r.Context(), s.Runtime, pod.UID)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	sandbox, ok := observed.Sandbox()
	if !ok || !sandbox.Ready {
		http.Error(w, fmt.Sprintf("pod %q is not running", podspec.FullName(pod)), http.StatusNotFound)
		return
	}
	var ports []int32
	for _, list := range r.URL.Query()["port"] {
		for _, p := range strings.Split(list, ",") {
			n, err := strconv.ParseUint(p, 10, 16)
			if err != nil || n == 0 {
				http.Error(w, fmt.Sprintf("invalid port %q", p), http.StatusBadRequest)
				return
			}
			ports = append(ports, int32(n))
		}
	}
	reply, err := s.Runtime.PortForward(r.Context(), &runtimeapi.PortForwardRequest{PodSandboxId: sandbox.ID, Port: ports})
	s.relay(w, r, reply.GetUrl(), err)
}

// runTimeout bounds a command of /run.
const runTimeout = 10 * time.Minute

func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	c, ok := s.running(w, r)
	if !ok {
		return
	}
	command := r.URL.Query()["cmd"]
	if len(command) == 1 {
		command = strings.Fields(command[0])
	}
	reply, err := s.Runtime.ExecSync(r.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: command, Timeout: int64(runTimeout / time.Second)})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if reply.GetExitCode() != 0 {
		w.WriteHeader(http.StatusInternalServerError)
	}
	_, _ = w.Write(append(reply.GetStdout(), reply.GetStderr()...)) // a caller that went away needs no answer
}

// logOptions reads the query of a log request.
func logOptions(r *http.Request) (o logs.Options, previous bool, stream string, err error) {
	q := r.URL.Query()
	boolean := func(name string) bool {
		v := q.Get(name)
		if v == "" || err != nil {
			return false
		}
		var b bool
		if b, err = strconv.ParseBool(v); err != nil {
			err = fmt.Errorf("invalid %s %q", name, v)
		}
		return b
	}
	integer := func(name string) *int64 {
		v := q.Get(name)
		if v == "" || err != nil {
			return nil
		}
		n, bad := strconv.ParseInt(v, 10, 64)
		if bad != nil || n < 0 {
			err = fmt.Errorf("invalid %s %q", name, v)
			return nil
		}
		return &n
	}
	o.Follow, o.Timestamps, previous = boolean("follow"), boolean("timestamps"), boolean("previous")
	o.Tail, o.LimitBytes = integer("tailLines"), integer("limitBytes")
	if seconds := integer("sinceSeconds"); seconds != nil {
		o.Since = time.Now().Add(-time.Duration(*seconds) * time.Second)
	}
	if v := q.Get("sinceTime"); v != "" && err == nil {
		if o.Since, err = time.Parse(time.RFC3339Nano, v); err != nil {
			err = fmt.Errorf("invalid sinceTime %q", v)
		}
	}
	return o, previous, q.Get("stream"), err
}

func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	o, previous, stream, err := logOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod, ok := s.pod(w, r)
	if !ok {
		return
	}
	name := r.PathValue("container")
	if podspec.Container(pod, name) == nil {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", name, pod.Name), http.StatusNotFound)
		return
	}
	observed, err := cri.Observe(r.Context(), s.Runtime, pod.UID)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	c, err := logged(pod, observed, name, previous)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	out := &flusher{w: w}
	stdout, stderr := discardUnless(stream != corev1.LogStreamStderr, out), discardUnless(stream != corev1.LogStreamStdout, out)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if err := logs.Read(r.Context(), s.Runtime, c.LogPath, c.ID, o, stdout, stderr); err != nil && r.Context().Err() == nil {
		if !out.wrote {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		s.Log.Debug("reading a log ended", "pod", podspec.FullName(pod), "container", name, "err", err)
	}
}

// logged chooses the container whose log is meant: the newest that was started, or the one before. While the next one is
// being made, or waits to be, the newest that was started is also the one before.
func logged(pod *corev1.Pod, observed cri.Pod, name string, previous bool) (cri.Container, error) {
	var started []cri.Container
	next := false
	for _, c := range observed.Containers {
		if c.Name != name {
			continue
		}
		if c.State == cri.StateCreated {
			next = next || len(started) == 0
			continue
		}
		started = append(started, c)
	}
	reason := "ContainerCreating"
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name && list[i].State.Waiting != nil {
				next = next || len(started) > 0 && started[0].State != cri.StateRunning
				reason = list[i].State.Waiting.Reason
				if list[i].State.Waiting.Message != "" && (strings.HasPrefix(reason, "Err") || strings.HasSuffix(reason, "BackOff")) {
					reason = strings.TrimPrefix(reason, "ErrImagePull: ")
				}
			}
		}
	}
	if previous && !next && len(started) > 0 {
		started = started[1:]
	}
	switch {
	case previous && len(started) == 0:
		return cri.Container{}, fmt.Errorf("previous terminated container %q in pod %q not found", name, pod.Name)
	case len(started) == 0 && (reason == "ErrImagePull" || reason == "ImagePullBackOff"):
		return cri.Container{}, fmt.Errorf("container %q in pod %q is waiting to start: trying and failing to pull image", name, pod.Name)
	case len(started) == 0:
		return cri.Container{}, fmt.Errorf("container %q in pod %q is waiting to start: %s", name, pod.Name, reason)
	}
	return started[0], nil
}
