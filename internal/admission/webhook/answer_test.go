package webhook_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	registration "k8s.io/api/admissionregistration/v1"
)

// A webhook that answers with more than anybody can need fails, and costs little.
func TestHostileAnswers(t *testing.T) {
	c := start(t)
	endless := raw(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		chunk := []byte(strings.Repeat(" ", 1<<20))
		for {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	operations, err := json.Marshal(make([]struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value string `json:"value"`
	}, 10001))
	if err != nil {
		t.Fatal(err)
	}
	long := serve(t, patch(string(operations)))
	// Each operation copies all that the ones before it made: 2^30 times the object.
	double := []string{`{"op": "add", "path": "/metadata/annotations", "value": {"a": "` + strings.Repeat("x", 1000) + `"}}`}
	for i := range 30 {
		double = append(double, fmt.Sprintf(`{"op": "copy", "from": "/metadata", "path": "/metadata/m%d"}`, i))
	}
	exploding := serve(t, patch("["+strings.Join(double, ",")+"]"))
	lying := serve(t, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Allowed: true, Patch: []byte(`{"op": 1}`)}
	})
	for _, test := range []struct {
		name, want string
		hook       func(h *registration.MutatingWebhook)
	}{
		{"endless", "longer than 8388608 bytes", func(h *registration.MutatingWebhook) {
			h.ClientConfig.URL, h.ClientConfig.CABundle = &endless.URL, caOf(endless)
		}},
		{"long", "the allowed maximum operations in a webhook's patch is 10000, got 10001", func(h *registration.MutatingWebhook) {
			h.ClientConfig.URL, h.ClientConfig.CABundle = &long.URL, caOf(long.Server)
		}},
		{"exploding", "Unable to complete the copy, the accumulated size increase", func(h *registration.MutatingWebhook) {
			h.ClientConfig.URL, h.ClientConfig.CABundle = &exploding.URL, caOf(exploding.Server)
		}},
		{"lying", "webhook returned response.patch but not response.patchType", func(h *registration.MutatingWebhook) {
			h.ClientConfig.URL, h.ClientConfig.CABundle = &lying.URL, caOf(lying.Server)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.mutate(test.name, endless, test.hook)
			defer c.forget("mutatingwebhookconfigurations.admissionregistration.k8s.io", test.name)
			_, err := c.create(t.Context(), "x", nil, nil)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}
