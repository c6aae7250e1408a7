// Package bound bounds the answers of webhooks, those of admission and those of conversion: whoever runs a webhook must
// not be able to hurt the server by it.
package bound

import (
	"bytes"
	"fmt"
	"io"
	"net/http"

	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/rest"

	"barque.dev/internal/tracing"
)

// Max bounds a webhook's answer in bytes: a patch that replaces the largest object that can be kept, written as base64, is
// half of it.
const Max = 8 << 20

// Answers makes resolvers of webhooks' clients into such whose clients read answers up to Max, as far as check, which may
// be nil, lets them. Requests that are part of a trace say so.
func Answers(check func(body []byte) error) webhook.AuthenticationInfoResolverWrapper {
	wrap := func(cfg *rest.Config, err error) (*rest.Config, error) {
		if err != nil {
			return nil, err
		}
		out := rest.CopyConfig(cfg)
		out.Wrap(func(next http.RoundTripper) http.RoundTripper {
			return tracing.Transport(reader{next: next, check: check})
		})
		return out, nil
	}
	return func(resolver webhook.AuthenticationInfoResolver) webhook.AuthenticationInfoResolver {
		return &webhook.AuthenticationInfoResolverDelegator{
			ClientConfigForFunc: func(hostPort string) (*rest.Config, error) { return wrap(resolver.ClientConfigFor(hostPort)) },
			ClientConfigForServiceFunc: func(name, namespace string, port int) (*rest.Config, error) {
				return wrap(resolver.ClientConfigForService(name, namespace, port))
			},
		}
	}
}

// reader reads answers as a whole, within the bounds.
type reader struct {
	next  http.RoundTripper
	check func([]byte) error
}

// RoundTrip implements http.RoundTripper.
func (r reader) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, Max+1))
	if err != nil {
		return nil, fmt.Errorf("read the webhook's answer: %w", err)
	}
	if len(body) > Max {
		return nil, fmt.Errorf("the webhook's answer is longer than %d bytes", Max)
	}
	if r.check != nil {
		if err := r.check(body); err != nil {
			return nil, err
		}
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// WrappedRoundTripper lets client-go find the connection below.
func (r reader) WrappedRoundTripper() http.RoundTripper { return r.next }
