package encryption

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// A Ring is the cluster's keys. It is a value: changes return another one.
type Ring struct {
	// Version is that of the format: ringVersion.
	Version int `json:"version"`
	// SealedFor identifies the authority whose key the keys are sealed with.
	SealedFor string `json:"sealedFor"`
	// Keys are all that values may stand under, in the order in which they came; there is at least one.
	Keys []Key `json:"keys"`
	// Writes names the key that values are written with; "" writes them plainly.
	Writes string `json:"writes,omitempty"`
	// Next names the key that will be Writes once every server has it; "" is none.
	Next string `json:"next,omitempty"`
}

// A Key is one key of a ring.
type Key struct {
	// Name stands in each value's prefix.
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// Sealed is the key itself, which a Sealer opens.
	Sealed []byte `json:"sealed"`
}

const (
	ringVersion = 1
	// maxKeys bounds a ring: more keys than this are never in use at once unless nobody rewrites.
	maxKeys = 16
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrRotating: a rotation waits for servers to have its key.
	ErrRotating = errors.New("a new key is not in use yet")
	// ErrTooMany: so many old keys are still needed that no further one may come.
	ErrTooMany = errors.New("too many old keys are still in use")
	// ErrInUse: the key is needed.
	ErrInUse = errors.New("the key is in use")
)

// newRing is a cluster's first.
func newRing(sealedFor string, first Key) Ring {
	return Ring{Version: ringVersion, SealedFor: sealedFor, Keys: []Key{first}, Next: first.Name}
}

// check tells what can't be right about a ring.
func (r Ring) check() error {
	if r.Version != ringVersion {
		return fmt.Errorf("the record of keys has version %d, this server knows %d: upgrade it", r.Version, ringVersion)
	}
	if len(r.Keys) == 0 {
		return errors.New("the record of keys is empty")
	}
	for _, name := range []string{r.Writes, r.Next} {
		if name != "" && !r.Has(name) {
			return fmt.Errorf("the record of keys lacks the key %s", name)
		}
	}
	return nil
}

// Has tells whether the ring holds the key.
func (r Ring) Has(name string) bool {
	return slices.ContainsFunc(r.Keys, func(k Key) bool { return k.Name == name })
}

// Names are those of all keys.
func (r Ring) Names() []string {
	names := make([]string, 0, len(r.Keys))
	for _, k := range r.Keys {
		names = append(names, k.Name)
	}
	return names
}

// Rotate adds a key to be used next. It returns ErrRotating or ErrTooMany.
func (r Ring) Rotate(key Key) (Ring, error) {
	switch {
	case r.Next != "":
		return r, ErrRotating
	case len(r.Keys) >= maxKeys:
		return r, ErrTooMany
	}
	r.Keys = append(slices.Clone(r.Keys), key)
	r.Next = key.Name
	return r, nil
}

// Promote makes the next key the one that is written with, if every server may read it.
func (r Ring) Promote(servers []Server) (Ring, bool) {
	if r.Next == "" || len(r.Waits(servers)) > 0 {
		return r, false
	}
	r.Writes, r.Next = r.Next, ""
	return r, true
}

// Disable makes the cluster write plainly.
func (r Ring) Disable() Ring {
	r.Writes, r.Next = "", ""
	return r
}

// Drop removes a key; ErrInUse if it is, or will be, written with, or is the only one.
func (r Ring) Drop(name string) (Ring, error) {
	if name == r.Writes || name == r.Next || len(r.Keys) == 1 {
		return r, fmt.Errorf("drop key %s: %w", name, ErrInUse)
	}
	r.Keys = slices.DeleteFunc(slices.Clone(r.Keys), func(k Key) bool { return k.Name == name })
	return r, nil
}

// A Server is one that reads the cluster's etcd, with what it has noted there.
type Server struct {
	Name string `json:"name"`
	// Alive tells that it was heard of just now.
	Alive bool `json:"alive"`
	// Keys are the keys that it has; none for a server that does not know of them.
	Keys []string `json:"keys,omitempty"`
}

// Waits names the servers that the next key waits for: those that may not be able to read the ring at
// all, and those that could have read it by now. A server that has read the ring before and is away
// doesn't hold up anybody: when it comes back it gets the ring with the data.
func (r Ring) Waits(servers []Server) []string {
	if r.Next == "" {
		return nil
	}
	var names []string
	for _, s := range servers {
		if slices.Contains(s.Keys, r.Next) {
			continue
		}
		if s.Alive || len(s.Keys) == 0 {
			names = append(names, s.Name)
		}
	}
	return names
}

// Idle are the keys that nothing is written with, now or next, and that may go once nothing needs them.
func (r Ring) Idle() []string {
	var names []string
	for _, name := range r.Names() {
		if name != r.Writes && name != r.Next {
			names = append(names, name)
		}
	}
	if len(names) == len(r.Keys) {
		names = names[:len(names)-1] // the newest stays for when encryption is turned on again
	}
	return names
}

// A census is what a scan of everything that is kept found.
type census struct {
	// revision is one at which all that was found stood in etcd.
	revision int64
	// values counts them by key.
	values map[string]int
}

// A history knows since which revision keys have not been needed. It lasts as long as a term of
// leadership.
type history map[string]int64

// note takes a census of the time when ring was in force.
func (h history) note(ring Ring, c census) {
	idle := ring.Idle()
	for name := range h {
		if !slices.Contains(idle, name) || c.values[name] > 0 {
			delete(h, name)
		}
	}
	for _, name := range idle {
		if _, known := h[name]; !known && c.values[name] == 0 {
			h[name] = c.revision
		}
	}
}

// droppable are the keys that nothing in etcd needs, given the revision that its history begins at.
func (h history) droppable(ring Ring, compacted int64) []string {
	var names []string
	for _, name := range ring.Idle() {
		if since, clean := h[name]; clean && compacted >= since {
			names = append(names, name)
		}
	}
	return names
}
