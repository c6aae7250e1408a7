// Package wire brings what API servers send, in each of their formats, into one form that can be compared.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/runtime/serializer/cbor/direct"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/yaml"
)

// known has every built-in kind and those that answers are wrapped in.
var known = sync.OnceValues(func() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, metav1.AddMetaToScheme, apiextensionsv1.AddToScheme, apiregistrationv1.AddToScheme} {
		if err := add(s); err != nil {
			return nil, err
		}
	}
	return s, nil
})

// Protobuf encodes an object of a built-in kind.
func Protobuf(object map[string]any) ([]byte, error) {
	s, err := known()
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	obj, _, err := serializer.NewCodecFactory(s).UniversalDeserializer().Decode(data, nil, nil)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := protobuf.NewSerializer(s, s).Encode(obj, &out); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Value is what a body says: nested maps, lists and scalars as of JSON; text if it is no data at all. Several JSON
// documents that follow each other are a list under "$documents".
func Value(contentType string, body []byte) (any, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return string(body), nil //nolint:nilerr // then it is text
	}
	switch {
	case media == "application/json":
		return documents(body)
	case media == "application/yaml":
		data, err := yaml.YAMLToJSON(body)
		if err != nil {
			return nil, err
		}
		return fromJSON(data)
	case media == "application/cbor":
		var v any
		if err := direct.Unmarshal(body, &v); err != nil {
			return nil, err
		}
		return roundTrip(v)
	case strings.HasPrefix(media, "application/vnd.kubernetes.protobuf"):
		s, err := known()
		if err != nil {
			return nil, err
		}
		obj, _, err := protobuf.NewSerializer(s, s).Decode(body, nil, nil)
		if err != nil {
			return nil, fmt.Errorf("decode protobuf: %w", err)
		}
		return roundTrip(obj)
	}
	if v, err := fromJSON(body); err == nil && len(body) > 0 && body[0] == '{' {
		return v, nil // JSON by another name
	}
	return string(body), nil
}

func roundTrip(v any) (any, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return fromJSON(data)
}

func fromJSON(data []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	return v, nil
}

func documents(data []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var all []any
	for {
		var v any
		err := d.Decode(&v)
		if errors.Is(err, io.EOF) && len(all) == 1 {
			return all[0], nil
		}
		if errors.Is(err, io.EOF) {
			return map[string]any{"$documents": all}, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
}
