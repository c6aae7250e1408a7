package store

import "fmt"

// An UnreadableError tells that a version of an object stands in etcd, but nobody here can make an object of it: it
// can't be decrypted, now or ever, or what it says is no object of its resource.
type UnreadableError struct {
	Prefix   string // of its table
	Key      Key
	Revision int64  // of the version
	Step     string // that failed: "decrypt" or "decode"
	Err      error
}

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("%s %s at revision %d: %v", e.Step, e.EtcdKey(), e.Revision, e.Err)
}

// Unwrap returns why the step failed.
func (e *UnreadableError) Unwrap() error { return e.Err }

// EtcdKey is where the version stands in etcd.
func (e *UnreadableError) EtcdKey() string {
	if e.Key.Namespace == "" {
		return e.Prefix + e.Key.Name
	}
	return e.Prefix + e.Key.Namespace + "/" + e.Key.Name
}

func (e *Entry) unreadable(step string, err error) error {
	return &UnreadableError{Prefix: e.space.schema.Prefix, Key: e.Key(), Revision: e.mod, Step: step, Err: err}
}
