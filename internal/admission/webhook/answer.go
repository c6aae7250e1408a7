package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/client-go/rest"
)

const (
	// maxAnswer bounds a webhook's answer in bytes: a patch that replaces the largest object that can be
	// kept, written as base64, is half of it.
	maxAnswer = 8 << 20
	// maxOperations bounds the operations of a webhook's patch, as for those of clients.
	maxOperations = 10000
)

// bounded returns a resolver whose clients read answers up to the bounds: whoever runs a webhook
// must not be able to hurt the server by it.
func bounded(resolver webhook.AuthenticationInfoResolver) webhook.AuthenticationInfoResolver {
	wrap := func(cfg *rest.Config, err error) (*rest.Config, error) {
		if err != nil {
			return nil, err
		}
		out := rest.CopyConfig(cfg)
		out.Wrap(func(next http.RoundTripper) http.RoundTripper { return reader{next} })
		return out, nil
	}
	return &webhook.AuthenticationInfoResolverDelegator{
		ClientConfigForFunc: func(hostPort string) (*rest.Config, error) { return wrap(resolver.ClientConfigFor(hostPort)) },
		ClientConfigForServiceFunc: func(name, namespace string, port int) (*rest.Config, error) {
			return wrap(resolver.ClientConfigForService(name, namespace, port))
		},
	}
}

// reader reads answers as a whole, within the bounds.
type reader struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (r reader) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := r.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read the webhook's answer: %w", err)
	}
	if err := checkAnswer(body); err != nil {
		return nil, err
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return resp, nil
}

// WrappedRoundTripper lets client-go find the connection below.
func (r reader) WrappedRoundTripper() http.RoundTripper { return r.next }

// checkAnswer holds an answer to the bounds. Whether it is well-formed is for its reader to say.
func checkAnswer(body []byte) error {
	if len(body) > maxAnswer {
		return fmt.Errorf("the webhook's answer is longer than %d bytes", maxAnswer)
	}
	var review struct {
		Response struct {
			Patch []byte `json:"patch"`
		} `json:"response"`
	}
	if json.Unmarshal(body, &review) != nil || len(review.Response.Patch) == 0 {
		return nil
	}
	var operations []json.RawMessage
	if json.Unmarshal(review.Response.Patch, &operations) == nil && len(operations) > maxOperations {
		return fmt.Errorf("the allowed maximum operations in a webhook's patch is %d, got %d", maxOperations, len(operations))
	}
	return nil
}
