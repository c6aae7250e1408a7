package wire

import (
	"bytes"
	"math/rand"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/streaming"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/randfill"
)

// version is a store.Entry without a store.
type version struct {
	obj  runtime.Object
	made int
	mu   sync.Mutex
	kept map[any][]byte
}

func (v *version) Object() (runtime.Object, error) { return v.obj, nil }

func (v *version) Wire(id any, make func() ([]byte, error)) ([]byte, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if b, ok := v.kept[id]; ok {
		return b, nil
	}
	b, err := make()
	if err != nil {
		return nil, err
	}
	if v.kept == nil {
		v.kept = map[any][]byte{}
	}
	v.kept[id] = b
	v.made++
	return b, nil
}

func same(obj runtime.Object) (runtime.Object, error) { return obj, nil }

var mediaTypes = map[Encoding]string{JSON: runtime.ContentTypeJSON, Protobuf: runtime.ContentTypeProtobuf}

func serializerOf(t *testing.T, encoding Encoding) runtime.SerializerInfo {
	t.Helper()
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), mediaTypes[encoding])
	if !ok {
		t.Fatal("no serializer")
	}
	return info
}

// stock is what Kubernetes' codec writes for obj.
func stock(t *testing.T, encoding Encoding, obj runtime.Object, gv schema.GroupVersion) []byte {
	t.Helper()
	var b bytes.Buffer
	encoder := scheme.Codecs.EncoderForVersion(serializerOf(t, encoding).Serializer, gv)
	if err := encoder.Encode(obj, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// listKinds are all kinds of client-go's scheme that have lists.
func listKinds() []schema.GroupVersionKind {
	var kinds []schema.GroupVersionKind
	for kind := range scheme.Scheme.AllKnownTypes() {
		base := kind
		base.Kind = strings.TrimSuffix(kind.Kind, "List")
		if base.Kind != kind.Kind && base.Kind != "APIGroup" && kind.Version != runtime.APIVersionInternal && scheme.Scheme.Recognizes(base) {
			kinds = append(kinds, base)
		}
	}
	return kinds
}

func newFiller(seed int64) *randfill.Filler {
	return fuzzer.FuzzerFor(metafuzzer.Funcs, rand.NewSource(seed), serializer.NewCodecFactory(scheme.Scheme)).
		NilChance(0.3).NumElements(0, 3).MaxDepth(12)
}

func newObject(t *testing.T, kind schema.GroupVersionKind, fill *randfill.Filler) runtime.Object {
	t.Helper()
	obj, err := scheme.Scheme.New(kind)
	if err != nil {
		t.Fatal(err)
	}
	if fill != nil {
		fill.Fill(obj)
	}
	// A decoded object may or may not carry its kind.
	obj.GetObjectKind().SetGroupVersionKind(kind)
	return obj
}

func TestEveryKindIsWrittenAsStockWritesIt(t *testing.T) {
	kinds := listKinds()
	if len(kinds) < 80 {
		t.Fatalf("only %d kinds", len(kinds))
	}
	fill := newFiller(1)
	for _, kind := range kinds {
		t.Run(kind.String(), func(t *testing.T) {
			objs := []runtime.Object{newObject(t, kind, nil), newObject(t, kind, fill), newObject(t, kind, fill)}
			for _, encoding := range []Encoding{JSON, Protobuf} {
				if _, ok := objs[0].(interface{ Marshal() ([]byte, error) }); !ok && encoding == Protobuf {
					continue // a type without protobuf form; its list has none either
				}
				checkObjects(t, kind, encoding, objs)
				checkList(t, kind, encoding, nil)
				checkList(t, kind, encoding, objs)
				checkFrames(t, kind, encoding, objs)
			}
		})
	}
}

func checkObjects(t *testing.T, kind schema.GroupVersionKind, encoding Encoding, objs []runtime.Object) {
	e := NewEncoder(kind, encoding, same)
	for _, obj := range objs {
		before := obj.DeepCopyObject()
		item, err := e.Item(&version{obj: obj}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if !equality.Semantic.DeepEqual(before, obj) {
			t.Fatal("the shared object was changed")
		}
		body := e.Object(item)
		checkBody(t, body, stock(t, encoding, obj, kind.GroupVersion()))
	}
}

func checkBody(t *testing.T, body Body, want []byte) {
	t.Helper()
	var got bytes.Buffer
	n, err := body.WriteTo(&got)
	if err != nil {
		t.Fatal(err)
	}
	if n != body.Size() || int(n) != got.Len() {
		t.Errorf("announced %d bytes, wrote %d, counted %d", body.Size(), got.Len(), n)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("got  %q\nwant %q", got.Bytes(), want)
	}
}

func checkList(t *testing.T, kind schema.GroupVersionKind, encoding Encoding, objs []runtime.Object) {
	e := NewEncoder(kind, encoding, same)
	listKind := kind.GroupVersion().WithKind(kind.Kind + "List")
	list, err := scheme.Scheme.New(listKind)
	if err != nil {
		t.Fatal(err)
	}
	remaining := int64(7)
	m := metav1.ListMeta{ResourceVersion: "123", Continue: "a<b", RemainingItemCount: &remaining}
	accessor, err := meta.ListAccessor(list)
	if err != nil {
		t.Fatal(err)
	}
	accessor.SetResourceVersion(m.ResourceVersion)
	accessor.SetContinue(m.Continue)
	accessor.SetRemainingItemCount(m.RemainingItemCount)

	plain := []runtime.Object{}
	var items [][]byte
	for _, obj := range objs {
		c := obj.DeepCopyObject()
		c.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
		plain = append(plain, c)
		item, err := e.Item(&version{obj: obj}, 0)
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, item)
	}
	if err := meta.SetList(list, plain); err != nil {
		t.Fatal(err)
	}
	body, err := e.List(listKind, m, items)
	if err != nil {
		t.Fatal(err)
	}
	checkBody(t, body, stock(t, encoding, list, kind.GroupVersion()))
}

func checkFrames(t *testing.T, kind schema.GroupVersionKind, encoding Encoding, objs []runtime.Object) {
	e := NewEncoder(kind, encoding, same)
	info := serializerOf(t, encoding)
	var got []byte
	var want bytes.Buffer
	frames := info.StreamSerializer.Framer.NewFrameWriter(&want)
	events := streaming.NewEncoder(frames, scheme.Codecs.EncoderForVersion(info.StreamSerializer.Serializer, kind.GroupVersion()))
	for i, obj := range objs {
		event := []watch.EventType{watch.Added, watch.Modified, watch.Deleted}[i%3]
		item, err := e.Item(&version{obj: obj}, 0)
		if err != nil {
			t.Fatal(err)
		}
		got = e.AppendFrame(got, event, item)
		raw := stock(t, encoding, obj, kind.GroupVersion())
		if err := events.Encode(&metav1.WatchEvent{Type: string(event), Object: runtime.RawExtension{Raw: raw}}); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("frames:\ngot  %q\nwant %q", got, want.Bytes())
	}
}

func TestMetadataIsWrittenAsStockWritesIt(t *testing.T) {
	kind := schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}
	fill := newFiller(2)
	for _, encoding := range []Encoding{JSON, Protobuf} {
		e := NewMetadataEncoder(metav1.SchemeGroupVersion, encoding)
		list := &metav1.PartialObjectMetadataList{ListMeta: metav1.ListMeta{ResourceVersion: "9"}}
		list.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("PartialObjectMetadataList"))
		var items [][]byte
		for range 3 {
			obj := newObject(t, kind, fill)
			m, err := meta.Accessor(obj)
			if err != nil {
				t.Fatal(err)
			}
			partial := meta.AsPartialObjectMetadata(m)
			partial.SetGroupVersionKind(e.Kind())
			list.Items = append(list.Items, *partial)
			item, err := e.Item(&version{obj: obj}, 0)
			if err != nil {
				t.Fatal(err)
			}
			items = append(items, item)
			checkBody(t, e.Object(item), rawStock(t, encoding, partial))
		}
		body, err := e.List(list.GroupVersionKind(), list.ListMeta, items)
		if err != nil {
			t.Fatal(err)
		}
		checkBody(t, body, rawStock(t, encoding, list))
	}
}

// rawStock encodes without a conversion, as the metadata kinds are not in every group's scheme.
func rawStock(t *testing.T, encoding Encoding, obj runtime.Object) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := serializerOf(t, encoding).Serializer.Encode(obj, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestItemIsMadeOnceAndDeletionHasItsOwnRevision(t *testing.T) {
	kind := schema.GroupVersionKind{Version: "v1", Kind: "Pod"}
	obj := newObject(t, kind, newFiller(3))
	m, err := meta.Accessor(obj)
	if err != nil {
		t.Fatal(err)
	}
	m.SetResourceVersion("5")
	v := &version{obj: obj}
	for range 3 {
		for _, encoding := range []Encoding{JSON, Protobuf} {
			e := NewEncoder(kind, encoding, same)
			if _, err := e.Item(v, 0); err != nil {
				t.Fatal(err)
			}
			deleted, err := e.Item(v, 8)
			if err != nil {
				t.Fatal(err)
			}
			decoded, _, err := scheme.Codecs.UniversalDeserializer().Decode(e.Object(deleted).Bytes(), nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			if dm, err := meta.Accessor(decoded); err != nil || dm.GetResourceVersion() != "8" {
				t.Errorf("deleted object says revision %v, want 8 (%v)", dm.GetResourceVersion(), err)
			}
		}
	}
	if m.GetResourceVersion() != "5" {
		t.Error("the shared object's resourceVersion was changed")
	}
	if v.made != 4 {
		t.Errorf("encoded %d times, want 4", v.made)
	}
}

func TestLargeBodiesAreWrittenInChunks(t *testing.T) {
	e := NewEncoder(schema.GroupVersionKind{Version: "v1", Kind: "Secret"}, JSON, same)
	var items [][]byte
	for i := range 200 {
		items = append(items, []byte(`{"data":"`+strings.Repeat("x", i*i*3)+`"}`))
	}
	body, err := e.List(schema.GroupVersionKind{Version: "v1", Kind: "SecretList"}, metav1.ListMeta{}, items)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	writes := countingWriter{&got, 0}
	if _, err := body.WriteTo(&writes); err != nil {
		t.Fatal(err)
	}
	want := `{"kind":"SecretList","apiVersion":"v1","metadata":{},"items":[` + string(bytes.Join(items, []byte(","))) + "]}\n"
	if got.String() != want {
		t.Error("the list is not its items joined")
	}
	if limit := 2*got.Len()/chunkSize + 2; writes.n > limit {
		t.Errorf("%d writes for %d bytes, want at most %d", writes.n, got.Len(), limit)
	}
}

type countingWriter struct {
	*bytes.Buffer
	n int
}

func (c *countingWriter) Write(p []byte) (int, error) {
	c.n++
	return c.Buffer.Write(p)
}
