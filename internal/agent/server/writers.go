package server

import (
	"io"
	"net/http"
)

// flusher sends every write on at once: who follows a log wants its lines as they come.
type flusher struct {
	w     http.ResponseWriter
	wrote bool
}

// Write implements io.Writer.
func (f *flusher) Write(p []byte) (int, error) {
	f.wrote = true
	n, err := f.w.Write(p)
	if flush, ok := f.w.(http.Flusher); ok {
		flush.Flush()
	}
	return n, err
}

func discardUnless(wanted bool, w io.Writer) io.Writer {
	if wanted {
		return w
	}
	return io.Discard
}
