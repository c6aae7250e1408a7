package webhook_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stock "k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"

	"barque.dev/internal/admission/webhook"
)

// BenchmarkWithoutConfigurations is what a change costs when nobody configured any webhooks.
func BenchmarkWithoutConfigurations(b *testing.B) {
	c := start(b)
	mutating, validating, err := webhook.New(webhook.Config{Image: late{c}, Services: c, Authorizer: onlyAlice{}})
	if err != nil {
		b.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}}
	a := stock.NewAttributesRecord(pod, nil, corev1.SchemeGroupVersion.WithKind("Pod"), "default", "p", corev1.SchemeGroupVersion.WithResource("pods"), "",
		stock.Create, &metav1.CreateOptions{}, false, &user.DefaultInfo{Name: "u"})
	b.ReportAllocs()
	for b.Loop() {
		if err := mutating.Admit(b.Context(), a, nil); err != nil {
			b.Fatal(err)
		}
		if err := validating.Validate(b.Context(), a, nil); err != nil {
			b.Fatal(err)
		}
	}
}
