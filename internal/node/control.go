package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// controlSocket is where a machine's process takes orders from whoever may open its data directory, which is root.
const controlSocket = "control.sock"

// Orders that a process takes.
const (
	orderLeave        = "/leave"        // a LeaveRequest
	orderPlan         = "/plan"         // answers with a RecoverPlan
	orderRecover      = "/recover"      // makes a cluster of one
	orderCertificates = "/certificates" // answers with an expiry.Report
)

// ErrNotRunning: no barque runs with the data directory.
var ErrNotRunning = errors.New("no barque runs with this data directory")

// say tells whoever gave an order of a step that was done.
type say func(format string, args ...any)

// order is what a process does on request. in is what was sent with it, in JSON; the result goes back in JSON.
type order func(ctx context.Context, in json.RawMessage, say say) (any, error)

// line is one line of an answer. The last has Done, with a result or an error.
type line struct {
	Say    string          `json:"say,omitempty"`
	Done   bool            `json:"done,omitempty"`
	Error  string          `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// control takes orders.
type control struct {
	server *http.Server
	dir    *os.File
	served chan struct{}
}

// openControl listens in the data directory. It is called by the one process that holds it.
func (h *home) openControl(orders map[string]order) (*control, error) {
	c := &control{served: make(chan struct{})}
	path, err := c.at(h.dir)
	if err != nil {
		return nil, err
	}
	_ = os.Remove(path) // of a process that was killed
	listener, err := net.Listen("unix", path)
	if err != nil {
		_ = c.dir.Close()
		return nil, fmt.Errorf("listen for orders in %s: %w", h.dir, err)
	}
	mux := http.NewServeMux()
	for path, do := range orders {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) { carryOut(w, r, do) })
	}
	c.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		defer close(c.served)
		_ = c.server.Serve(listener)
	}()
	return c, nil
}

// at is the socket's path. It goes by the open directory, since the address of a socket may have 107 bytes only.
func (c *control) at(dir string) (string, error) {
	var err error
	if c.dir, err = os.Open(dir); err != nil {
		return "", fmt.Errorf("open the data directory: %w", err)
	}
	return "/proc/self/fd/" + strconv.Itoa(int(c.dir.Fd())) + "/" + controlSocket, nil
}

// controlEnd is how long an answer that is under way may take to be sent when the process ends.
const controlEnd = 2 * time.Second

// close waits for answers that are under way, and stops.
func (c *control) close() {
	if c == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), controlEnd)
	defer cancel()
	if c.server.Shutdown(ctx) != nil {
		_ = c.server.Close()
	}
	<-c.served
	_ = c.dir.Close()
}

// carryOut does what was asked for, and tells of it while it goes.
func carryOut(w http.ResponseWriter, r *http.Request, do order) {
	in, err := io.ReadAll(io.LimitReader(r.Body, 1<<16))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var mu sync.Mutex
	encoder, flush := json.NewEncoder(w), http.NewResponseController(w)
	tell := func(l line) {
		mu.Lock()
		defer mu.Unlock()
		_ = encoder.Encode(l)
		_ = flush.Flush()
	}
	last := line{Done: true}
	result, err := do(r.Context(), in, func(format string, args ...any) { tell(line{Say: fmt.Sprintf(format, args...)}) })
	if err == nil {
		last.Result, err = json.Marshal(result)
	}
	if err != nil {
		last.Error = err.Error()
	}
	tell(last)
}

// tell gives the process with the data directory an order, passes on what it says, and returns what came of it.
// ErrNotRunning is wrapped when there is none.
func tell(ctx context.Context, dir, path string, in any, heard func(string)) (json.RawMessage, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("--data-dir %s: %w", dir, err)
	}
	c := &control{}
	socket, err := c.at(dir)
	if err != nil {
		return nil, fmt.Errorf("--data-dir %s can't be read (%w): name this machine's data directory, as root", dir, cause(err))
	}
	defer func() { _ = c.dir.Close() }()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encode the order: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://barque"+path, strings.NewReader(string(body)))
	if err != nil {
		return nil, fmt.Errorf("make the order: %w", err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%s: %w", dir, ErrNotRunning)
	}
	if err != nil {
		return nil, fmt.Errorf("speak to the barque with the data directory %s: %w", dir, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the barque with the data directory %s is of a kind or version that can't do this: %s", dir, resp.Status)
	}
	return listenTo(resp.Body, heard)
}

// listenTo reads an answer to its end.
func listenTo(body io.Reader, heard func(string)) (json.RawMessage, error) {
	for lines := json.NewDecoder(bufio.NewReader(body)); ; {
		var l line
		switch err := lines.Decode(&l); {
		case err != nil:
			return nil, fmt.Errorf("the process ended before it was done: its log says more (%w)", err)
		case l.Error != "":
			return nil, errors.New(l.Error)
		case l.Done:
			return l.Result, nil
		default:
			heard(l.Say)
		}
	}
}
