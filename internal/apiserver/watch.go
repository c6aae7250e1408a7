package apiserver

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/wire"
)

const (
	// minWatch is how long a watch lasts that does not say; a random part of it is added, so that watches
	// that began together do not all come back together.
	minWatch = 30 * time.Minute
	// coalesce is how long a busy watch gathers events before it writes them. An idle watch writes
	// at once.
	coalesce = 5 * time.Millisecond
	// fullBatch is how many events are enough to be written without waiting for more.
	fullBatch = 64
	// frameBuffer is how much of a burst is written at a time, in bytes.
	frameBuffer = 64 << 10
)

// watch streams the changes of what the request selects until it times out, its client goes, or
// the server stops.
func (s *Server) watch(w http.ResponseWriter, req *http.Request, o operation) error {
	m, err := negotiateStream(req, o.endpoint())
	if err != nil {
		return err
	}
	opts, err := listOptions(req, o)
	if err != nil {
		return err
	}
	gvr := o.target.Resource.GVR(o.target.Version)
	stream := &stream{
		server: s, m: m, o: o, encoder: s.encoder(media{encoding: m.encoding, as: withoutTable(m)}, o),
		sizes:  s.metrics.watchSizes.WithLabelValues(gvr.Group, gvr.Version, gvr.Resource),
		events: s.metrics.watchEvents.WithLabelValues(gvr.Group, gvr.Version, gvr.Resource),
	}
	if m.table() {
		if stream.tables, err = s.newTables(req, m, o); err != nil {
			return err
		}
	}
	timeout := time.Duration(0)
	if opts.TimeoutSeconds != nil {
		timeout = time.Duration(*opts.TimeoutSeconds) * time.Second
	}
	if timeout <= 0 {
		timeout = minWatch + rand.N(minWatch)
	}
	ctx, cancel := context.WithTimeout(req.Context(), timeout)
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()

	source, err := s.registry.Watch(ctx, o.target, opts)
	if err != nil {
		return err
	}
	defer source.Close()
	s.warnIfStale(req.Context(), opts.ResourceVersion)
	// A client that has stopped reading holds its watch no longer than one that reads.
	deadline := time.Now().Add(timeout + time.Minute)
	if isWebSocket(req) {
		return stream.runOnSocket(ctx, w, req, source, deadline)
	}
	return stream.runOnBody(ctx, w, source, deadline)
}

// withoutTable is the transformation of the objects in a watch, where tables are not one of objects but of events.
func withoutTable(m media) *schema.GroupVersionKind {
	if m.table() {
		return nil
	}
	return m.as
}

// outlet is where the frames of a watch's events go.
type outlet interface {
	// Write takes whole frames; one at a time if the outlet is framed.
	io.Writer
	Flush() error
}

// stream writes the events of one watch.
type stream struct {
	server *Server
	out    outlet
	// framed outlets keep frames apart themselves.
	framed  bool
	m       media
	o       operation
	encoder *wire.Encoder
	tables  *tables
	buf     []byte
	// What is sent is counted and measured.
	sizes  prometheus.Observer
	events prometheus.Counter
}

// body is the outlet that is an HTTP response, whose frames stand one after the other.
type body struct {
	io.Writer
	*http.ResponseController
}

// runOnBody is run with events as the body of the response.
func (st *stream) runOnBody(ctx context.Context, w http.ResponseWriter, source *registry.Watch, deadline time.Time) error {
	out := body{w, http.NewResponseController(w)}
	_ = out.SetWriteDeadline(deadline) // not every connection has them
	defer func() { _ = out.SetWriteDeadline(time.Time{}) }()
	w.Header().Set("Content-Type", st.m.streamType())
	w.WriteHeader(http.StatusOK)
	if err := out.Flush(); err != nil { // the head: the client knows that the watch stands
		return err
	}
	st.out = out
	return st.run(ctx, source)
}

// run copies events from source to the client. It returns why it ended.
func (st *stream) run(ctx context.Context, source *registry.Watch) error {
	pause := time.NewTimer(0)
	defer pause.Stop()
	var last time.Time
	for {
		if !source.Beginning() {
			st.o.seat.Release() // what it costs from now on is charged to those who change things
		}
		events, err := source.Next(ctx)
		if err != nil {
			return st.end(ctx, err)
		}
		if err := st.write(ctx, events); err != nil {
			return st.end(ctx, source.Explain(err))
		}
		if err := st.out.Flush(); err != nil {
			return err
		}
		now := time.Now()
		busy := now.Sub(last) < 2*coalesce && len(events) < fullBatch
		last = now
		if busy {
			pause.Reset(coalesce)
			select {
			case <-pause.C:
			case <-ctx.Done():
			}
		}
	}
}

// write encodes events and writes them, without flushing.
func (st *stream) write(ctx context.Context, events []registry.WatchEvent) error {
	st.buf = st.buf[:0]
	for i := range events {
		before := len(st.buf)
		var err error
		if st.buf, err = st.append(ctx, st.buf, &events[i]); err != nil {
			return err
		}
		st.sizes.Observe(float64(len(st.buf) - before))
		if st.framed || len(st.buf) >= frameBuffer {
			if err := st.send(); err != nil {
				return err
			}
		}
	}
	st.events.Add(float64(len(events)))
	if err := st.send(); err != nil {
		return err
	}
	if cap(st.buf) > 2*frameBuffer {
		st.buf = nil // a burst must not cost memory for as long as the watch lasts
	}
	return nil
}

func (st *stream) send() error {
	if len(st.buf) == 0 {
		return nil
	}
	_, err := st.out.Write(st.buf)
	st.buf = st.buf[:0]
	return err
}

// append appends the frame of one event.
func (st *stream) append(ctx context.Context, dst []byte, event *registry.WatchEvent) ([]byte, error) {
	if event.Type == watch.Bookmark || st.tables != nil {
		return st.appendOwn(ctx, dst, event)
	}
	revision := int64(0)
	if event.Type == watch.Deleted {
		revision = event.Revision
	}
	item, err := st.encoder.Item(event.Entry, revision)
	if err != nil {
		return dst, err
	}
	return st.encoder.AppendFrame(dst, event.Type, item), nil
}

// appendOwn appends the frame of an event whose object is this watch's alone: a bookmark or a table.
func (st *stream) appendOwn(ctx context.Context, dst []byte, event *registry.WatchEvent) ([]byte, error) {
	result := registry.Result{Entry: event.Entry}
	if event.Type != watch.Added && event.Type != watch.Modified {
		obj, err := st.atRevision(event)
		if err != nil {
			return dst, err
		}
		result = registry.Result{Object: obj}
	}
	if st.tables == nil {
		item, err := itemOf(st.encoder, result)
		if err != nil {
			return dst, err
		}
		return st.encoder.AppendFrame(dst, event.Type, item), nil
	}
	table, err := st.tables.table(ctx, []registry.Result{result})
	if err != nil {
		return dst, err
	}
	// Columns do not change: the first event describes them.
	st.tables.options.NoHeaders = true
	return wire.AppendObjectFrame(dst, st.m.encoding, event.Type, table, st.tables.kind)
}

// atRevision is the object of a bookmark, which is empty but for the revision, or of a deletion.
func (st *stream) atRevision(event *registry.WatchEvent) (runtime.Object, error) {
	var obj runtime.Object
	var err error
	if event.Entry == nil {
		obj, err = st.o.resource.Codec().New(st.o.resource.Storage)
	} else if obj, err = event.Entry.Object(); err == nil {
		obj = obj.DeepCopyObject()
	}
	if err != nil {
		return nil, err
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, err
	}
	m.SetResourceVersion(strconv.FormatInt(event.Revision, 10))
	if event.InitialEventsEnd {
		m.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	return obj, nil
}

// end tells the client why a watch ends before its time. A watch that has run its time just ends.
func (st *stream) end(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, io.EOF) {
		return nil
	}
	status := st.server.statusOf(ctx, err)
	var known apierrors.APIStatus
	if !errors.As(err, &known) {
		status.Reason = metav1.StatusReasonInternalError
	}
	st.buf, _ = wire.AppendObjectFrame(st.buf[:0], st.m.encoding, watch.Error, status, statusKind)
	if sendErr := st.send(); sendErr != nil {
		return sendErr
	}
	if flushErr := st.out.Flush(); flushErr != nil {
		return flushErr
	}
	return err
}
