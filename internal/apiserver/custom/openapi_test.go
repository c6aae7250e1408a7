package custom

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"
)

// TestWhatCannotBeDescribedIsLeftOut: the others stay, and the log says which is missing.
func TestWhatCannotBeDescribedIsLeftOut(t *testing.T) {
	good, broken := &apiextensionsv1.CustomResourceDefinition{}, &apiextensionsv1.CustomResourceDefinition{}
	for crd, manifest := range map[*apiextensionsv1.CustomResourceDefinition]string{
		good: shipDefinition, broken: strings.NewReplacer("ship", "boat", "Ship", "Boat").Replace(shipDefinition),
	} {
		if err := yaml.UnmarshalStrict([]byte(manifest), crd); err != nil {
			t.Fatal(err)
		}
	}
	broken.Status.AcceptedNames.ListKind = "Ship" // which nobody lets it have: both would be one schema
	var log strings.Builder
	for _, crds := range [][]*apiextensionsv1.CustomResourceDefinition{{good, broken}, {broken, good}} {
		log.Reset()
		raw, err := DocumentV3(crds, "v1", slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Paths map[string]any `json:"paths"`
		}
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatal(err)
		}
		first := "/apis/example.com/v1/" + crds[0].Status.AcceptedNames.Plural
		if doc.Paths[first] == nil || !strings.Contains(log.String(), "definition="+crds[1].Name) {
			t.Errorf("%s first: %d paths, log %s", crds[0].Name, len(doc.Paths), log.String())
		}
	}
	if doc, err := DocumentV3([]*apiextensionsv1.CustomResourceDefinition{good}, "v7", slog.New(slog.DiscardHandler)); err == nil {
		t.Errorf("a version that nobody has: %s", doc)
	}
}
