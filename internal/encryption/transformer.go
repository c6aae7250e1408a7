package encryption

import (
	"context"
	"errors"
	"maps"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/secretbox"

	"barque.dev/internal/store"
)

// cipherOf encrypts and decrypts with one key, as kube-apiserver does when a configuration names it.
type cipherOf struct{ value.Transformer }

var (
	errOtherKey      = errors.New("no matching key was found")
	errOtherProvider = errors.New("no matching prefix was found")
)

// withKeys adds a ring's keys to those that are known.
func withKeys(known map[string]cipherOf, ring openRing) map[string]cipherOf {
	out := maps.Clone(known)
	for name, secret := range ring.secrets {
		if _, ok := out[name]; ok {
			continue
		}
		key := value.NewPrefixTransformers(errOtherKey, value.PrefixTransformer{
			Prefix: []byte(name + ":"), Transformer: secretbox.NewSecretboxTransformer(secret),
		})
		out[name] = cipherOf{value.NewPrefixTransformers(errOtherProvider, value.PrefixTransformer{
			Prefix: []byte(ringPrefix), Transformer: key,
		})}
	}
	return out
}

// byRing encrypts a resource with the cluster's own keys. It implements store.Transformer, store.Staler and
// store.Guarder.
type byRing struct {
	keyring *Keyring
	// ctx names the resource for metrics.
	ctx context.Context //nolint:containedctx // it carries a constant, not a lifetime
}

// Transformer encrypts a resource with the cluster's own keys.
func (k *Keyring) Transformer(gr schema.GroupResource) store.Transformer {
	return byRing{k, named(gr)}
}

// named is a context from which transformers learn for their metrics what they work on.
func named(gr schema.GroupResource) context.Context {
	return request.WithRequestInfo(context.Background(), &request.RequestInfo{
		IsResourceRequest: true, APIGroup: gr.Group, Resource: gr.Resource,
	})
}

func (t byRing) ToStorage(_ context.Context, plain []byte, dataCtx string) ([]byte, error) {
	v := t.keyring.view()
	if v.err != nil {
		return nil, v.err
	}
	if v.ring.Writes == "" {
		return plain, nil
	}
	return v.ciphers[v.ring.Writes].TransformToStorage(t.ctx, plain, value.DefaultContext(dataCtx))
}

var errForeign = errors.New("it is encrypted, but not with a key of the cluster's own, and no configuration (--encryption-provider-config) says how to read it")

func (t byRing) FromStorage(_ context.Context, stored []byte, dataCtx string) ([]byte, error) {
	if !encrypted(stored) {
		return stored, nil
	}
	name := keyOf(stored)
	if name == "" {
		return nil, errForeign
	}
	c, err := t.keyring.cipher(name)
	if err != nil {
		return nil, err
	}
	plain, _, err := c.TransformFromStorage(t.ctx, stored, value.DefaultContext(dataCtx))
	return plain, err
}

// Stale implements store.Staler.
func (t byRing) Stale(stored []byte, _ string) bool {
	return label(t.keyring.view().ring.Writes) != labelOf(stored)
}

func (t byRing) judge(stored []byte, dataCtx string) (stale bool, err error) {
	return t.Stale(stored, dataCtx), nil
}

// Guard implements store.Guarder: the record must be as it was.
func (t byRing) Guard(stored []byte) (key string, revision int64) {
	v := t.keyring.view()
	if label(v.ring.Writes) != labelOf(stored) {
		return prefix + ringName, -1
	}
	return prefix + ringName, v.revision
}
