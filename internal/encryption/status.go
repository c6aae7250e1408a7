package encryption

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"barque.dev/internal/store"
)

// A Status is how things stand, as far as a server's image shows.
type Status struct {
	// Writes names the key that Secrets are written with unless a file says otherwise; "" is plainly.
	Writes string `json:"writes,omitempty"`
	// Next names the key that waits for the servers of Waits to have it.
	Next  string   `json:"next,omitempty"`
	Waits []string `json:"waits,omitempty"`
	// Keys are the cluster's own, oldest first.
	Keys []KeyStatus `json:"keys"`
	// Servers read the cluster's etcd.
	Servers []Server `json:"servers"`
	// Resources are those that are encrypted, or were, by what stands in front of their keys in etcd.
	Resources []ResourceStatus `json:"resources"`
	// Rewriting: everything stale is being written again because somebody asked for it.
	Rewriting bool `json:"rewriting,omitempty"`
	// File is the path of this server's configuration, if it has one, with the hash of what is in use.
	File     string `json:"file,omitempty"`
	FileHash string `json:"fileHash,omitempty"`
	// Problem tells why the keys can't be used.
	Problem string `json:"problem,omitempty"`
}

// A KeyStatus is one of the cluster's own keys.
type KeyStatus struct {
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// State is one of the Key… constants.
	State string `json:"state"`
	// Objects stand under it.
	Objects int `json:"objects"`
}

// What a key is for.
const (
	KeyWrites = "in use"
	KeyWaits  = "waits for servers"
	KeyReads  = "for reading"
	KeyIdle   = "idle"
)

// A ResourceStatus tells under what the objects of a resource stand.
type ResourceStatus struct {
	Prefix string `json:"prefix"`
	// Values counts the objects by provider, version and key ("secretbox:v1:NAME"), or Plain.
	Values map[string]int `json:"values"`
}

// Status tells how things stand.
func (c *Control) Status(ctx context.Context) (Status, error) {
	k := c.cfg.Keyring
	servers, err := k.servers(ctx)
	if err != nil {
		return Status{}, err
	}
	v := k.view()
	s := Status{Writes: v.ring.Writes, Next: v.ring.Next, Waits: v.ring.Waits(servers), Servers: servers}
	if v.err != nil {
		s.Problem = v.err.Error()
	}
	if f := c.cfg.File; f != nil {
		s.File, s.FileHash = f.cfg.Path, f.current.Load().EncryptionFileContentHash
	}
	_, s.Rewriting = k.table.Get(store.Key{Name: rewriteName})
	totals := map[string]int{}
	for _, table := range c.cfg.Tables() {
		r, ok := resourceStatus(table)
		if !ok {
			continue
		}
		s.Resources = append(s.Resources, r)
		for label, n := range r.Values {
			totals[label] += n
		}
	}
	slices.SortFunc(s.Resources, func(a, b ResourceStatus) int { return strings.Compare(a.Prefix, b.Prefix) })
	for _, key := range v.ring.Keys {
		n := totals[label(key.Name)]
		s.Keys = append(s.Keys, KeyStatus{Name: key.Name, Created: key.Created, State: v.ring.state(key.Name, n), Objects: n})
	}
	return s, nil
}

func (r Ring) state(name string, objects int) string {
	switch {
	case name == r.Writes:
		return KeyWrites
	case name == r.Next:
		return KeyWaits
	case objects > 0:
		return KeyReads
	}
	return KeyIdle
}

// resourceStatus counts a table's values; false if nothing encrypts it.
func resourceStatus(table *store.Table) (ResourceStatus, bool) {
	schema := table.Schema()
	if schema.Transform == nil {
		return ResourceStatus{}, false
	}
	r := ResourceStatus{Prefix: schema.Prefix, Values: map[string]int{}}
	table.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool {
		r.Values[labelOf(e.Stored())]++
		return true
	})
	return r, true
}

// Rewrite asks the leader to write again everything that is stale, also what a file decides on.
func (k *Keyring) Rewrite(ctx context.Context) error {
	value, err := json.Marshal(map[string]time.Time{"requested": k.cfg.Now().UTC()})
	if err != nil {
		return fmt.Errorf("encode the request to write objects again: %w", err)
	}
	_, err = k.table.Create(ctx, store.Key{Name: rewriteName}, value, store.WriteOptions{})
	return err
}
