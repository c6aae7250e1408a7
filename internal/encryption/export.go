package encryption

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"sigs.k8s.io/yaml"
)

// Export makes the EncryptionConfiguration with which a stock kube-apiserver reads and writes Secrets as
// this cluster does, of the copy of the keyring that a server keeps (KeyringConfig.File). Who has it reads
// every Secret.
func Export(s *Sealer, file string) ([]byte, error) {
	record, err := os.ReadFile(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no %s: run this on a server that has been ready, with its --data-dir", file)
	case err != nil:
		return nil, fmt.Errorf("read the cluster's encryption keys: %w", err)
	}
	open, err := s.openRing(record)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	text, err := yaml.Marshal(open.configuration())
	if err != nil {
		return nil, fmt.Errorf("encode the encryption configuration: %w", err)
	}
	return text, nil
}

// configuration has the key that is written with first, or else plain text, and reads all others.
func (r openRing) configuration() apiserverv1.EncryptionConfiguration {
	var keys []apiserverv1.Key
	for _, k := range slices.Backward(r.Keys) {
		secret := r.secrets[k.Name]
		key := apiserverv1.Key{Name: k.Name, Secret: base64.StdEncoding.EncodeToString(secret[:])}
		if k.Name == r.Writes {
			keys = append([]apiserverv1.Key{key}, keys...)
		} else {
			keys = append(keys, key)
		}
	}
	providers := []apiserverv1.ProviderConfiguration{
		{Secretbox: &apiserverv1.SecretboxConfiguration{Keys: keys}},
		{Identity: &apiserverv1.IdentityConfiguration{}},
	}
	if r.Writes == "" {
		slices.Reverse(providers)
	}
	return apiserverv1.EncryptionConfiguration{
		TypeMeta:  metav1.TypeMeta{APIVersion: apiserverv1.SchemeGroupVersion.String(), Kind: "EncryptionConfiguration"},
		Resources: []apiserverv1.ResourceConfiguration{{Resources: []string{"secrets"}, Providers: providers}},
	}
}
