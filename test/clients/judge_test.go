package clients

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// unlucky is the number of cranes that a judge refuses, and noLuck what it says then.
const (
	unlucky = 7
	noLuck  = "seven cranes bring no luck"
)

// startJudge starts a validating webhook for berths until the test ends, and returns the chart's values that name it.
func startJudge(t *testing.T) map[string]any {
	t.Helper()
	server := httptest.NewTLSServer(http.HandlerFunc(judge))
	t.Cleanup(server.Close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return map[string]any{"url": server.URL + "/judge", "caBundle": base64.StdEncoding.EncodeToString(ca)}
}

func judge(w http.ResponseWriter, r *http.Request) {
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
		http.Error(w, fmt.Sprintf("it is no review: %v", err), http.StatusBadRequest)
		return
	}
	var berth struct {
		Spec struct {
			Cranes int `json:"cranes"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(review.Request.Object.Raw, &berth); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: berth.Spec.Cranes != unlucky}
	if !review.Response.Allowed {
		review.Response.Result = &metav1.Status{Message: noLuck, Reason: metav1.StatusReasonForbidden, Code: http.StatusForbidden}
	}
	review.Request = nil
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(review); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
}
