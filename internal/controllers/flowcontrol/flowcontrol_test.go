package flowcontrol

import (
	"testing"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	"k8s.io/apiserver/pkg/util/apihelpers"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
)

func level(name string) *flowcontrolv1.PriorityLevelConfiguration {
	return &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func flowSchema(name string) *flowcontrolv1.FlowSchema {
	return &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

func world(t *testing.T, objs ...client.Object) (*controllertest.World, kit.Controller) {
	w := controllertest.New(t, objs...)
	return w, New(w.Deps())
}

func reconcileAll(w *controllertest.World, c kit.Controller) { w.Reconcile(c, level("all")) }

func TestMakesStocksObjects(t *testing.T) {
	w, c := world(t)
	reconcileAll(w, c)
	var levels flowcontrolv1.PriorityLevelConfigurationList
	var schemas flowcontrolv1.FlowSchemaList
	if err := w.List(t.Context(), &levels); err != nil {
		t.Fatal(err)
	}
	if err := w.List(t.Context(), &schemas); err != nil {
		t.Fatal(err)
	}
	if want := len(bootstrap.MandatoryPriorityLevelConfigurations) + len(bootstrap.SuggestedPriorityLevelConfigurations); len(levels.Items) != want {
		t.Errorf("%d levels, want %d", len(levels.Items), want)
	}
	if want := len(bootstrap.MandatoryFlowSchemas) + len(bootstrap.SuggestedFlowSchemas); len(schemas.Items) != want {
		t.Errorf("%d schemas, want %d", len(schemas.Items), want)
	}
	for i := range schemas.Items {
		fs := &schemas.Items[i]
		condition := apihelpers.GetFlowSchemaConditionByType(fs, flowcontrolv1.FlowSchemaConditionDangling)
		if condition == nil || condition.Status != flowcontrolv1.ConditionFalse {
			t.Errorf("%s: %+v", fs.Name, condition)
		}
		if fs.Annotations[flowcontrolv1.AutoUpdateAnnotationKey] != "true" {
			t.Errorf("%s: %v", fs.Name, fs.Annotations)
		}
	}
}

func TestKeepsWhatNobodyHasTakenOver(t *testing.T) {
	w, c := world(t)
	reconcileAll(w, c)
	two := int32(2)
	for _, name := range []string{"workload-low", "system", "catch-all"} {
		controllertest.Change(w, level(name), func(pl *flowcontrolv1.PriorityLevelConfiguration) {
			pl.Spec.Limited.NominalConcurrencyShares = &two
			if name == "system" {
				pl.Annotations[flowcontrolv1.AutoUpdateAnnotationKey] = "false"
			}
		})
	}
	controllertest.Change(w, level("exempt"), func(pl *flowcontrolv1.PriorityLevelConfiguration) {
		pl.Spec.Exempt.NominalConcurrencyShares = &two
	})
	// One that somebody made before, without an annotation, and whose spec was changed since: it is theirs.
	if err := w.Delete(t.Context(), flowSchema("probes")); err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(t.Context(), flowSchema("catch-all")); err != nil {
		t.Fatal(err)
	}
	reconcileAll(w, c)
	shares := func(name string) int32 {
		return *controllertest.Reload(w, level(name)).Spec.Limited.NominalConcurrencyShares
	}
	if shares("workload-low") != 100 {
		t.Error("a suggested level that nobody has taken over is brought back")
	}
	if shares("system") != 2 {
		t.Error("one that somebody has taken over is left alone")
	}
	if shares("catch-all") != 5 {
		t.Error("a mandatory level is brought back")
	}
	if *controllertest.Reload(w, level("exempt")).Spec.Exempt.NominalConcurrencyShares != 2 {
		t.Error("how much the exempt level has is the administrator's to say")
	}
	controllertest.Reload(w, flowSchema("probes"))
	controllertest.Reload(w, flowSchema("catch-all"))
}

func TestRevise(t *testing.T) {
	want := bootstrap.SuggestedPriorityLevelConfigurationSystem
	k := levelKind()
	for _, tc := range []struct {
		name       string
		annotation string
		generation int64
		changed    bool // its spec
		must       bool
		kept       string // empty: nothing is to be done
		restored   bool
	}{
		{name: "as it should be", annotation: "true", generation: 3},
		{name: "made by a stranger, unchanged", generation: 1, kept: "true"},
		{name: "made by a stranger, who changed it", generation: 2, changed: true, kept: "false"},
		{name: "made by a stranger otherwise", generation: 1, changed: true, kept: "true", restored: true},
		{name: "changed", annotation: "true", generation: 2, changed: true, kept: "true", restored: true},
		{name: "taken over", annotation: "false", generation: 2, changed: true},
		{name: "taken over, though mandatory", annotation: "false", generation: 2, changed: true, must: true, kept: "true", restored: true},
		{name: "nonsense", annotation: "maybe", generation: 2, kept: "false"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			have := want.DeepCopy()
			have.Generation = tc.generation
			have.Annotations = nil
			if tc.annotation != "" {
				have.Annotations = map[string]string{flowcontrolv1.AutoUpdateAnnotationKey: tc.annotation}
			}
			one := int32(1)
			if tc.changed {
				have.Spec.Limited.NominalConcurrencyShares = &one
			}
			got, ok := revise(k, want, have, tc.must)
			if ok != (tc.kept != "") {
				t.Fatalf("changed: %v", ok)
			}
			if !ok {
				return
			}
			if a := got.Annotations[flowcontrolv1.AutoUpdateAnnotationKey]; a != tc.kept {
				t.Errorf("annotated %q, want %q", a, tc.kept)
			}
			if restored := tc.changed && k.same(want, got); restored != tc.restored {
				t.Errorf("restored: %v", restored)
			}
		})
	}
}

func TestRemovesWhatIsNotSuggestedAnyMore(t *testing.T) {
	old := bootstrap.SuggestedPriorityLevelConfigurationSystem.DeepCopy()
	old.Name = "outdated"
	own := old.DeepCopy()
	own.Name, own.Annotations = "own", nil
	schema := bootstrap.SuggestedFlowSchemaProbes.DeepCopy()
	schema.Name = "outdated"
	w, c := world(t, old, own, schema)
	reconcileAll(w, c)
	for _, gone := range []client.Object{level("outdated"), flowSchema("outdated")} {
		if err := w.Get(t.Context(), client.ObjectKeyFromObject(gone), gone); !apierrors.IsNotFound(err) {
			t.Errorf("%T: %v", gone, err)
		}
	}
	controllertest.Reload(w, level("own"))
}

func TestTellsOfMissingLevels(t *testing.T) {
	fs := bootstrap.SuggestedFlowSchemaGlobalDefault.DeepCopy()
	fs.Name, fs.Annotations = "own", nil
	fs.Spec.PriorityLevelConfiguration.Name = "missing"
	w, c := world(t, fs)
	status := func() flowcontrolv1.ConditionStatus {
		reconcileAll(w, c)
		condition := apihelpers.GetFlowSchemaConditionByType(controllertest.Reload(w, flowSchema("own")), flowcontrolv1.FlowSchemaConditionDangling)
		if condition == nil {
			t.Fatal("nothing is told")
		}
		return condition.Status
	}
	if got := status(); got != flowcontrolv1.ConditionTrue {
		t.Errorf("its level is missing: %s", got)
	}
	pl := bootstrap.SuggestedPriorityLevelConfigurationSystem.DeepCopy()
	pl.Name, pl.Annotations = "missing", nil
	w.MustCreate(pl)
	if got := status(); got != flowcontrolv1.ConditionFalse {
		t.Errorf("its level is there: %s", got)
	}
}
