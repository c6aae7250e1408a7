package apiserver

import (
	"context"
	"net/http"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"barque.dev/internal/apiserver/aggregate"
	"barque.dev/internal/apiserver/relay"
	"barque.dev/internal/client"
)

// openAggregation starts to pass requests on for APIServices.
func (s *Server) openAggregation() (err error) {
	s.aggregator, err = aggregate.New(aggregate.Config{
		Table:       s.registry.Table(schema.GroupResource{Group: apiregistrationv1.GroupName, Resource: "apiservices"}),
		Resolver:    relay.NewResolver(relay.Image(client.NewInProcess(client.Config{Tables: s.registry}))),
		Certificate: s.cfg.FrontProxy, Dial: s.cfg.Kubelet.Dial, Changed: s.describe, Metrics: s.metrics.registry, Log: s.log,
	})
	return err
}

// followAPIServices passes on what APIServices say, until ctx ends.
func (s *Server) followAPIServices(ctx context.Context) {
	if err := s.aggregator.Run(ctx); err != nil {
		s.log.Error("aggregated APIs no longer follow their APIServices", "error", err)
	}
}

// ProbeAPIService asks an aggregated API server for what it must have, for the availability that is published.
func (s *Server) ProbeAPIService(ctx context.Context, svc *apiregistrationv1.APIService) error {
	return s.aggregator.Probe(ctx, svc)
}

// EmptyNamespace asks for the deletion of everything that aggregated API servers keep in a namespace, and returns what is
// left, and the APIServices of servers that do not say what they have.
func (s *Server) EmptyNamespace(ctx context.Context, namespace string) (left map[schema.GroupResource][]metav1.PartialObjectMetadata, silent []string, err error) {
	return s.aggregator.Empty(ctx, namespace)
}

// delegate passes a request on if another server has the version of the group that it is for.
func (s *Server) delegate(w http.ResponseWriter, req *http.Request, c *call) bool {
	b := s.aggregator.Find(versionOf(c.info))
	if b == nil {
		return false
	}
	if c.info.Verb == "watch" {
		// Streams of our own end when shutdown begins; this one must not hold it up.
		ctx, cancel := context.WithCancel(req.Context())
		defer cancel()
		defer context.AfterFunc(s.stopping, cancel)()
		req = req.WithContext(ctx)
	}
	b.Serve(w, req, s.fail)
	return true
}

// versionOf is the version of a group that a request is for, be it for a resource or for the version's own document.
// That of the core group stands for all of /api.
func versionOf(info *request.RequestInfo) schema.GroupVersion {
	if info.IsResourceRequest {
		return schema.GroupVersion{Group: info.APIGroup, Version: info.APIVersion}
	}
	if rest, ok := strings.CutPrefix(info.Path, "/apis/"); ok {
		group, rest, _ := strings.Cut(rest, "/")
		version, _, _ := strings.Cut(rest, "/")
		return schema.GroupVersion{Group: group, Version: version}
	}
	if info.Path == "/api" || strings.HasPrefix(info.Path, "/api/") {
		return schema.GroupVersion{Version: "v1"}
	}
	return schema.GroupVersion{}
}
