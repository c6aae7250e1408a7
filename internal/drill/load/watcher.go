package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"barque.dev/internal/drill/history"
)

// retryAfter is between two attempts to list or watch.
const retryAfter = 50 * time.Millisecond

// errGone says that the server has no longer, or cannot have, what came after a revision.
var errGone = errors.New("the revision is gone")

// Watch lists, and then watches from there until ctx ends; a watch that ends is taken up again where it
// ended, or from a new list if the server says that it must be.
func (a *API) Watch(ctx context.Context, rec *history.Recorder, name string) {
	record := rec.Watch(name, a.endpoint.Name)
	for needList := true; ctx.Err() == nil; {
		var err error
		if needList {
			var l *history.List
			if l, err = a.List(ctx, rec, name); err == nil {
				record.Begin(l.Revision, l)
				needList = false
				continue
			}
		} else {
			err = a.follow(ctx, record)
			needList = errors.Is(err, errGone)
		}
		if err != nil {
			a.http.CloseIdleConnections()
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryAfter):
		}
	}
}

// follow watches from where the record ends until the connection does.
func (a *API) follow(ctx context.Context, record *history.WatchRecorder) error {
	from := record.Seen()
	resp, _, err := a.send(ctx, http.MethodGet, a.collection()+"?watch=true&allowWatchBookmarks=true&resourceVersion="+strconv.FormatInt(from, 10), nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusGone:
		return errGone
	default:
		return errors.New(resp.Status)
	}
	record.Begin(from, nil)
	for decoder := json.NewDecoder(resp.Body); ; {
		var got struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := decoder.Decode(&got); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		e, err := event(got.Type, got.Object)
		if err != nil {
			return err
		}
		record.Event(e)
	}
}

// event reads an event. One of an object that is not the drill's tells no more than a bookmark.
func event(kind string, data []byte) (history.Event, error) {
	types := map[string]history.EventType{
		"ADDED": history.Added, "MODIFIED": history.Modified, "DELETED": history.Deleted, "BOOKMARK": history.Bookmark,
	}
	if kind == "ERROR" {
		var status struct {
			Code    int    `json:"code"`
			Message string `json:"message"`
		}
		if err := json.Unmarshal(data, &status); err != nil {
			return history.Event{}, err
		}
		if status.Code == http.StatusGone {
			return history.Event{}, errGone
		}
		return history.Event{}, errors.New(status.Message)
	}
	var c configMap
	if err := json.Unmarshal(data, &c); err != nil {
		return history.Event{}, err
	}
	o, ours, err := c.object()
	if err != nil {
		return history.Event{}, err
	}
	e := history.Event{Type: types[kind], Key: o.Key, Value: o.Value, Revision: o.Revision}
	switch {
	case e.Type == "":
		return e, fmt.Errorf("an event of type %q", kind)
	case !ours || e.Type == history.Bookmark:
		return history.Event{Type: history.Bookmark, Revision: o.Revision}, nil
	}
	return e, nil
}
