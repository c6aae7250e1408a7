package integration

import (
	"fmt"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// A secret that is made for an account gets a token, which is good at every master until the account is gone; its use is noted.
func TestTokensInSecrets(t *testing.T) {
	s := newScene(t)
	account, err := s.client.CoreV1().ServiceAccounts(s.ns).Create(s.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "robot"}}, metav1.CreateOptions{})
	if err != nil {
		s.Fatal(err)
	}
	secrets := s.client.CoreV1().Secrets(s.ns)
	if _, err := secrets.Create(s.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "robot", Annotations: map[string]string{corev1.ServiceAccountNameKey: account.Name}},
		Type:       corev1.SecretTypeServiceAccountToken,
	}, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	var token string
	eventually(s, patience, "the secret is filled", func() error {
		secret, err := secrets.Get(s.Context(), "robot", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if token = string(secret.Data[corev1.ServiceAccountTokenKey]); token == "" || len(secret.Data) != 3 {
			return fmt.Errorf("it holds %d items", len(secret.Data))
		}
		return nil
	})
	robots := make([]func() (string, error), 0, len(shared.Machines))
	for _, m := range shared.Machines {
		config, err := shared.MachineConfig(m)
		if err != nil {
			s.Fatal(err)
		}
		robot := clientFor(s, &rest.Config{Host: config.Host, BearerToken: token,
			TLSClientConfig: rest.TLSClientConfig{CAData: config.CAData, ServerName: config.ServerName}})
		robots = append(robots, func() (string, error) {
			who, err := robot.AuthenticationV1().SelfSubjectReviews().Create(s.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
			if err != nil {
				return "", fmt.Errorf("at %s: %w", m.Name, err)
			}
			return who.Status.UserInfo.Username, nil
		})
	}
	for _, robot := range robots {
		if name, err := robot(); err != nil || name != "system:serviceaccount:"+s.ns+":robot" {
			s.Errorf("the token makes %q: %v", name, err)
		}
	}
	eventually(s, patience, "its use is noted", func() error {
		secret, err := secrets.Get(s.Context(), "robot", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if secret.Labels["kubernetes.io/legacy-token-last-used"] == "" {
			return fmt.Errorf("labels are %v", secret.Labels)
		}
		return nil
	})
	if err := s.client.CoreV1().ServiceAccounts(s.ns).Delete(s.Context(), "robot", metav1.DeleteOptions{}); err != nil {
		s.Fatal(err)
	}
	for _, robot := range robots {
		eventually(s, patience, "the token is refused", func() error {
			if name, err := robot(); !apierrors.IsUnauthorized(err) {
				return fmt.Errorf("it makes %q: %w", name, err)
			}
			return nil
		})
	}
	eventually(s, patience, "the secret is gone", func() error {
		if _, err := secrets.Get(s.Context(), "robot", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
}
