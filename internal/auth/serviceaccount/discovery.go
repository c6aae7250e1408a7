package serviceaccount

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
)

// Paths of the documents by which others check tokens.
const (
	DiscoveryPath = "/.well-known/openid-configuration"
	KeySetPath    = "/openid/v1/jwks"
)

// Discovery serves the OpenID Connect discovery document and the key set (OpenID Connect
// Discovery 1.0, RFC 7517). Both tell of the keys that are accepted at that moment.
type Discovery struct {
	issuer, keySetURL string
	keys              *Keys
}

// NewDiscovery describes an issuer, an https URL without query and fragment. keySetURL is
// where others fetch the key set; empty means KeySetPath at the issuer's host.
func NewDiscovery(issuer, keySetURL string, keys *Keys) (*Discovery, error) {
	u, err := url.Parse(issuer)
	if err != nil {
		return nil, fmt.Errorf("service account issuer: %w", err)
	}
	if u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("service account issuer %s: it must be an https URL without query and fragment", issuer)
	}
	if keySetURL == "" {
		keySetURL = (&url.URL{Scheme: "https", Host: u.Host, Path: KeySetPath}).String()
	}
	return &Discovery{issuer: issuer, keySetURL: keySetURL, keys: keys}, nil
}

func (d *Discovery) document() any {
	var algorithms []string
	for _, k := range d.keys.current.Load().accepted.Keys {
		algorithms = append(algorithms, k.Algorithm)
	}
	slices.Sort(algorithms)
	return struct {
		Issuer        string   `json:"issuer"`
		KeySetURL     string   `json:"jwks_uri"`
		ResponseTypes []string `json:"response_types_supported"`
		SubjectTypes  []string `json:"subject_types_supported"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	}{d.issuer, d.keySetURL, []string{"id_token"}, []string{"public"}, slices.Compact(algorithms)}
}

func (d *Discovery) keySet() any { return d.keys.current.Load().accepted }

// Handlers returns the documents' handlers by path. Access is the authorizer's business.
func (d *Discovery) Handlers() map[string]http.Handler {
	return map[string]http.Handler{
		DiscoveryPath: serve("application/json", d.document),
		KeySetPath:    serve("application/jwk-set+json", d.keySet),
	}
}

func serve(contentType string, content func() any) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET is allowed", http.StatusMethodNotAllowed)
			return
		}
		b, err := json.Marshal(content())
		if err != nil {
			http.Error(w, fmt.Sprintf("encode %s: %v", r.URL.Path, err), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "public, max-age=3600")
		_, _ = w.Write(b)
	})
}
