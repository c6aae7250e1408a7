package apiserver

import (
	"fmt"
	"net"
	"net/http"
	"strconv"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/apiserver/discovery"
	"barque.dev/internal/apiserver/wire"
)

// plainObjects is an endpoint that turns objects into nothing else.
type plainObjects struct{ objects }

func (plainObjects) AllowsMediaTypeTransform(_, _ string, target *schema.GroupVersionKind) bool {
	return target == nil
}

// roots is an endpoint that offers the aggregated documents too.
type roots struct{ objects }

func (roots) AllowsMediaTypeTransform(_, _ string, target *schema.GroupVersionKind) bool {
	return target == nil || *target == apidiscoveryv2.SchemeGroupVersion.WithKind("APIGroupDiscoveryList")
}

// addDiscovery serves the discovery documents. What is asked for most is asked by every kubectl.
func (s *Server) addDiscovery(p *paths) error {
	docs, err := discovery.New(s.registry.Resources())
	if err != nil {
		return err
	}
	s.documents = docs
	core := *docs.Core
	core.ServerAddressByClientCIDRs = []metav1.ServerAddressByClientCIDR{}
	if id := s.cfg.Identity; id.Address != "" {
		core.ServerAddressByClientCIDRs = append(core.ServerAddressByClientCIDRs,
			metav1.ServerAddressByClientCIDR{ClientCIDR: "0.0.0.0/0", ServerAddress: net.JoinHostPort(id.Address, strconv.Itoa(id.Port))})
	}
	p.add("/api", s.getOnly(root(&core, docs.AggregatedCore, docs.CoreETag)))
	p.add("/apis", s.getOnly(root(docs.Groups, docs.Aggregated, docs.ETag)))
	for i := range docs.Groups.Groups {
		name := docs.Groups.Groups[i].Name
		p.add("/apis/"+name, s.getOnly(document(docs.Group(name), "APIGroup")))
	}
	for gv, list := range docs.Resources {
		path := "/apis/" + gv.String()
		if gv.Group == "" {
			path = "/api/" + gv.Version
		}
		p.add(path, s.getOnly(document(list, "APIResourceList")))
	}
	return nil
}

// document serves one discovery document.
func document(doc runtime.Object, kind string) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, req *http.Request) error {
		m, err := negotiate(req, plainObjects{})
		if err != nil {
			return err
		}
		return sendDiscovery(w, req, m, doc, kind)
	}
}

func sendDiscovery(w http.ResponseWriter, req *http.Request, m media, doc runtime.Object, kind string) error {
	gvk := schema.GroupVersionKind{Version: "v1", Kind: kind}
	if m.encoding == wire.JSON {
		// The oldest of these documents leave their version out, and some clients compare.
		gvk = doc.GetObjectKind().GroupVersionKind()
	}
	return sendObject(w, req, http.StatusOK, m, doc, gvk)
}

// root serves /api or /apis: the classic document, or the aggregated one to who prefers it.
func root(classic runtime.Object, aggregated *apidiscoveryv2.APIGroupDiscoveryList, etag string) func(http.ResponseWriter, *http.Request) error {
	etag = strconv.Quote(etag)
	return func(w http.ResponseWriter, req *http.Request) error {
		m, err := negotiate(req, roots{})
		if err != nil {
			return err
		}
		w.Header().Set("Vary", "Accept")
		if m.as == nil {
			return sendDiscovery(w, req, m, classic, classic.GetObjectKind().GroupVersionKind().Kind)
		}
		w.Header().Set("ETag", etag)
		w.Header().Set("Cache-Control", "public")
		if req.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
		m.suffix = fmt.Sprintf(";g=%s;v=%s;as=%s", m.as.Group, m.as.Version, m.as.Kind)
		return sendObject(w, req, http.StatusOK, m, aggregated, aggregated.GroupVersionKind())
	}
}
