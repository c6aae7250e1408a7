// Package image brings images onto the node for pods: by pull policy, with the credentials that
// pods name, with a delay that doubles after failures, and removes images nobody uses when the disk
// runs full.
package image

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"sort"
	"strings"

	"github.com/distribution/reference"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Normalize returns the full name of an image, with registry and tag.
func Normalize(image string) (reference.Named, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil, fmt.Errorf("couldn't parse image name %q: %w", image, err)
	}
	return reference.TagNameOnly(named), nil
}

// Keyring holds registry credentials.
type Keyring struct {
	entries []credential
}

type credential struct {
	host, path string // of the registry; the host may have * for parts
	auth       *runtimeapi.AuthConfig
}

// login is one entry of a docker configuration file.
type login struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// Add takes over the credentials of a pull secret, of type kubernetes.io/dockerconfigjson or
// kubernetes.io/dockercfg.
func (k *Keyring) Add(secret *corev1.Secret) error {
	var logins map[string]login
	switch secret.Type {
	case corev1.SecretTypeDockerConfigJson:
		var file struct {
			Auths map[string]login `json:"auths"`
		}
		if err := json.Unmarshal(secret.Data[corev1.DockerConfigJsonKey], &file); err != nil {
			return fmt.Errorf("pull secret %s/%s: %w", secret.Namespace, secret.Name, err)
		}
		logins = file.Auths
	case corev1.SecretTypeDockercfg:
		if err := json.Unmarshal(secret.Data[corev1.DockerConfigKey], &logins); err != nil {
			return fmt.Errorf("pull secret %s/%s: %w", secret.Namespace, secret.Name, err)
		}
	default:
		return fmt.Errorf("pull secret %s/%s has type %q", secret.Namespace, secret.Name, secret.Type)
	}
	for registry, l := range logins {
		c, err := parse(registry, l)
		if err != nil {
			return fmt.Errorf("pull secret %s/%s: registry %q: %w", secret.Namespace, secret.Name, registry, err)
		}
		k.entries = append(k.entries, c)
	}
	// The most specific first: long paths before short ones, names before patterns.
	sort.SliceStable(k.entries, func(i, j int) bool {
		a, b := k.entries[i], k.entries[j]
		if len(a.path) != len(b.path) {
			return len(a.path) > len(b.path)
		}
		return a.host > b.host
	})
	return nil
}

func parse(registry string, l login) (credential, error) {
	if !strings.Contains(registry, "://") {
		registry = "https://" + registry
	}
	u, err := url.Parse(registry)
	if err != nil {
		return credential{}, err
	}
	c := credential{host: u.Host, path: strings.Trim(u.Path, "/")}
	// Docker's own registry is known by several old names.
	if c.host == "index.docker.io" || c.host == "registry-1.docker.io" {
		c.host = "docker.io"
	}
	if c.path == "v1" || c.path == "v2" {
		c.path = ""
	}
	c.auth = &runtimeapi.AuthConfig{Username: l.Username, Password: l.Password, IdentityToken: l.IdentityToken, RegistryToken: l.RegistryToken}
	if l.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(strings.TrimRight(l.Auth, "\x00"))
		if err != nil {
			return credential{}, fmt.Errorf("auth is not base64")
		}
		user, password, ok := strings.Cut(string(raw), ":")
		if !ok {
			return credential{}, fmt.Errorf("auth is not user:password")
		}
		c.auth.Username, c.auth.Password = user, strings.TrimRight(password, "\x00")
	}
	return c, nil
}

// Lookup returns the credentials that fit the image, the most specific first.
func (k *Keyring) Lookup(image reference.Named) []*runtimeapi.AuthConfig {
	host, repository := reference.Domain(image), reference.Path(image)
	var out []*runtimeapi.AuthConfig
	for _, c := range k.entries {
		if hostMatches(c.host, host) && (c.path == "" || repository == c.path || strings.HasPrefix(repository, c.path+"/")) {
			out = append(out, c.auth)
		}
	}
	return out
}

// hostMatches compares part by part, so that * stands for one part of a name only.
func hostMatches(pattern, host string) bool {
	patternName, patternPort, _ := strings.Cut(pattern, ":")
	name, port, _ := strings.Cut(host, ":")
	if patternPort != port {
		return false
	}
	a, b := strings.Split(patternName, "."), strings.Split(name, ".")
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if ok, err := path.Match(a[i], b[i]); err != nil || !ok {
			return false
		}
	}
	return true
}
