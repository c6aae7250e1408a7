package history_test

import (
	"encoding/json"
	"os"
	"reflect"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"barque.dev/internal/controllers/history"
)

// The wanted names were computed by kube-controller-manager's own functions, v1.37.1, of a
// StatefulSet "web".
func TestRevisionsAreUpstreams(t *testing.T) {
	zero, one := int32(0), int32(1)
	for _, c := range []struct{ name, first, second string }{
		{"small", "web-5f59dbfdb6", "5f59dbfdb7"},
		{"large", "web-6fb8684755", "6fb8684754"},
	} {
		data, err := os.ReadFile("../pods/testdata/" + c.name + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var template corev1.PodTemplateSpec
		if err := json.Unmarshal(data, &template); err != nil {
			t.Fatal(err)
		}
		content, err := history.TemplatePatch(&template)
		if err != nil {
			t.Fatal(err)
		}
		if got := history.Name("web", history.Hash(content, &zero)); got != c.first {
			t.Errorf("%s: name %s, want %s; content %s", c.name, got, c.first, content)
		}
		if got := history.Hash(content, &one); got != c.second {
			t.Errorf("%s: hash %s after a collision, want %s", c.name, got, c.second)
		}
		back, err := history.Template(&appsv1.ControllerRevision{Data: runtime.RawExtension{Raw: content}})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*back, template) {
			t.Errorf("%s: the template does not come back: %+v", c.name, back)
		}
	}
}
