package apiserver

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"barque.dev/internal/api/openapi"
)

// TestDocumentsAreMadeOnce: each form when somebody wants it, and not for who has it already.
func TestDocumentsAreMadeOnce(t *testing.T) {
	built, encoded := 0, 0
	doc := newLazy(func() ([]byte, error) {
		built++
		return []byte(`{"openapi": "3.0.0"}`), nil
	}, func(doc []byte) ([]byte, error) {
		encoded++
		return append([]byte("proto"), doc...), nil
	})
	of, err := doc.find()
	if err != nil {
		t.Fatal(err)
	}
	get := func(etag string) *httptest.ResponseRecorder {
		t.Helper()
		req := httptest.NewRequest(http.MethodGet, "/openapi/v3/apis/example.com/v1", nil)
		req.Header.Set("Accept", "application/com.github.proto-openapi.spec.v3@v1.0+protobuf")
		req.Header.Set("If-None-Match", etag)
		w := httptest.NewRecorder()
		if err := (&openAPI{}).serve(w, req, "v3", of); err != nil {
			t.Fatal(err)
		}
		return w
	}
	if w := get(strconv.Quote(of.hash)); w.Code != http.StatusNotModified || encoded != 0 {
		t.Errorf("for who has it: %d, encoded %d times", w.Code, encoded)
	}
	for range 3 {
		if w := get(""); w.Code != http.StatusOK || w.Body.String() != `proto{"openapi": "3.0.0"}` || w.Header().Get("Etag") != strconv.Quote(of.hash) {
			t.Errorf("protobuf: %d %s", w.Code, w.Body)
		}
	}
	if _, err := of.in(openapi.JSON); err != nil || built != 1 || encoded != 1 {
		t.Errorf("built %d and encoded %d times, %v", built, encoded, err)
	}
	broken := newLazy(func() ([]byte, error) { return nil, errors.ErrUnsupported }, nil)
	if _, err := broken.find(); err == nil {
		t.Error("what can't be built is found")
	}
	if _, err := broken.in(openapi.Protobuf); err == nil {
		t.Error("what can't be built is encoded")
	}
}
