// Package stream makes streams of API requests: valid and invalid ones, for every resource that a server describes in
// discovery and OpenAPI. A stream is a function of those documents and a seed, and can be written down.
//
// A request may need what an earlier one was answered with, which no two servers answer alike: it holds "{{uid 7}}" for
// metadata.uid of the answer to the request of that number, likewise resourceVersion, continue, name and token
// (status.token), and whoever plays the stream puts that in: see [Request.Fill].
package stream

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
)

// Request is one request of a stream.
type Request struct {
	ID int `json:"id"`
	// Scene says what the request is part of.
	Scene  string            `json:"scene"`
	Method string            `json:"method"`
	Path   string            `json:"path"` // with the query
	Header map[string]string `json:"header,omitempty"`
	Body   []byte            `json:"body,omitempty"`
	// Race is not 0 for requests that are sent at the same time as their neighbours of the same race. Of those that
	// are rivals it does not matter which is answered how, only how many.
	Race   int  `json:"race,omitempty"`
	Rivals bool `json:"rivals,omitempty"`
	// Until is what the answer must have before the stream goes on, where servers take their time: the request is sent
	// again until then, or for some seconds.
	Until string `json:"until,omitempty"`
}

var reference = regexp.MustCompile(`\{\{(\w+) (\d+)\}\}`)

// Fill replaces what refers to other answers in a path or body.
func Fill(text string, known func(field string, id int) string) string {
	if !strings.Contains(text, "{{") {
		return text
	}
	return reference.ReplaceAllStringFunc(text, func(m string) string {
		parts := reference.FindStringSubmatch(m)
		id, err := strconv.Atoi(parts[2])
		if err != nil {
			return m
		}
		return known(parts[1], id)
	})
}

// Make makes a stream of about n requests of what is served. The same seed makes the same stream, except for
// certificates, which run out.
func Make(served *Served, seed uint64, n int) ([]Request, error) {
	m, err := newMaker(served, seed)
	if err != nil {
		return nil, err
	}
	m.prologue()
	for _, s := range scenes() {
		m.scene = s.name
		s.play(m)
	}
	for _, k := range m.shuffledKinds() {
		m.life(k)
	}
	for len(m.requests) < n {
		m.life(m.kinds[m.random.IntN(len(m.kinds))])
	}
	m.epilogue()
	return m.requests, nil
}

func newMaker(served *Served, seed uint64) (*maker, error) {
	m := &maker{served: served, random: rand.New(rand.NewPCG(seed, 0x6261727175650a)), tag: fmt.Sprintf("s%d", seed)}
	return m, m.prepare()
}

// maker makes one stream.
type maker struct {
	served   *Served
	random   *rand.Rand
	tag      string // the label that all objects of the stream have
	kinds    []*kind
	requests []Request
	scene    string
	serial   int // of names
	races    int
	// born are requests that objects of a resource were created by, for watches later on.
	born map[string]int
}

// One of several.
func pick[T any](m *maker, of ...T) T { return of[m.random.IntN(len(of))] }

// chance is true so many times of a hundred.
func (m *maker) chance(percent int) bool { return m.random.IntN(100) < percent }

// next is a number that no other object has.
func (m *maker) next() int {
	m.serial++
	return m.serial
}

// An option completes a request.
type option func(*Request)

func header(name, value string) option {
	return func(r *Request) {
		if r.Header == nil {
			r.Header = map[string]string{}
		}
		r.Header[name] = value
	}
}

func accept(media string) option   { return header("Accept", media) }
func until(text string) option     { return func(r *Request) { r.Until = text } }
func as(user string) option        { return header("Impersonate-User", user) }
func inGroup(group string) option  { return header("Impersonate-Group", group) }
func inRace(n int) option          { return func(r *Request) { r.Race, r.Rivals = n, true } }
func beside(n int) option          { return func(r *Request) { r.Race = n } }
func content(media string) option  { return header("Content-Type", media) }
func query(parts ...string) string { return join("?", parts) }
func join(s string, p []string) string {
	var kept []string
	for _, part := range p {
		if part != "" {
			kept = append(kept, part)
		}
	}
	if len(kept) == 0 {
		return ""
	}
	return s + strings.Join(kept, "&")
}

// send adds a request and returns its number. A body is sent as it is if it is text or bytes, else as JSON.
func (m *maker) send(method, path string, body any, options ...option) int {
	r := Request{ID: len(m.requests), Scene: m.scene, Method: method, Path: path}
	switch b := body.(type) {
	case nil:
	case string:
		r.Body = []byte(b)
	case []byte:
		r.Body = b
	default:
		data, err := json.Marshal(body)
		if err != nil {
			data = []byte(err.Error())
		}
		r.Body = data
	}
	if r.Body != nil {
		header("Content-Type", "application/json")(&r)
	}
	for _, o := range options {
		o(&r)
	}
	m.requests = append(m.requests, r)
	return r.ID
}

func (m *maker) get(path string, options ...option) int { return m.send("GET", path, nil, options...) }

func ref(field string, id int) string { return fmt.Sprintf("{{%s %d}}", field, id) }
