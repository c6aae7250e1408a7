package custom

import (
	"fmt"

	"k8s.io/apiextensions-apiserver/pkg/crdserverscheme"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
)

// input reads requests' bodies: JSON and YAML, for custom resources have no protobuf form.
type input struct{ infos []runtime.SerializerInfo }

func newInput(c *codec) runtime.NegotiatedSerializer {
	return input{[]runtime.SerializerInfo{
		{MediaType: runtime.ContentTypeJSON, MediaTypeType: "application", MediaTypeSubType: "json", EncodesAsText: true,
			Serializer: newReader(c, false, false), StrictSerializer: newReader(c, false, true)},
		{MediaType: runtime.ContentTypeYAML, MediaTypeType: "application", MediaTypeSubType: "yaml", EncodesAsText: true,
			Serializer: newReader(c, true, false), StrictSerializer: newReader(c, true, true)},
	}}
}

func (i input) SupportedMediaTypes() []runtime.SerializerInfo { return i.infos }

func (i input) EncoderForVersion(e runtime.Encoder, _ runtime.GroupVersioner) runtime.Encoder {
	return e
}

func (i input) DecoderToVersion(d runtime.Decoder, _ runtime.GroupVersioner) runtime.Decoder {
	return d
}

// maxComplaints is how many unknown fields are told.
const maxComplaints = 100

// reader decodes one media type and coerces what it reads to its schema.
type reader struct {
	runtime.Serializer
	codec  *codec
	strict bool
}

func newReader(c *codec, yaml, strict bool) reader {
	options := json.SerializerOptions{Yaml: yaml, Strict: strict}
	s := json.NewSerializerWithOptions(json.DefaultMetaFactory, creater{}, crdserverscheme.NewUnstructuredObjectTyper(), options)
	return reader{Serializer: s, codec: c, strict: strict}
}

// Decode implements runtime.Decoder. A strict reader's error tells of repeated and unknown fields, beside the object.
func (r reader) Decode(data []byte, defaults *schema.GroupVersionKind, into runtime.Object) (runtime.Object, *schema.GroupVersionKind, error) {
	obj, gvk, err := r.Serializer.Decode(data, defaults, into)
	var complaints []error
	if err != nil {
		strict, ok := runtime.AsStrictDecodingError(err)
		if !ok || obj == nil {
			return nil, gvk, err
		}
		complaints = strict.Errors()
	}
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, gvk, fmt.Errorf("expected one %s", r.codec.kind)
	}
	unknown, err := r.codec.coerce(u, source{track: r.strict})
	if err != nil {
		return nil, gvk, err
	}
	// As many as the decoder of JSON tells of: nobody reads more.
	for _, path := range unknown[:min(len(unknown), maxComplaints)] {
		complaints = append(complaints, fmt.Errorf("unknown field %q", path))
	}
	if len(complaints) > 0 {
		return obj, gvk, runtime.NewStrictDecodingError(complaints)
	}
	return obj, gvk, nil
}
