// Package load is the drill's clients: some write and read objects, some watch, through the virtual IP and
// through each server, and balanced over all as agents are, and write down what they did and were told.
//
// Objects are ConfigMaps of one namespace with a value each. Clients repeat nothing by themselves: a request
// is sent once, and if its answer does not come its outcome is unknown.
package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync/atomic"
	"time"

	"barque.dev/internal/drill/history"
)

const (
	dialTimeout = 500 * time.Millisecond
	// answerTimeout is longer than an election by raft's own timers.
	answerTimeout = 3 * time.Second
	// A connection on which nothing comes is asked, and given up when nobody answers.
	silence, pingTimeout = time.Second, time.Second
)

// An Endpoint is an address of the API.
type Endpoint struct {
	// Name is a server's, "vip", or "balanced".
	Name string
	URL  string
	TLS  *tls.Config
	// Balancer chooses a server for each request, as agents' does; nil sends all to URL. It alone may send a request again.
	Balancer http.RoundTripper
	// Answered is told of every request: which server answered, or failed to, as far as that is known, and
	// whether it failed: no answer, or 5xx.
	Answered func(by string, failed bool)
	// Servers are the names of servers by their addresses, to know them by their certificates.
	Servers map[string]string
}

// An API is one client's connection to an endpoint. It is safe for concurrent use.
type API struct {
	endpoint  Endpoint
	namespace string
	http      *http.Client
}

// Connect makes a client of the objects in a namespace. Nothing is sent yet.
func Connect(e Endpoint, namespace string) *API {
	if e.Balancer != nil {
		return &API{endpoint: e, namespace: namespace, http: &http.Client{Transport: e.Balancer}}
	}
	config := e.TLS.Clone()
	config.NextProtos = []string{"h2"}
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &API{endpoint: e, namespace: namespace, http: &http.Client{Transport: &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: config, ForceAttemptHTTP2: true, TLSHandshakeTimeout: answerTimeout,
		HTTP2: &http.HTTP2Config{SendPingTimeout: silence, PingTimeout: pingTimeout},
	}}}
}

// Close drops the connection.
func (a *API) Close() { a.http.CloseIdleConnections() }

func (a *API) collection() string { return "/api/v1/namespaces/" + a.namespace + "/configmaps" }

// answer is what came back. Code is 0 when nothing did; then sent tells whether the request may have
// reached a server.
type answer struct {
	code int
	body []byte
	sent bool
	err  error
}

// ask makes one request and reads its answer.
func (a *API) ask(ctx context.Context, method, path string, in any) answer {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	resp, sent, err := a.send(ctx, method, path, in)
	if err != nil {
		a.http.CloseIdleConnections()
		return answer{sent: sent, err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{sent: true, err: err}
	}
	got := answer{code: resp.StatusCode, body: data, sent: true}
	if got.code >= http.StatusBadRequest {
		got.err = fmt.Errorf("%s: %s", resp.Status, data[:min(len(data), 300)])
	}
	return got
}

// send makes one request. sent tells whether it got as far as a connection.
func (a *API) send(ctx context.Context, method, path string, in any) (resp *http.Response, sent bool, err error) {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return nil, false, err
		}
	}
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, method, a.endpoint.URL+path, &body)
	if err != nil {
		return nil, false, err
	}
	if a.endpoint.Balancer == nil {
		req.GetBody = nil // so that the transport never sends it twice
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err = a.http.Do(req)
	if err != nil {
		a.endpoint.Answered(a.endpoint.Name, true)
		return nil, connected.Load(), err
	}
	a.endpoint.Answered(a.by(resp), resp.StatusCode >= http.StatusInternalServerError)
	return resp, true, nil
}

// by is the name of the server that answered, by its certificate.
func (a *API) by(resp *http.Response) string {
	if resp.TLS != nil && len(resp.TLS.PeerCertificates) > 0 {
		for _, ip := range resp.TLS.PeerCertificates[0].IPAddresses {
			if name, ok := a.endpoint.Servers[ip.String()]; ok {
				return name
			}
		}
	}
	return a.endpoint.Name
}

// outcome is what an answer says of an operation. 4xx means that it was not done; a server that fails may
// have done it before.
func (got answer) outcome() history.Outcome {
	switch {
	case got.code == 0 && !got.sent:
		return history.Refused
	case got.code == 0 || got.code >= http.StatusInternalServerError:
		return history.Unknown
	case got.code == http.StatusNotFound:
		return history.Absent
	case got.code == http.StatusConflict:
		var status struct {
			Reason string `json:"reason"`
		}
		if err := json.Unmarshal(got.body, &status); err == nil && status.Reason == "AlreadyExists" {
			return history.Exists
		}
		return history.Conflict
	case got.code >= http.StatusBadRequest:
		return history.Refused
	}
	return history.OK
}

// configMap is as much of a ConfigMap as the drill needs.
type configMap struct {
	APIVersion string            `json:"apiVersion,omitempty"`
	Kind       string            `json:"kind,omitempty"`
	Metadata   metadata          `json:"metadata"`
	Data       map[string]string `json:"data,omitempty"`
}

type metadata struct {
	Name            string `json:"name,omitempty"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
}

// valueKey is the entry of a ConfigMap that holds the value. What has none is not the drill's.
const valueKey = "value"

func newObject(key, value string, revision int64) configMap {
	c := configMap{APIVersion: "v1", Kind: "ConfigMap", Metadata: metadata{Name: key}, Data: map[string]string{valueKey: value}}
	if revision != 0 {
		c.Metadata.ResourceVersion = strconv.FormatInt(revision, 10)
	}
	return c
}

// object reads a ConfigMap; ours is false if it is somebody else's.
func (c *configMap) object() (o history.Object, ours bool, err error) {
	o.Key = c.Metadata.Name
	if o.Revision, err = strconv.ParseInt(c.Metadata.ResourceVersion, 10, 64); err != nil {
		return o, false, fmt.Errorf("resourceVersion %q: %w", c.Metadata.ResourceVersion, err)
	}
	o.Value, ours = c.Data[valueKey]
	return o, ours, nil
}

// Do makes an operation, and fills in what became of it. rec tells the time.
func (a *API) Do(ctx context.Context, rec *history.Recorder, op *history.Op) {
	op.Via = a.endpoint.Name
	op.Call = rec.Now()
	got := a.request(ctx, op)
	op.Return = rec.Now()
	op.Outcome = got.outcome()
	if got.err != nil && (op.Outcome == history.Refused || op.Outcome == history.Unknown) {
		op.Detail = got.err.Error()
	}
	if op.Outcome != history.OK || op.Kind == history.Delete {
		return
	}
	var made configMap
	err := json.Unmarshal(got.body, &made)
	var o history.Object
	if err == nil {
		o, _, err = made.object()
	}
	if err != nil { // it was done, but nobody knows what
		op.Outcome, op.Detail = history.Unknown, err.Error()
		return
	}
	op.Revision = o.Revision
	if op.Kind == history.Get {
		op.Value = o.Value
	}
}

func (a *API) request(ctx context.Context, op *history.Op) answer {
	path := a.collection() + "/" + op.Key
	switch op.Kind {
	case history.Create:
		return a.ask(ctx, http.MethodPost, a.collection(), newObject(op.Key, op.Value, 0))
	case history.Update:
		return a.ask(ctx, http.MethodPut, path, newObject(op.Key, op.Value, op.If))
	case history.Delete:
		options := map[string]any{"apiVersion": "v1", "kind": "DeleteOptions"}
		if op.If != 0 {
			options["preconditions"] = map[string]string{"resourceVersion": strconv.FormatInt(op.If, 10)}
		}
		return a.ask(ctx, http.MethodDelete, path, options)
	}
	return a.ask(ctx, http.MethodGet, path, nil)
}

// rawList is a list whose objects are as they stand in the answer.
type rawList struct {
	Metadata metadata          `json:"metadata"`
	Items    []json.RawMessage `json:"items"`
}

// List makes a consistent list.
func (a *API) List(ctx context.Context, rec *history.Recorder, client string) (*history.List, error) {
	l := &history.List{Client: client, Via: a.endpoint.Name, Call: rec.Now()}
	raw, err := a.list(ctx, "")
	l.Return = rec.Now()
	if err != nil {
		return nil, err
	}
	if l.Revision, err = strconv.ParseInt(raw.Metadata.ResourceVersion, 10, 64); err != nil {
		return nil, fmt.Errorf("the list's resourceVersion %q: %w", raw.Metadata.ResourceVersion, err)
	}
	for _, item := range raw.Items {
		var c configMap
		if err := json.Unmarshal(item, &c); err != nil {
			return nil, err
		}
		o, ours, err := c.object()
		if err != nil {
			return nil, err
		}
		if ours {
			l.Objects = append(l.Objects, o)
		}
	}
	return l, nil
}

// Copy is what the server has at hand, object by object as it stands in the answer, and how new that is.
func (a *API) Copy(ctx context.Context) (objects []string, revision int64, err error) {
	raw, err := a.list(ctx, "?resourceVersion=0")
	if err != nil {
		return nil, 0, err
	}
	if revision, err = strconv.ParseInt(raw.Metadata.ResourceVersion, 10, 64); err != nil {
		return nil, 0, fmt.Errorf("the list's resourceVersion %q: %w", raw.Metadata.ResourceVersion, err)
	}
	for _, item := range raw.Items {
		objects = append(objects, string(item))
	}
	return objects, revision, nil
}

func (a *API) list(ctx context.Context, query string) (*rawList, error) {
	got := a.ask(ctx, http.MethodGet, a.collection()+query, nil)
	if got.err != nil {
		return nil, got.err
	}
	var l rawList
	if err := json.Unmarshal(got.body, &l); err != nil {
		return nil, err
	}
	return &l, nil
}
