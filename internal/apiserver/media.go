package apiserver

import (
	"net/http"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1beta1 "k8s.io/apimachinery/pkg/apis/meta/v1beta1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/wire"
)

// media is what a client wants to receive, as its Accept header says.
type media struct {
	encoding wire.Encoding
	yaml     bool // JSON, rewritten
	pretty   bool // JSON, indented
	// as is the kind that objects are to be turned into; nil for themselves.
	as *schema.GroupVersionKind
	// suffix is added to the content type of complete responses.
	suffix string
}

// contentType names the media type of a complete response.
func (m media) contentType() string {
	switch {
	case m.yaml:
		return runtime.ContentTypeYAML + m.suffix
	case m.encoding == wire.Protobuf:
		return runtime.ContentTypeProtobuf + m.suffix
	default:
		return runtime.ContentTypeJSON + m.suffix
	}
}

// streamType names the media type of a stream of watch events.
func (m media) streamType() string {
	if m.encoding == wire.Protobuf {
		return runtime.ContentTypeProtobuf + ";stream=watch"
	}
	return runtime.ContentTypeJSON
}

func (m media) table() bool { return m.as != nil && m.as.Kind == "Table" }

func (m media) metadata() bool {
	return m.as != nil && (m.as.Kind == "PartialObjectMetadata" || m.as.Kind == "PartialObjectMetadataList")
}

// objects says which transformations an endpoint that answers with objects offers. It implements
// negotiation.EndpointRestrictions.
type objects struct{}

func (objects) AllowsMediaTypeTransform(mimeType, subType string, target *schema.GroupVersionKind) bool {
	if target == nil {
		return true
	}
	if gv := target.GroupVersion(); gv != metav1.SchemeGroupVersion && gv != metav1beta1.SchemeGroupVersion {
		return false
	}
	switch target.Kind {
	case "Table": // has no protobuf form
		return mimeType == "application" && (subType == "json" || subType == "yaml")
	case "PartialObjectMetadata", "PartialObjectMetadataList":
		return true
	}
	return false
}

func (objects) AllowsServerVersion(version string) bool { return version == "v1" }
func (objects) AllowsStreamSchema(s string) bool        { return s == "watch" }

// customObjects is an endpoint of custom resources, which have no protobuf form themselves.
type customObjects struct{ objects }

func (c customObjects) AllowsMediaTypeTransform(mimeType, subType string, target *schema.GroupVersionKind) bool {
	if target == nil && subType == "vnd.kubernetes.protobuf" {
		return false
	}
	return c.objects.AllowsMediaTypeTransform(mimeType, subType, target)
}

// virtualObjects is an endpoint of what is never kept, and has no columns.
type virtualObjects struct{ objects }

func (v virtualObjects) AllowsMediaTypeTransform(mimeType, subType string, target *schema.GroupVersionKind) bool {
	if target != nil && target.Kind == "Table" {
		return false
	}
	return v.objects.AllowsMediaTypeTransform(mimeType, subType, target)
}

// endpoint is what an operation's answers can be.
func (o operation) endpoint() negotiation.EndpointRestrictions {
	if o.resource.Virtual() {
		return virtualObjects{}
	}
	if o.resource.Custom != nil && o.kind.Group == o.resource.Group {
		return customObjects{}
	}
	return objects{}
}

// negotiate picks the media type of the response; 406 when there is none.
func negotiate(req *http.Request, endpoint negotiation.EndpointRestrictions) (media, error) {
	options, info, err := negotiation.NegotiateOutputMediaType(req, api.Codecs(), endpoint)
	if err != nil {
		return media{}, err
	}
	return newMedia(req, options, info), nil
}

// negotiateStream picks the media type of a stream: what has no frames is not acceptable.
func negotiateStream(req *http.Request, endpoint negotiation.EndpointRestrictions) (media, error) {
	info, err := negotiation.NegotiateOutputMediaTypeStream(req, api.Codecs(), endpoint)
	if err != nil {
		return media{}, err
	}
	options, _ := negotiation.NegotiateMediaTypeOptions(req.Header.Get("Accept"), api.Codecs().SupportedMediaTypes(), endpoint)
	return newMedia(req, options, info), nil
}

func newMedia(req *http.Request, options negotiation.MediaTypeOptions, info runtime.SerializerInfo) media {
	m := media{as: options.Convert, yaml: info.MediaType == runtime.ContentTypeYAML}
	if info.MediaType == runtime.ContentTypeProtobuf {
		m.encoding = wire.Protobuf
	}
	m.pretty = m.encoding == wire.JSON && !m.yaml && (options.Pretty || wantsPretty(req))
	return m
}

// negotiateError picks the media type of an error. It is never transformed: who takes nothing but transformed objects
// gets JSON to read.
func negotiateError(req *http.Request) media {
	m, err := negotiate(req, plainObjects{})
	if err != nil {
		return media{pretty: true}
	}
	return m
}

// wantsPretty tells whether a human reads the answer: the parameter says so, or the client is one
// that humans use.
func wantsPretty(req *http.Request) bool {
	if strings.Contains(req.URL.RawQuery, "pretty") {
		if v := req.URL.Query().Get("pretty"); v != "" {
			pretty, err := strconv.ParseBool(v)
			return err == nil && pretty
		}
	}
	agent := req.UserAgent()
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}
