package snapshot

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Paths of the API, behind its authentication and authorization. What takes as long as the disk needs has to be
// below a prefix whose requests last as long as their clients want.
const (
	// PathStatus answers GET with a Status.
	PathStatus = "/barque/v1/snapshots"
	// saveName and sendName are below that prefix. POST on the first takes a snapshot, which stays on the server, and
	// answers with its Info; on the second it answers with the snapshot itself.
	saveName = "snapshots/save"
	sendName = "snapshots/send"
)

// PathSave and PathSend are where a server that has the prefix for long requests takes snapshots.
func PathSave(long string) string { return long + saveName }

// PathSend is PathSave for a snapshot that is sent.
func PathSend(long string) string { return long + sendName }

// Paths are all of them.
func Paths(long string) []string { return []string{PathStatus, PathSave(long), PathSend(long)} }

// Status is what a server tells of its snapshots.
type Status struct {
	Server string `json:"server"`
	Dir    string `json:"dir"`
	// Every is how often it takes one, in Go's notation; "0s" for never. Keep is how many of those stay.
	Every string `json:"every"`
	Keep  int    `json:"keep"`
	// Problem is why the last scheduled one was not taken.
	Problem   string `json:"problem,omitempty"`
	Snapshots []Info `json:"snapshots"`
	// Remote is where they are copied to; nil for nowhere.
	Remote *RemoteStatus `json:"remote,omitempty"`
}

// Handlers serve the paths.
func (k *Keeper) Handlers(long string) map[string]http.Handler {
	return map[string]http.Handler{
		PathStatus:     on(http.MethodGet, k.serveStatus),
		PathSave(long): on(http.MethodPost, k.serveSave),
		PathSend(long): on(http.MethodPost, k.serveSend),
	}
}

func on(method string, do http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			w.Header().Set("Allow", method)
			http.Error(w, "only "+method+" works here", http.StatusMethodNotAllowed)
			return
		}
		do(w, r)
	})
}

func (k *Keeper) serveStatus(w http.ResponseWriter, _ *http.Request) {
	list, err := List(k.cfg.Dir)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	k.answer(w, Status{
		Server: k.cfg.Server, Dir: k.cfg.Dir, Every: k.cfg.Every.String(), Keep: k.cfg.Keep, Problem: k.Problem(), Snapshots: list,
		Remote: k.remoteStatus(),
	})
}

func (k *Keeper) serveSave(w http.ResponseWriter, r *http.Request) {
	info, err := k.Save(r.Context())
	if err != nil {
		k.refuse(w, err)
		return
	}
	info.Dir = k.cfg.Dir
	k.answer(w, info)
}

func (k *Keeper) serveSend(w http.ResponseWriter, r *http.Request) {
	begun := false
	control := http.NewResponseController(w)
	err := k.send(r.Context(), func(m Manifest, size int64) io.Writer {
		begun = true
		w.Header().Set("Content-Type", "application/x-tar")
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
		w.Header().Set("Content-Disposition", `attachment; filename="`+m.Name().String()+`"`)
		return &patientWriter{w: w, control: control, patience: k.patience}
	})
	_ = control.SetWriteDeadline(time.Time{}) // the connection may have other requests
	switch {
	case err == nil:
	case !begun:
		k.refuse(w, err)
	default:
		k.log.Info("a snapshot was not taken by who asked for it", "error", err)
		panic(http.ErrAbortHandler) // the client sees that it is not complete
	}
}

const (
	// patience is how long a client may take for a piece of a snapshot: what it does not take holds room on the disk.
	patience = time.Minute
	// piece is so many bytes.
	piece = 1 << 20
)

// patientWriter gives up on a client that does not take a piece in time.
type patientWriter struct {
	w        io.Writer
	control  *http.ResponseController
	patience time.Duration
	left     int // of the piece
}

func (w *patientWriter) Write(b []byte) (int, error) {
	if w.left <= 0 {
		w.left = piece
		_ = w.control.SetWriteDeadline(time.Now().Add(w.patience)) // not every connection has them
	}
	w.left -= len(b)
	return w.w.Write(b)
}

func (k *Keeper) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		k.log.Debug("an answer was not sent", "error", err)
	}
}

func (k *Keeper) refuse(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch {
	case errors.Is(err, ErrBusy):
		code = http.StatusConflict
	case errors.Is(err, ErrNoRoom):
		code = http.StatusInsufficientStorage
	}
	k.log.Warn("no snapshot was taken on request", "error", err)
	http.Error(w, err.Error(), code)
}
