package encryption

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/storage/value"

	"barque.dev/internal/store"
)

// byFile encrypts a resource as a file says. What stands under the cluster's own keys is read all the same,
// and Secrets that the file says nothing of are written with those. It implements store.Transformer,
// store.Staler, store.Guarder and store.Remote.
type byFile struct {
	file *File
	gr   schema.GroupResource
	own  byRing
	// secret: the cluster's own keys encrypt the resource by default.
	secret bool
}

// secrets are what is encrypted unless told otherwise.
func secrets(gr schema.GroupResource) bool { return gr == schema.GroupResource{Resource: "secrets"} }

// Transformers tells what encrypts a resource: the file, which may be nil, for what it names, the keyring
// for Secrets otherwise, and nothing for the rest.
func Transformers(keyring *Keyring, file *File) func(schema.GroupResource) store.Transformer {
	return func(gr schema.GroupResource) store.Transformer {
		own := byRing{keyring, named(gr)}
		switch {
		case file != nil && file.mayCover(gr):
			return byFile{file: file, gr: gr, own: own, secret: secrets(gr)}
		case secrets(gr):
			return own
		}
		return nil
	}
}

func (t byFile) ToStorage(ctx context.Context, plain []byte, dataCtx string) ([]byte, error) {
	if f := t.file.transformer(t.gr); f != nil {
		return f.TransformToStorage(t.own.ctx, plain, value.DefaultContext(dataCtx))
	}
	if t.secret {
		return t.own.ToStorage(ctx, plain, dataCtx)
	}
	return plain, nil
}

func (t byFile) FromStorage(ctx context.Context, stored []byte, dataCtx string) ([]byte, error) {
	f := t.file.transformer(t.gr)
	if f == nil || t.ours(stored) {
		return t.own.FromStorage(ctx, stored, dataCtx)
	}
	plain, _, err := f.TransformFromStorage(t.own.ctx, stored, value.DefaultContext(dataCtx))
	return plain, err
}

// ours tells whether a value stands under one of the cluster's own keys.
func (t byFile) ours(stored []byte) bool {
	name := keyOf(stored)
	if name == "" {
		return false
	}
	_, err := t.own.keyring.cipher(name)
	return err == nil
}

// Stale implements store.Staler.
func (t byFile) Stale(stored []byte, dataCtx string) bool {
	stale, err := t.judge(stored, dataCtx)
	return stale && err == nil
}

func (t byFile) judge(stored []byte, dataCtx string) (stale bool, err error) {
	f := t.file.transformer(t.gr)
	switch {
	case f != nil:
		_, stale, err := f.TransformFromStorage(t.own.ctx, stored, value.DefaultContext(dataCtx))
		if err != nil && t.ours(stored) {
			return true, nil
		}
		return stale, err
	case t.secret:
		return t.own.Stale(stored, dataCtx), nil
	}
	return encrypted(stored), nil
}

// Guard implements store.Guarder. A file may name one of the cluster's own keys too, any of them: then it
// must not have been dropped.
func (t byFile) Guard(stored []byte) (key string, revision int64) {
	if t.file.transformer(t.gr) == nil {
		if !t.secret {
			return "", 0
		}
		return t.own.Guard(stored)
	}
	if v := t.own.keyring.view(); v.ring.Has(keyOf(stored)) {
		return prefix + ringName, v.revision
	}
	return "", 0
}

// Remote implements store.Remote: the file may name key services.
func (byFile) Remote() bool { return true }
