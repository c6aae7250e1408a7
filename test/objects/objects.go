// Package objects holds one valid object of every kind that Barque keeps, for tests that go through all of them. Kinds
// that the cluster serves and of which there is none are found by those tests.
package objects

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"embed"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// Namespace is where those stand that have one. It is not among them.
const Namespace = "portability"

//go:embed *.yaml
var manifests embed.FS

// All reads them anew: they are the caller's.
func All() ([]*unstructured.Unstructured, error) {
	known, err := certificates()
	if err != nil {
		return nil, err
	}
	files, err := manifests.ReadDir(".")
	if err != nil {
		return nil, err
	}
	var objects []*unstructured.Unstructured
	for _, f := range files {
		data, err := manifests.ReadFile(f.Name())
		if err != nil {
			return nil, err
		}
		for old, value := range known {
			data = bytes.ReplaceAll(data, []byte(old), value)
		}
		decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
		for {
			var o unstructured.Unstructured
			err := decoder.Decode(&o.Object)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f.Name(), err)
			}
			objects = append(objects, &o)
		}
	}
	return objects, nil
}

// certificates stand for what manifests can't hold since it would run out: made once, so that all servers get the same.
var certificates = sync.OnceValues(func() (map[string][]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: Namespace},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca, err := x509.CreateCertificate(rand.Reader, root, root, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: Namespace}}, key)
	if err != nil {
		return nil, err
	}
	stub, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	bundle, err := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca})))
	if err != nil {
		return nil, err
	}
	encode := func(b []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(b)) }
	return map[string][]byte{
		"REQUEST_PEM": encode(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})),
		"REQUEST_DER": encode(stub),
		"CERTIFICATE": bundle,
	}, nil
})
