package aggregate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"sync"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints"
	"k8s.io/client-go/discovery"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// A Description is what a server says of its version of a group.
type Description struct {
	Resources []apidiscoveryv2.APIResourceDiscovery
	// Stale tells that the server did not answer when it was asked last.
	Stale bool
	// V2 is its part of the OpenAPI document, version 2, as [Parts] in JSON; V3 is its version 3 document. Either is nil if
	// there is none.
	V2, V3 *Document
}

// same tells whether two descriptions are alike.
func (d *Description) same(other *Description) bool {
	return d.Stale == other.Stale && d.V2.hash() == other.V2.hash() && d.V3.hash() == other.V3.hash() &&
		reflect.DeepEqual(d.Resources, other.Resources)
}

// Description is what the server said last.
func (b *Backend) Description() Description { return b.said.Load().Description }

// statement is a description, and what is needed to ask once more.
type statement struct {
	Description
	asked bool
	err   error // of the last question about discovery
	// lost says that the server did not even answer that, or that it can't answer anything; nil if it did.
	lost error
	// etag, v2Tag and v3URL name what was answered, so that it need not be sent again.
	etag, v2Tag, v3URL string
}

// Bounds on a question, and on what is read of an answer.
const (
	discoveryTimeout = 5 * time.Second
	openAPITimeout   = time.Minute
	maxAnswer        = 32 << 20 // bytes
)

// Whom questions come from, as kube-aggregator has it.
func asker() user.Info {
	return &user.DefaultInfo{Name: "system:kube-aggregator", Groups: []string{user.SystemPrivilegedGroup}}
}

func reader() user.Info {
	return &user.DefaultInfo{Name: "system:aggregator", Groups: []string{user.AllAuthenticated}}
}

// hear asks the server what it serves. What it does not answer stays as it was.
func (b *Backend) hear(ctx context.Context, was *statement) *statement {
	next := *was
	next.asked, next.lost = true, nil
	next.err = b.hearDiscovery(ctx, &next)
	next.Stale = next.err != nil
	if next.err != nil {
		return &next
	}
	if err := b.hearOpenAPI(ctx, &next); err != nil && ctx.Err() == nil {
		b.log.Warn("an aggregated API server does not tell its OpenAPI documents", "apiservice", b.name, "error", err)
	}
	return &next
}

// reply is an answer that has been read.
type reply struct {
	code   int
	header http.Header
	body   []byte
}

// get asks the server one thing. Headers are given as name, value, name, value; empty values are left out.
func (b *Backend) get(ctx context.Context, who user.Info, path string, headers ...string) (reply, error) {
	return b.do(ctx, who, http.MethodGet, path, headers...)
}

// do makes a request of the API server's own.
func (b *Backend) do(ctx context.Context, who user.Info, method, path string, headers ...string) (reply, error) {
	endpoint, err := b.endpoint()
	if err != nil {
		return reply{}, err
	}
	target, err := endpoint.Parse(path)
	if err != nil {
		return reply{}, fmt.Errorf("ask for %s: %w", path, err)
	}
	if target.Host != endpoint.Host || target.Scheme != endpoint.Scheme {
		return reply{}, fmt.Errorf("ask for %s: it is elsewhere", path)
	}
	req, err := http.NewRequestWithContext(ctx, method, target.String(), nil)
	if err != nil {
		return reply{}, fmt.Errorf("ask for %s: %w", path, err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i+1] != "" {
			req.Header.Set(headers[i], headers[i+1])
		}
	}
	resp, err := identified(who, b.transport).RoundTrip(req)
	if err != nil {
		return reply{}, fmt.Errorf("failing or missing response from %s: %w", target, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return reply{}, fmt.Errorf("failing or missing response from %s: %w", target, err)
	}
	if len(body) > maxAnswer {
		return reply{}, fmt.Errorf("the response from %s is longer than %d bytes", target, maxAnswer)
	}
	return reply{resp.StatusCode, resp.Header, body}, nil
}

// path is where the version's own discovery document is.
func (b *Backend) path() string {
	if b.gv.Group == "" {
		return "/api/" + b.gv.Version
	}
	return "/apis/" + b.gv.String()
}

// hearDiscovery asks for the document that holds everything (KEP-3352), and, where there is none, for the version's.
func (b *Backend) hearDiscovery(ctx context.Context, into *statement) error {
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	a, err := b.get(ctx, asker(), "/apis", "Accept", discovery.AcceptV2, "If-None-Match", into.etag)
	if err != nil {
		into.lost = err
		return err
	}
	everything := schema.GroupVersionKind{Group: apidiscoveryv2.GroupName, Version: "v2", Kind: "APIGroupDiscoveryList"}
	is, _ := discovery.ContentTypeIsGVK(a.header.Get("Content-Type"), everything)
	switch {
	case a.code == http.StatusNotModified:
		return nil
	case a.code == http.StatusServiceUnavailable:
		into.lost = fmt.Errorf("bad status from %s/apis: %d", b.name, a.code)
		return into.lost
	case a.code == http.StatusOK && is:
		resources, err := resourcesIn(a.body, b.gv)
		if err != nil {
			return fmt.Errorf("discovery of %s: %w", b.name, err)
		}
		into.Resources, into.etag = resources, a.header.Get("Etag")
		return nil
	}
	into.etag = ""
	if a, err = b.get(ctx, asker(), b.path(), "Accept", runtime.ContentTypeJSON); err != nil {
		into.lost = err
		return err
	}
	if a.code != http.StatusOK {
		return fmt.Errorf("bad status from %s%s: %d", b.name, b.path(), a.code)
	}
	var list metav1.APIResourceList
	if err := json.Unmarshal(a.body, &list); err != nil {
		return fmt.Errorf("discovery of %s: %w", b.name, err)
	}
	into.Resources, err = endpoints.ConvertGroupVersionIntoToDiscovery(list.APIResources)
	return err
}

// resourcesIn finds what a document says of one version. A server need not list what it is registered for.
func resourcesIn(doc []byte, gv schema.GroupVersion) ([]apidiscoveryv2.APIResourceDiscovery, error) {
	var list apidiscoveryv2.APIGroupDiscoveryList
	if err := json.Unmarshal(doc, &list); err != nil {
		return nil, err
	}
	for _, g := range list.Items {
		for _, v := range g.Versions {
			if g.Name != gv.Group || v.Version != gv.Version {
				continue
			}
			for i := range v.Resources {
				complete(&v.Resources[i])
			}
			return v.Resources, nil
		}
	}
	return nil, nil
}

// complete fills in kinds that a server left out: clients of some releases do not expect that.
func complete(r *apidiscoveryv2.APIResourceDiscovery) {
	if r.ResponseKind == nil {
		r.ResponseKind = &metav1.GroupVersionKind{}
	}
	for i := range r.Subresources {
		if r.Subresources[i].ResponseKind == nil {
			r.Subresources[i].ResponseKind = &metav1.GroupVersionKind{}
		}
	}
}

// attempts is how many requests a probe makes at once: one that succeeds is enough, and endpoints are chosen by chance.
const attempts = 5

// Probe asks the server of an APIService for what it must have. It is for the availability that is published, and takes up to
// five seconds.
func (a *Aggregator) Probe(ctx context.Context, svc *apiregistrationv1.APIService) error {
	a.mu.Lock()
	b := a.known[svc.Name].backend
	a.mu.Unlock()
	if b == nil || !reflect.DeepEqual(b.spec, svc.Spec) {
		b = newBackend(a.cfg, svc)
		defer b.retire()
	}
	return b.probe(ctx)
}

func (b *Backend) probe(ctx context.Context) error {
	var asking sync.WaitGroup
	defer asking.Wait()
	ctx, cancel := context.WithTimeout(ctx, discoveryTimeout)
	defer cancel()
	results := make(chan error, attempts)
	for range attempts {
		asking.Go(func() {
			a, err := b.get(ctx, asker(), b.path())
			if err == nil && (a.code < http.StatusOK || a.code >= http.StatusMultipleChoices) {
				err = fmt.Errorf("bad status from %s%s: %d", b.name, b.path(), a.code)
			}
			results <- err
		})
	}
	var err error
	for range attempts {
		if err = <-results; err == nil {
			return nil
		}
	}
	b.transport.CloseIdleConnections()
	return err
}

// hearOpenAPI asks for the documents of both versions. What is unchanged is not sent again.
func (b *Backend) hearOpenAPI(ctx context.Context, into *statement) error {
	ctx, cancel := context.WithTimeout(ctx, openAPITimeout)
	defer cancel()
	v2 := b.hearV2(ctx, into)
	return errors.Join(v2, b.hearV3(ctx, into))
}

func (b *Backend) hearV2(ctx context.Context, into *statement) error {
	a, err := b.get(ctx, reader(), "/openapi/v2", "Accept", runtime.ContentTypeJSON, "If-None-Match", into.v2Tag)
	switch {
	case err != nil:
		return err
	case a.code == http.StatusNotModified:
		return nil
	case a.code == http.StatusNotFound:
		into.V2, into.v2Tag = nil, ""
		return nil
	case a.code != http.StatusOK:
		return fmt.Errorf("bad status from %s/openapi/v2: %d", b.name, a.code)
	}
	parts, err := partsOf(a.body, b.gv)
	if err != nil {
		return fmt.Errorf("OpenAPI document, version 2, of %s: %w", b.name, err)
	}
	doc, err := newDocument(parts)
	if err != nil {
		return fmt.Errorf("OpenAPI document, version 2, of %s: %w", b.name, err)
	}
	into.V2, into.v2Tag = doc, a.header.Get("Etag")
	return nil
}

// hearV3 looks up where the version's document is, by an address that names its content. A server from before there was
// one has it made of that of version 2.
func (b *Backend) hearV3(ctx context.Context, into *statement) error {
	a, err := b.get(ctx, reader(), "/openapi/v3", "Accept", runtime.ContentTypeJSON)
	if err != nil {
		return err
	}
	if a.code == http.StatusNotFound {
		into.v3URL = ""
		into.V3, err = convertedV3(into.V2)
		return err
	}
	if a.code != http.StatusOK {
		return fmt.Errorf("bad status from %s/openapi/v3: %d", b.name, a.code)
	}
	var index struct {
		Paths map[string]struct {
			URL string `json:"serverRelativeURL"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(a.body, &index); err != nil {
		return fmt.Errorf("OpenAPI documents, version 3, of %s: %w", b.name, err)
	}
	entry, ok := index.Paths[b.path()[1:]]
	if !ok {
		into.V3, into.v3URL = nil, ""
		return nil
	}
	if entry.URL == into.v3URL && into.V3 != nil && named(entry.URL) {
		return nil
	}
	if a, err = b.get(ctx, reader(), entry.URL, "Accept", runtime.ContentTypeJSON); err != nil {
		return err
	}
	if a.code != http.StatusOK {
		return fmt.Errorf("bad status from %s%s: %d", b.name, entry.URL, a.code)
	}
	if !json.Valid(a.body) {
		return fmt.Errorf("OpenAPI document, version 3, of %s: it is not JSON", b.name)
	}
	doc, err := compress(a.body)
	if err == nil {
		into.V3, into.v3URL = doc, entry.URL
	}
	return err
}

// named tells whether an address changes with what is there.
func named(address string) bool {
	u, err := url.Parse(address)
	return err == nil && u.Query().Get("hash") != ""
}
